"""Scaling up: a small model's tubes on a large image ViT."""

import ast
import dataclasses
import itertools
import math
import operator
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from sparse_tube_vit import scale_up as scale_up_command
from sparse_tube_vit import train
from sparse_tube_vit.checkpoints import pretrained, stored
from sparse_tube_vit.checkpoints.image_vits import read_arrays
from sparse_tube_vit.checkpoints.run import (
    Checkpoints,
    OtherRun,
)
from sparse_tube_vit.checkpoints.scaling import (
    NotScalable,
    read_image_vit,
    scale_config,
    scale_tube,
    scale_up,
)
from sparse_tube_vit.config import InvalidConfig, default_config
from sparse_tube_vit.models.tubes import SparseTubes, Tube, resize_kernel
from sparse_tube_vit.models.tubevit import make_model
from sparse_tube_vit.models.variants import TUBE_SETS, VARIANTS, make_tubes
from sparse_tube_vit.training.freezing import frozen_parts, partition
from sparse_tube_vit.training.optimizer import make_optimizer
from sparse_tube_vit.training.state import TrainState
from tests.checkpoints.created import (
    BIG,
    CLASSES,
    big_config,
    model_and_params,
    read,
    small_config,
    write,
)
from tests.tiny import shrink_moving_shapes, tiny_config

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def created(tmp_path_factory):
    """(small params, big params, work directory of the created model)."""
    root = tmp_path_factory.mktemp("scaling")
    small = write(root / "small", small_config())
    big = write(root / "big", big_config())
    scale_up(root / "small", root / "big", root / "created")
    return small, big, root / "created"


@pytest.mark.parametrize(
    "channels, width, expected",
    [
        # B to H, its first two tubes with space-to-depth: ratios of 1280 / 384,
        # 1280 / 192 and 1280 / 768, none of them whole.
        ((384, 192, 768), 1280, [(2, 2, 1), (1, 4, 2), (2, 1, 1)]),
        ((96, 48, 192), 768, [(2, 2, 2), (1, 8, 2), (4, 1, 1)]),  # Ti to B
        ((96, 48, 192), 192, [(2, 1, 1), (1, 2, 2), (1, 1, 1)]),  # Ti to Ti
    ],
)
def test_windows_a_token(channels, width, expected):
    tubes = TUBE_SETS["main"]
    for tube, d, factors in zip(tubes, channels, expected, strict=False):
        scaled = scale_tube(tube, (64, 224, 224), d, width)
        assert scaled.space_to_depth == factors
        assert scaled.channels == scaled.kernel_channels(width) == d
        assert (scaled.kernel, scaled.stride) == (tube.kernel, tube.stride)


@pytest.mark.parametrize("big, frozen", [("H", 26), ("L", 19), ("S", 9)])
def test_as_large_a_share_is_frozen_as_in_the_paper(big, frozen):
    config = default_config()
    patches = Tube((1, 16, 16), (1, 16, 16))
    config.model.update(VARIANTS["Ti"])
    config.optimizer.trained_layers = 4  # of the small model
    scale_config(config, VARIANTS[big], patches)
    assert config.model.gate_after == frozen
    assert config.optimizer.trained_layers == VARIANTS[big]["depth"] - frozen
    config.model.positions = "learned"
    with pytest.raises(NotScalable, match="must not be learned"):
        scale_config(config, VARIANTS["H"], patches)


def test_a_tube_reads_as_much_of_the_clip_as_so_many_windows_can():
    """By a mask of the clip, for all factors that make 4 windows."""
    clip, tube = (12, 14, 14), Tube((4, 4, 4), (8, 8, 8))

    def read_by(factors):
        mask = np.zeros(clip, bool)
        for first in itertools.product((0, 8), repeat=3):  # one token each
            for window in itertools.product(*map(range, factors)):
                steps = (8 // f * i for f, i in zip(factors, window, strict=True))
                t, h, w = map(operator.add, first, steps)
                mask[t : t + 4, h : h + 4, w : w + 4] = True
        return mask.sum()

    read = {
        factors: read_by(factors)
        for factors in itertools.product((1, 2, 4), repeat=3)
        if math.prod(factors) == 4
    }
    # Along time the second window of the last token is past the clip.
    assert read[1, 2, 2] == max(read.values()) > read[2, 2, 1] > read[4, 1, 1]
    assert scale_tube(tube, clip, 8, 32).space_to_depth == (1, 2, 2)


def test_no_factors_are_enough():
    with pytest.raises(NotScalable, match=r"5 windows .* \(2, 2, 1\) has no factors"):
        scale_tube(Tube((2, 2, 2), (2, 2, 1)), (4, 4, 4), 8, 40)


def test_kernels_are_the_small_models_and_the_rest_the_large_ones(created):
    small, big, workdir = created
    config, run, params = read(workdir)
    made, before = flatten_dict(params["stem"]), flatten_dict(small["stem"])
    for leaf in ("kernel", "bias"):
        np.testing.assert_array_equal(made["tube_0", leaf], before["tube_0", leaf])
        patch = big["stem"]["tube_0"][leaf]
        np.testing.assert_array_equal(made["tube_1", leaf], patch)
    assert params["encoder"].pop("gate") == 0
    for part in ("encoder", "pooling"):
        jax.tree.map(np.testing.assert_array_equal, params[part], big[part])
    # The image tube is the large model's, with the small one's stride along time.
    tube, patches = make_tubes(config.model.tubes)
    assert tube == Tube((4, 4, 4), (4, 8, 8), (0, 0, 0), (1, 2, 1), channels=24)
    assert patches == Tube((1, 4, 4), (4, 4, 4))
    assert {key: config.model[key] for key in BIG} == BIG
    assert (config.model.gate_after, config.optimizer.trained_layers) == (2, 1)
    assert run["class_names"] == {head: list(c) for head, c in CLASSES.items()}
    _, fresh = model_and_params(config)
    assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, read(workdir)[2])


