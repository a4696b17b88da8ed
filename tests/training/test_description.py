import jax
import numpy as np
import pytest

from sparse_tube_vit.config import EncoderOptions, default_config, stream
from sparse_tube_vit.models.flops import compiled_flops, forward_flops, pixels_read
from sparse_tube_vit.models.tubes import SparseTubes, Tube, normalize
from sparse_tube_vit.models.tubevit import TubeViT
from sparse_tube_vit.models.variants import TUBE_SETS, VARIANTS
from sparse_tube_vit.training.description import describe


def test_pixels_read_are_those_that_change_a_token():
    """A pixel is read if the tokens' gradient with respect to it is not zero."""
    tubes = (
        Tube((2, 4, 4), (4, 8, 8), (1, 1, 0), space_to_depth=(2, 2, 1)),
        Tube((1, 3, 5), (3, 6, 6), space_to_depth=(1, 2, 2)),  # some past the clip
        Tube((3, 3, 3), (2, 2, 7), (0, 4, 1)),
    )
    clip = (8, 18, 19)
    x = normalize(np.zeros((1, *clip, 3), np.uint8))
    stem = SparseTubes(tubes, width=8)

    @jax.jit
    def gradient(key, x):
        params = stem.init(key, x)
        tokens = stem.apply(params, x)
        weights = jax.random.normal(key, tokens.shape)
        return jax.grad(lambda x: (stem.apply(params, x) * weights).sum())(x)

    read = np.abs(gradient(jax.random.key(0), x)[0]).max(-1) > 0
    np.testing.assert_array_equal(pixels_read(tubes, clip), read)
    assert 0 < read.mean() < 1


@pytest.mark.parametrize(
    "variant, clip, pooling",
    [
        ("Ti", (32, 224, 224), "attention"),
        ("B", (1, 224, 224), "class_token"),
        ("H", (64, 224, 224), "mean"),
    ],
)
def test_the_formula_is_within_3_percent_of_what_the_compiler_counts(
    variant, clip, pooling
):
    model = TubeViT(
        tubes=TUBE_SETS["main"],
        classes={"kinetics": 400},
        pooling=pooling,
        options=EncoderOptions(**VARIANTS[variant]),
    )
    formula = sum(forward_flops(model, clip, "kinetics").values())
    assert compiled_flops(model, clip, "kinetics") == pytest.approx(formula, rel=0.03)


def cells(report):
    return [line.split() for line in report.splitlines()]


def test_the_report(tmp_path):
    config = default_config()
    config.total_steps, config.data_dir = 20_000, str(tmp_path)
    config.model.update(**VARIANTS["B"])
    config.streams.v = stream(
        kind="video", dataset="video_folder/none", head="dances", batch_size=1
    )
    report = describe(config)
    # The stem reads 7 x 7 x 4 windows of tube 0, twice 8 frames each.
    assert "8x8x8 every 16x32x32 from 0x0x0, 2x1x1 windows a token" in report
    share = (4 * 7 * 7) * 8**3 / (32 * 224 * 224)
    line = next(row for row in report.splitlines() if row.startswith("8x8x8"))
    assert line.split()[-3:] == ["98", "2x7x7", f"{share:.2%}"]
    assert "a clip of 32x224x224" in report and " 539 " in report
    assert "559 in the paper" in report and "72 GFLOP" in report
    # What is not known yet is said so, and the rest is told all the same.
    assert "Without head_dances, whose data sets are not prepared" in report
    d = 768
    pooling = f"{4 * (d * d + d) + d:,}"
    assert ["pooling", pooling, "0", pooling] in cells(report)
    encoder = f"{12 * (12 * d * d + 13 * d) + 2 * d:,}"
    assert ["encoder", encoder, "0", encoder] in cells(report)
    formula, counted = (
        float(row[-1]) for row in cells(report) if row[:1] in (["by"], ["as"])
    )
    assert counted == pytest.approx(formula, rel=0.03)
    config.optimizer.frozen_layers = 12
    assert ["pooling", pooling, "0", pooling] in cells(describe(config))
    assert ["encoder", "0", encoder, encoder] in cells(describe(config))
    config.model.tubes = "2"
    assert "Beside the paper" not in describe(config)
