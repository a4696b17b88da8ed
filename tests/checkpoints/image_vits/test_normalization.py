import numpy as np
import pytest

from sparse_tube_vit.checkpoints.image_vits import UnreadableWeights, normalization
from sparse_tube_vit.checkpoints.image_vits.families import TIMM
from tests.checkpoints.image_vits.models import GOLDEN, config_of, load

PLAIN = TIMM[-1]


@pytest.mark.parametrize("kind", normalization.KINDS)
def test_folded_kernels_give_the_same_tokens(kind):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 4, 4, 3))
    kernel, bias = rng.normal(size=(4, 4, 3, 7)), rng.normal(size=7)
    mean, std = normalization.KINDS[kind]
    x = (pixels / 255 - mean) / std
    expected = np.einsum("nhwc,hwcd->nd", x, kernel) + bias
    found = normalization.choose(kind, {}, {}, PLAIN)
    kernel, bias = found.fold(kernel, bias)
    ours = np.einsum("nhwc,hwcd->nd", pixels / 127.5 - 1, kernel) + bias
    np.testing.assert_allclose(ours, expected, atol=1e-9)


@pytest.mark.parametrize(
    "asked, config, preprocessor, mean, why",
    [
        ("clip", {"mean": [0] * 3, "std": [1] * 3}, {}, 0.48145466, "as asked"),
        ("", {"mean": [0.0] * 3, "std": [1.0] * 3}, {}, 0.0, "by config.json"),
        (
            "",
            {"pretrained_cfg": {"mean": [0.485, 0.4, 0.4], "std": [0.2] * 3}},
            {},
            0.485,
            "by config.json",
        ),
        ("", {}, {"image_mean": [0.4] * 3, "image_std": [1] * 3}, 0.4, "by prepro"),
        # Pixels times 1/127.5 less 1.
        (
            "",
            {},
            {
                "rescale_factor": 1 / 127.5,
                "image_mean": [1, 1, 1],
                "image_std": [1, 1, 1],
            },
            0.5,
            "by preprocessor",
        ),
        (
            "",
            {},
            {
                "do_normalize": False,
                "image_mean": [0.4] * 3,
                "image_std": [0.2] * 3,
            },
            0.0,
            "by preprocessor",
        ),
        ("", {}, {"do_normalize": False}, 0.0, "by preprocessor"),
        # Pixels in 0..255, and one number for three.
        (
            "",
            {},
            {"do_rescale": False, "image_mean": 51, "image_std": [51] * 3},
            0.2,
            "by preprocessor",
        ),
        ("", {}, {}, 0.5, "as most ViT models of timm; DeiT, DINO and MAE have the sa"),
    ],
)
def test_what_decides(asked, config, preprocessor, mean, why):
    found = normalization.choose(asked, config, preprocessor, PLAIN)
    assert found.mean[0] == pytest.approx(mean) and found.why.startswith(why)


@pytest.mark.parametrize(
    "mean, std, factor",
    [
        ([0.1] * 13, [0.2] * 13, 1 / 255),
        ([0.5] * 3, [0.5, 0, 0.5], 1 / 255),
        ([0.5] * 3, [float("nan")] * 3, 1 / 255),
        ("half", "half", 1 / 255),
        ([0.5] * 3, [0.5] * 3, 0),
    ],
)
def test_what_normalizes_nothing_is_named(mean, std, factor):
    preprocessor = {"image_mean": mean, "image_std": std, "rescale_factor": factor}
    with pytest.raises(UnreadableWeights, match="config.json beside vit normalizes"):
        normalization.choose("", {}, preprocessor, PLAIN, "vit")
    if factor:
        with pytest.raises(UnreadableWeights, match="^config.json .* three numbers"):
            normalization.choose("", {"mean": mean, "std": std}, {}, PLAIN)
    assert normalization.choose("half", {}, preprocessor, PLAIN).is_ours


def test_the_report_says_which_and_why_and_a_key_changes_it():
    config = config_of(GOLDEN / "timm_deit")
    _, params, report = load(config)
    note = "inputs are normalized by imagenet (mean 0.485, 0.456, 0.406; std 0.229"
    assert any(n.startswith(note) and "config.json" in n for n in report.notes)
    config.init.normalization = "half"
    _, other, report = load(config)
    assert any("by half" in n and "as asked for" in n for n in report.notes)
    kernels = [p["stem"]["tube_0"]["kernel"] for p in (params, other)]
    ratio = np.broadcast_to(0.5 / np.array([0.229, 0.224, 0.225]), (8, 8, 3))
    np.testing.assert_allclose(kernels[0], kernels[1] * ratio[None, ..., None], 1e-5)