def test_tokens_are_neighbouring_windows_side_by_side(created):
    """As numpy makes them: the first 40 of two windows' 24 channels each."""
    _, _, workdir = created
    config, _, params = read(workdir)
    x = np.random.default_rng(0).uniform(-1, 1, (2, 8, 16, 16, 3)).astype(np.float32)
    stem = SparseTubes(make_tubes(config.model.tubes), 40)
    tokens = stem.apply({"params": params["stem"]}, x)

    kernel, bias = (params["stem"]["tube_0"][leaf] for leaf in ("kernel", "bias"))
    expected = []
    for t in (0, 4):
        for h in (0, 8):
            for w in (0, 8):
                windows = [x[:, t : t + 4, s : s + 4, w : w + 4] for s in (h, h + 4)]
                outputs = [np.einsum("bthwc,thwcd->bd", y, kernel) for y in windows]
                token = np.concatenate([y + bias for y in outputs], axis=-1)
                expected.append(token[:, :40])
    expected = np.stack(expected, axis=1)
    np.testing.assert_allclose(tokens[:, : len(expected[0])], expected, atol=1e-5)


def test_the_gate_changes_nothing_at_the_start(created):
    _, _, workdir = created
    config, _, params = read(workdir)
    model = make_model(config, {head: len(names) for head, names in CLASSES.items()})
    x = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), np.uint8)

    def tokens(model, params):
        def features(params):
            return model.apply({"params": params}, x, method="features")

        return jax.jit(features)(params)["tokens"]  # compiled, as in training

    gated = tokens(model, params)
    encoder = {k: v for k, v in params["encoder"].items() if k != "gate"}
    ungated = tokens(model.with_options(gate_after=None), params | {"encoder": encoder})
    np.testing.assert_array_equal(gated, ungated)
    opened = tokens(model, params | {"encoder": encoder | {"gate": np.float32(0.5)}})
    assert np.abs(opened - gated).max() > 1e-2


@pytest.mark.parametrize("file, patch", [("augreg.npz", 14), ("timm.safetensors", 16)])
def test_from_a_file_and_from_interpolated_kernels(file, patch, tmp_path):
    config = small_config()
    config.clip.size = 32
    config.model.update(width=12, kernels="interpolated")
    small = write(tmp_path / "small", config)
    sizes = {"depth": 2, "width": 24, "mlp_dim": 48, "heads": 2}
    made, report = scale_up(
        tmp_path / "small", GOLDEN / file, tmp_path / "created", sizes
    )
    _, _, params = read(tmp_path / "created")
    shared = small["stem"]["shared"]
    kernel = resize_kernel(shared["kernel"], (4, 4, 4))
    np.testing.assert_array_equal(params["stem"]["tube_0"]["kernel"], kernel)
    np.testing.assert_array_equal(params["stem"]["tube_0"]["bias"], shared["bias"])
    arrays = read_arrays(GOLDEN / file)
    if file == "augreg.npz":
        kernel, gelu = arrays["embedding/kernel"], "tanh"
    else:
        kernel, gelu = arrays["patch_embed.proj.weight"].transpose(2, 3, 1, 0), "erf"
    np.testing.assert_array_equal(params["stem"]["tube_1"]["kernel"], kernel[None])
    assert made.model.gelu == gelu
    assert make_tubes(made.model.tubes)[1].kernel == (1, patch, patch)
    new = {name.split("/")[0] for name in report.new}
    assert new == {"encoder", "pooling", "head_motions", "head_shapes"}
    assert any("head" in name for name in report.dropped)


def test_positions_of_the_image_vit_are_kept(tmp_path):
    config = small_config()
    config.clip.update(frames=8, size=42)  # the file's own 3x3 patches
    config.model.width = 12
    write(tmp_path / "small", config)
    arguments = {"sizes": {"heads": 2}, "keep_positions": True}
    file = GOLDEN / "augreg.npz"  # whose positions are interpolated linearly
    scale_up(tmp_path / "small", file, tmp_path / "created", **arguments)
    made, _, params = read(tmp_path / "created")
    assert made.model.positions == "learned" and made.init.positions == "keep"
    theirs = read_arrays(file)["Transformer/posembed_input/pos_embedding"]
    theirs = theirs[0, 1:].reshape(3, 3, -1)
    ours = params["positions"]
    assert ours["gain"] == np.float32(0.02) == made.model.position_gain
    assert ours["tube_1"].shape == (2, 3, 3, 24)  # frames 0 and 4
    np.testing.assert_allclose(ours["tube_1"], [theirs, theirs], atol=1e-6)
    # Windows of 4 pixels, 8 apart: centres at 2, 10 ..., of patches at 7, 21, 35.
    assert ours["tube_0"].shape[1:3] == (5, 5)
    np.testing.assert_allclose(ours["tube_0"][0, 0, 0], theirs[0, 0], atol=1e-6)
    between = theirs[0, 0] * 11 / 14 + theirs[0, 1] * 3 / 14
    np.testing.assert_allclose(ours["tube_0"][0, 0, 1], between, atol=1e-6)
    write(tmp_path / "big", big_config())
    with pytest.raises(NotScalable, match="big has no learned positions"):
        scale_up(tmp_path / "small", tmp_path / "big", tmp_path / "b", None, None, True)


def test_the_gain_of_the_small_models_positions_is_taken_and_no_registers(tmp_path):
    config = small_config()
    config.model.update(position_gain=0.02, registers=2)
    small = write(tmp_path / "small", config)
    write(tmp_path / "big", big_config())
    made, report = scale_up(tmp_path / "small", tmp_path / "big", tmp_path / "created")
    assert made.model.registers == 0
    assert "registers" in small and "registers" not in read(tmp_path / "created")[2]
    gain = read(tmp_path / "created")[2]["positions"]["gain"]
    assert gain == small["positions"]["gain"] != np.float32(0.02)
    assert "positions/gain" in report.loaded


def test_frozen_tubes_are_not_trained_with_other_windows(created):
    config, _, _ = read(created[2])
    names = {head: tuple(classes) for head, classes in CLASSES.items()}

    def load(trained_layers):
        config.optimizer.trained_layers = trained_layers
        model, params = model_and_params(config)
        return pretrained.initial_params(config, model, params, names)

    config.init.weights = str(created[2])
    load(1)
    tubes = [tube.to_dict() for tube in make_tubes(config.model.tubes)]
    others = {"space_to_depth": (2, 1, 1)}, {"space_to_depth": (1, 1, 2), "whole": True}
    for other in others:
        config.model.tubes = (tubes[0] | other, *tubes[1:])
        load(None)
        with pytest.raises(pretrained.WeightsDoNotMatch, match="what is frozen was tr"):
            load(1)


def test_a_small_model_that_still_trains_is_reported(
    created, tmp_path, monkeypatch, caplog
):
    small, read = created[2].parent / "small", stored.read
    steps = small_config().total_steps
    for step, warned in ((steps, False), (steps - 1, True)):
        monkeypatch.setattr(
            stored,
            "read",
            lambda path, at=step: dataclasses.replace(read(path), step=at),
        )
        with pytest.raises(NotScalable):  # for it is no image ViT; that is read later
            scale_up(small, small, tmp_path / "big")
        said = f"is at step {step} of the {steps} of its run"
        assert (said in caplog.text) == warned


def test_what_cannot_be_scaled(created, tmp_path):
    root = created[2].parent
    with pytest.raises(NotScalable, match="small is not an image ViT"):
        scale_up(root / "small", root / "small", tmp_path / "a")
    with pytest.raises(NotScalable, match="width 48 .* to a width of 24"):
        small = big_config()
        small.model.width = 24
        write(tmp_path / "smaller", small)
        big = big_config()
        big.model.width = 48
        write(tmp_path / "larger", big)
        scale_up(tmp_path / "larger", tmp_path / "smaller", tmp_path / "b")
    with pytest.raises(InvalidConfig, match="gate_after is 3"):
        scale_up(root / "small", root / "big", tmp_path / "c", trained_layers=0)
    # A run that failed before its first checkpoint leaves an empty directory.
    (tmp_path / "failed" / "checkpoints").mkdir(parents=True)
    scale_up(root / "small", root / "big", tmp_path / "failed")
    with pytest.raises(OtherRun, match="has checkpoints already"):
        scale_up(root / "small", root / "big", root / "created")
    config = tiny_config("data")
    config.model.tubes = (*config.model.tubes[:1],)
    for sources in (config.streams, config.evaluations):
        del sources["image"]
    write(tmp_path / "videos", config)
    with pytest.raises(NotScalable, match="one must read images"):
        scale_up(tmp_path / "videos", root / "big", tmp_path / "d")


def test_the_command_prints_the_config_to_train_with(created, tmp_path, capsys):
    root = created[2].parent
    command = ["--small", f"{root}/small", "--big", f"{root}/big"]
    command += ["--workdir", str(tmp_path), "--trained_layers", "2"]
    scale_up_command.main(command)
    printed = capsys.readouterr().out
    assert re.search(r"loaded +stem/tube_0 .*of \S*small\n", printed)
    assert re.search(r"new +encoder/gate", printed)
    config = small_config()
    for key, value in re.findall(
        r"^  (\S+) = (.*(?:\n    .*)*(?:\n  \))?)", printed, re.M
    ):
        section, key = key.split(".")
        config[section][key] = ast.literal_eval(value)
    assert config.to_json() == read(tmp_path)[0].to_json()
    with pytest.raises(SystemExit):
        scale_up_command.main(command)
    assert "OtherRun: " in capsys.readouterr().err


def test_the_inputs_of_an_image_vit_are_normalized_as_asked(tmp_path, capsys):
    write(tmp_path / "small", small_config())
    command = [
        "--small",
        f"{tmp_path}/small",
        "--big",
        str(GOLDEN / "timm.safetensors"),
    ]
    kernels = []
    for name, options in (("a", []), ("b", ["--normalization=imagenet"])):
        workdir = tmp_path / name
        scale_up_command.main([*command, "--workdir", str(workdir), *options])
        kernels.append(read(workdir)[2]["stem"]["tube_1"]["kernel"])
    said = re.findall(r"inputs are normalized by (\w+)", capsys.readouterr().out)
    assert said == ["half", "imagenet"] and not np.array_equal(*kernels)
    options = ["--workdir", str(tmp_path / "c"), "--positions=keep"]
    scale_up_command.main([*command, *options])
    assert "positions" in read(tmp_path / "c")[2]
    assert "positions" not in read(tmp_path / "a")[2]
    with pytest.raises(InvalidConfig, match="a is not an image ViT's weights"):
        read_image_vit(tmp_path / "a", normalization="half")


def test_a_head_that_the_small_model_only_keeps_stays_behind(tmp_path):
    small = small_config()
    small.init.update(weights="elsewhere", keep_heads=("old",))
    write(tmp_path / "small", small, {"old": ("x", "y")})
    write(tmp_path / "big", big_config())
    scale_up(tmp_path / "small", tmp_path / "big", tmp_path / "created")
    _, run, params = read(tmp_path / "created")
    assert set(run["class_names"]) == {"motions", "shapes"}
    assert "head_old" not in params


def test_training_moves_the_gate_and_nothing_frozen(created, tmp_path, monkeypatch):
    shrink_moving_shapes(monkeypatch)
    config, _, before = read(created[2])
    assert config.init.weights == str(created[2])
    config.data_dir = str(tmp_path / "data")
    config.total_steps, config.optimizer.warmup_steps = 2, 0
    config.evaluations = {}
    state = train.train(config, tmp_path / "run")
    after, frozen = jax.device_get(state.params), frozen_parts(config)
    jax.tree.map(
        np.testing.assert_array_equal,
        partition(after, frozen)[1],
        partition(before, frozen)[1],
    )
    assert after["encoder"]["gate"] != 0
    up = [p["encoder"]["block_2"]["mlp"]["up"]["kernel"] for p in (before, after)]
    assert not np.array_equal(*up)


def test_nothing_is_trained_where_the_created_model_lies(created):
    config, run, params = read(created[2])
    state = TrainState.create(params, make_optimizer(config), config)
    with pytest.raises(OtherRun, match="parameters to start from and no run"):
        Checkpoints(created[2], 1, run).resume(state)


def test_gated_mlps_of_an_image_vit_are_kept():
    vit = read_image_vit(GOLDEN / "image_vits" / "timm_dinov2_gated")
    assert vit.model["gated_mlp"] and vit.model["mlp_dim"] == 16
    assert vit.params["encoder/block_1/mlp/gate/kernel"].shape == (16, 16)


def test_of_a_large_models_pooling_attention_alone_is_taken(tmp_path):
    write(tmp_path / "small", small_config())
    write(tmp_path / "big", big_config(pooling="map"))
    _, report = scale_up(tmp_path / "small", tmp_path / "big", tmp_path / "created")
    config, _, params = read(tmp_path / "created")
    _, expected = model_and_params(config)
    shapes = (jax.tree.map(np.shape, tree) for tree in (params, expected))
    np.testing.assert_equal(*shapes)
    assert "pooling/mlp/up/kernel" in report.dropped
