"""Image ViTs' weights against what timm and transformers compute with them.

The files in golden/ are made by golden/make.py.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sparse_tube_vit.checkpoints import image_vits, pretrained, resizing, stored
from sparse_tube_vit.checkpoints.image_vits import UnreadableWeights
from sparse_tube_vit.checkpoints.pretrained import WeightsDoNotMatch
from sparse_tube_vit.checkpoints.run import Checkpoints, describe_run, save_params
from sparse_tube_vit.checkpoints.step import ForeignCheckpoint
from sparse_tube_vit.config import default_config, from_json
from sparse_tube_vit.models.tubevit import init_params, make_model
from sparse_tube_vit.training.state import TrainState
from tests.saved import random_like

GOLDEN = Path(__file__).parents[1] / "golden"
VIT = {"depth": 2, "width": 24, "mlp_dim": 48, "heads": 2}


@pytest.fixture(scope="module")
def references():
    return np.load(GOLDEN / "references.npz")


def image_tube(patch):
    size = (1, patch, patch)
    return {"kernel": size, "stride": size}


def vit_config(file, patch, size, **model):
    """An image ViT as a TubeViT of one tube, everything of it loaded."""
    config = default_config()
    config.clip.update(frames=1, size=size)
    config.model.update(
        **VIT, pooling="class_token", positions="learned", gelu="erf", **model
    )
    config.model.tubes = (image_tube(patch),)
    config.init.update({"weights": str(file), "positions": "keep", "head": "imagenet"})
    return config


def fresh(config, classes=5):
    model = make_model(config, {"imagenet": classes})
    clip = (config.clip.frames, config.clip.size, config.clip.size)
    params = jax.eval_shape(lambda k: init_params(model, k, clip), jax.random.key(0))
    return model, params


def load(config, classes=5):
    """(model, the loaded parameters, report)."""
    model, shapes = fresh(config, classes)
    names = {"imagenet": tuple(map(str, range(classes)))}
    return model, *pretrained.initial_params(config, model, shapes, names)


def logits(config, images):
    model, params, report = load(config)
    assert not report.new and not report.dropped
    apply = jax.jit(model.apply, static_argnums=2)
    return np.asarray(apply({"params": params}, images, "imagenet"))


@pytest.mark.parametrize(
    "reference, file, patch, size, epsilon",
    [
        ("timm", "timm.safetensors", 16, 48, 1e-6),
        ("augreg", "augreg.npz", 14, 42, 1e-6),
        # Patches and positions resized as timm's loader does.
        ("augreg_resized", "augreg.npz", 16, 64, 1e-6),
        ("hugging_face", "hugging_face.safetensors", 16, 48, 1e-12),
    ],
)
def test_logits_equal_those_of_timm_and_transformers(
    references, reference, file, patch, size, epsilon
):
    config = vit_config(GOLDEN / file, patch, size, norm_epsilon=epsilon)
    images = references[f"{reference}/images"]
    expected = references[f"{reference}/logits"]
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(logits(config, images), expected, atol=1e-4)


def test_gelu_and_epsilon_show_in_the_logits_and_are_noted(references):
    file = GOLDEN / "hugging_face.safetensors"
    images = references["hugging_face/images"]
    expected = references["hugging_face/logits"]
    for change in ({"norm_epsilon": 1e-6}, {"norm_epsilon": 1e-12, "gelu": "tanh"}):
        config = vit_config(file, 16, 48)
        config.model.update(change)
        assert np.abs(logits(config, images) - expected).max() > 1e-4
        key, value = [*change.items()][-1]
        assert any(
            note.startswith(f"model.{key} is {value!r}; a file does not tell")
            for note in load(config)[2].notes
        )


# What `save_pretrained` of transformers 5 undoes when it writes.
MODULE_NAMES = (
    ("encoder.layer.", "layers."),
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
)


def hugging_face_names(name):
    for old, new in MODULE_NAMES:
        name = name.replace(old, new)
    return name


def test_hugging_face_names_of_modules_and_of_a_trunk_alone(references, tmp_path):
    arrays = image_vits.read_arrays(GOLDEN / "hugging_face.safetensors")
    renamed = {hugging_face_names(k): v for k, v in arrays.items()}
    assert sorted(renamed) == references["hugging_face/module_names"].tolist()
    save_file(renamed, tmp_path / "modules.safetensors")
    config = vit_config(tmp_path / "modules.safetensors", 16, 48, norm_epsilon=1e-12)
    images = references["hugging_face/images"]
    expected = references["hugging_face/logits"]
    np.testing.assert_allclose(logits(config, images), expected, atol=1e-4)

    # A trunk has no prefix and no classifier, but a pooler, which has no part here.
    trunk = {k[4:]: v for k, v in arrays.items() if k.startswith("vit.")}
    trunk |= {"pooler.dense.weight": np.eye(24), "pooler.dense.bias": np.zeros(24)}
    save_file(trunk, tmp_path / "trunk.safetensors")
    config.init.update({"weights": str(tmp_path / "trunk.safetensors"), "head": ""})
    _, params, report = load(config)
    assert {*report.new} == {"head_imagenet/bias", "head_imagenet/kernel"}
    assert {*report.dropped} == {"pooler.dense.weight", "pooler.dense.bias"}
    query = trunk["encoder.layer.1.attention.attention.query.weight"]
    ours = params["encoder"]["block_1"]["attention"]["query"]["kernel"]
    np.testing.assert_array_equal(ours, query.T.reshape(24, 2, 12))


def video_config(file="timm.safetensors", **init):
    """A TubeViT as in a run: several tubes, fixed positions, attention pooling."""
    config = default_config()
    config.total_steps = 3
    config.clip.update(frames=8, size=48)
    config.model.update(VIT, gelu="erf", new_layers=1, gate_after=1)
    config.model.tubes = (
        {"kernel": (4, 8, 8), "stride": (4, 16, 16)},
        {"kernel": (3, 16, 16), "stride": (4, 16, 16)},
        image_tube(16),
    )
    config.init.update({"weights": str(GOLDEN / file), **init})
    return config


def test_a_video_model_takes_the_trunk_and_reports_the_rest():
    _, params, report = load(video_config())
    assert sorted(params) == ["encoder", "stem"]
    assert sorted(params["encoder"]) == ["block_0", "block_1", "norm"]
    assert sorted(params["stem"]) == ["tube_2"]
    lines = str(report).splitlines()
    assert lines[0].endswith("timm.safetensors (ViT, timm; 2 blocks, width 24)")
    up = "encoder/block_0..1/mlp/up  kernel (24, 48), bias (48,)"
    for line in (
        f"  loaded   {up}",
        "  loaded   stem/tube_2  kernel (1, 16, 16, 3, 24), bias (24,)",
        "  new      encoder/gate  ()",
        "  new      encoder/new_block_0/mlp/up  kernel (24, 48), bias (48,)",
        "  new      stem/tube_0  kernel (4, 8, 8, 3, 24), bias (24,)",
        "  dropped  pos_embed  (3, 3, 24): init.positions is 'drop'",
        "  dropped  cls_token  (1, 1, 24): pooling is 'attention'",
    ):
        assert line in lines, "\n".join(lines)
    assert len(lines) < 40


def test_repeated_kernels_read_a_still_clip_as_its_frame(references):
    frame = references["timm/images"]
    for how in ("repeat", "central_frame"):
        config = video_config(inflate=how)
        model, params, report = load(config)
        stem = params["stem"]
        for i in (0, 1):
            assert how in report.resized[f"stem/tube_{i}/kernel"][1]
        for x, same in ((np.repeat(frame[:, None], 3, 1), True), (blink(frame), False)):
            x = x.astype(np.float32) / 127.5 - 1
            still = np.einsum(
                "bthwc,thwcd->bd", x[:, :, :16, :16], stem["tube_1"]["kernel"]
            )
            one = np.einsum(
                "bhwc,hwcd->bd", x[:, 1, :16, :16], stem["tube_2"]["kernel"][0]
            )
            if same or how == "central_frame":
                np.testing.assert_allclose(still, one, atol=1e-4)
            else:
                assert np.abs(still - one).max() > 0.1
        np.testing.assert_array_equal(stem["tube_0"]["bias"], stem["tube_2"]["bias"])


def blink(frame):
    """The frame between two others."""
    return np.stack([255 - frame, frame, np.zeros_like(frame)], 1)


def test_kept_positions_are_those_of_all_tubes_and_the_gain_is_new():
    config = video_config(positions="keep")
    config.model.update(positions="learned", position_gain=0.0)
    _, params, report = load(config)
    assert sorted(params["positions"]) == ["tube_0", "tube_1", "tube_2"]
    assert report.new["positions/gain"] == ((), "")
    theirs = load_file(config.init.weights)["pos_embed"]
    grid = params["positions"]["tube_2"].reshape(-1, 24)  # of two moments
    np.testing.assert_array_equal(grid, np.tile(theirs[0, 1:], (len(grid) // 9, 1)))


def changed(tmp_path, **changes):
    """AugReg's golden file with arrays added, replaced, or (None) left out."""
    arrays = dict(np.load(GOLDEN / "augreg.npz")) | changes
    np.savez(
        tmp_path / "changed.npz", **{k: v for k, v in arrays.items() if v is not None}
    )
    return tmp_path / "changed.npz"


@pytest.mark.parametrize(
    "change, init, lines",
    [
        (
            lambda c: c.model.update(depth=1),
            {},
            ["encoder/block_1/mlp/down  kernel (48, 24), bias (24,): a parameter"],
        ),
        (
            lambda c: c.model.update(depth=4),
            {},
            ["encoder/block_2..3/norm_1  scale (24,), bias (24,): not there"],
        ),
        (
            lambda c: c.model.update(width=48, mlp_dim=32, heads=4),
            {},
            [
                "encoder/norm  scale (24,) is (48,) here, bias (24,) is (48,) here",
                "block_0..1/mlp/up  kernel (24, 48) is (48, 32) here, bias (48,)",
            ],
        ),
        (
            lambda c: c.model.update(tubes=c.model.tubes[:2]),
            {},
            ["embedding  kernel (14, 14, 3, 24): no tube takes it"],
        ),
        (
            lambda c: c.model.tubes[0].update(space_to_depth=(2, 1, 1)),
            {"inflate": "repeat"},
            ["stem/tube_0  kernel (4, 8, 8, 3, 12): 4x8x8 every 4x16x16 from 0x0x0, 2"],
        ),
        (
            lambda c: None,
            {"head": "imagenet"},
            ["head_imagenet  kernel (24, 5) is (24, 7) here, bias (5,) is (7,) here"],
        ),
    ],
)
def test_what_does_not_fit_is_listed(change, init, lines):
    config = video_config("augreg.npz", **init)
    config.model.tubes = tuple(dict(tube) for tube in config.model.tubes)
    change(config)
    with pytest.raises(WeightsDoNotMatch) as error:
        load(config, classes=7)
    for line in lines:
        assert line in str(error.value)


def test_leftovers_and_gaps_of_a_file_are_listed(tmp_path):
    config = video_config()
    attention = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1"
    changes = {
        f"{attention}/key/bias": None,
        "Transformer/encoderblock_1/ls1/gamma": np.ones(24),
        "norm_pre": np.ones(2),
        "embedding/bias": None,
        "Transformer/encoder_norm/bias": None,
    }
    config.init.weights = str(changed(tmp_path, **changes))
    with pytest.raises(WeightsDoNotMatch) as error:
        load(config)
    assert "Transformer/encoderblock_1/ls1/gamma  (24,): left over" in str(error.value)
    assert "norm_pre  (2,): left over in the file" in str(error.value)
    assert "stem/tube_2  bias (24,): not there" in str(error.value)
    assert "encoder/norm  bias (24,): not there" in str(error.value)
    key = "encoder/block_0/attention/key  bias (2, 12): not there"
    assert key in str(error.value)
    # Without those of query and value too it would be a ViT without biases.
    changes = {f"{attention}/{x}/bias": None for x in ("query", "key", "value")}
    config.init.weights = str(changed(tmp_path, **changes))
    _, params, _ = load(config)
    bias = params["encoder"]["block_0"]["attention"]["key"]["bias"]
    np.testing.assert_array_equal(bias, np.zeros((2, 12)))


def test_positions_of_no_square_can_be_dropped(tmp_path):
    arrays = dict(np.load(GOLDEN / "augreg.npz"))
    positions = "Transformer/posembed_input/pos_embedding"
    oblong = {positions: arrays[positions][:, :7]}
    config = vit_config(changed(tmp_path, **oblong), 14, 42)
    with pytest.raises(WeightsDoNotMatch, match="no square grid") as error:
        load(config)
    advised = re.findall(r"--config[.](\w+)[.](\w+)=([\w.]*\w)", str(error.value))
    assert len(advised) == 3
    for section, key, value in advised:
        config[section][key] = 0.02 if value == "0.02" else value
    # At their own amplitude, 1, fixed ones would swamp the tokens.
    assert (config.model.positions, config.model.position_gain) == ("fixed", 0.02)
    assert positions in load(config)[2].dropped


def test_a_layer_before_the_head_is_dropped_with_it(tmp_path):
    logits = {"pre_logits/kernel": np.eye(24), "pre_logits/bias": np.zeros(24)}
    config = video_config()
    config.init.weights = str(changed(tmp_path, **logits))
    assert set(logits) <= set(load(config)[2].dropped)
    config.init.head = "imagenet"
    with pytest.raises(WeightsDoNotMatch, match="pre_logits.*before the head"):
        load(config)


def test_files_of_another_kind_are_named(tmp_path):
    config = video_config()
    np.savez(tmp_path / "other.npz", a=np.ones(2))
    (tmp_path / "text.safetensors").write_text("no weights")
    np.savez(tmp_path / "pickled.npz", a=np.array([{}]))
    for file, message in (
        ("other.npz", "not a ViT .* 1 arrays, as a"),
        ("text.safetensors", "cannot be read"),
        ("pickled.npz", "allow_pickle"),
        ("none.npz", "No such file"),
    ):
        config.init.weights = str(tmp_path / file)
        with pytest.raises(UnreadableWeights, match=message):
            load(config)
    config.init.weights = str(tmp_path)
    with pytest.raises(UnreadableWeights, match="several files .*: name one of other"):
        load(config)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "todo.txt").touch()
    config.init.weights = str(tmp_path / "none")
    with pytest.raises(ForeignCheckpoint, match="neither a work dir"):
        load(config)


def save_run(config, classes, workdir):
    """A checkpoint of step 3 with random parameters, which are returned."""
    model = make_model(config, {head: len(names) for head, names in classes.items()})
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0), model.clip))
    params = jax.device_put(random_like(shapes))
    run = describe_run(config, classes)
    writer = Checkpoints(workdir, 1, run)
    writer.save(TrainState(jnp.int32(3), params, {"count": jnp.int32(3)}, None))
    writer.close()
    return params


def test_another_run_gives_all_but_heads_of_other_classes(tmp_path):
    config = video_config()
    config.model.positions = "learned"
    classes = {"a": ("x", "y"), "b": ("x", "y"), "c": ("x", "y")}
    theirs = jax.device_get(save_run(config, classes, tmp_path))

    config.clip.frames = 24
    config.init.update({"weights": str(tmp_path), "positions": "keep"})
    classes = {"a": ("x", "y"), "b": ("y", "x"), "d": ("x", "y")}
    model = make_model(config, {head: 2 for head in classes})
    shapes = jax.eval_shape(
        lambda k: init_params(model, k, model.clip), jax.random.key(0)
    )
    ours, report = pretrained.initial_params(config, model, shapes, classes)
    for part in ("encoder", "stem", "pooling", "head_a"):
        jax.tree.map(np.testing.assert_array_equal, ours[part], theirs[part])
    assert report.source == f"step 3 of {tmp_path}"
    assert {*report.new} == {f"head_{h}/{x}" for h in "bd" for x in ("kernel", "bias")}
    assert report.dropped["head_b/bias"] == ((2,), "the classes differ")
    assert report.dropped["head_c/bias"] == ((2,), "there is no such head here")
    # Three times the frames: the middle token of three has the place of the old one.
    old, new = (p["positions"]["tube_0"] for p in (theirs, ours))
    assert old.shape == (2, 3, 3, 24) and new.shape == (6, 3, 3, 24)
    np.testing.assert_allclose(new[1], old[0], atol=1e-6)
    np.testing.assert_allclose(new[4], old[1], atol=1e-6)

    config.init.weights = str(tmp_path / "checkpoints" / "3")
    config.init.positions = "drop"
    ours, report = pretrained.initial_params(config, model, shapes, classes)
    assert "positions" not in ours and "positions/tube_0" in report.dropped
    same = jax.tree.map(lambda x: x, shapes) | {"positions": theirs["positions"]}
    ours, _ = pretrained.initial_params(config, model, same, classes)
    jax.tree.map(np.testing.assert_array_equal, ours["positions"], theirs["positions"])
    config.model.pooling = "mean"
    model = make_model(config, {head: 2 for head in classes})
    del shapes["pooling"]
    with pytest.raises(WeightsDoNotMatch, match="pooling/probe .*: a parameter"):
        pretrained.initial_params(config, model, shapes, classes)


def test_keys_that_an_older_run_lacks_are_no_differences():
    run = stored.read("demo").description
    assert "gated_mlp" not in run["config"]["model"]
    config, classes = from_json(run["config"]), run["class_names"]
    config.init.weights = "demo"
    model = make_model(config, {head: len(names) for head, names in classes.items()})
    shapes = jax.eval_shape(
        lambda k: init_params(model, k, model.clip), jax.random.key(0)
    )
    _, report = pretrained.initial_params(config, model, shapes, classes)
    assert report.notes == [] and not report.new
    config.model.norm_epsilon = 1e-5
    _, report = pretrained.initial_params(config, model, shapes, classes)
    assert report.notes == ["model.norm_epsilon was 1e-06 there, 1e-05 here"]
    config.optimizer.trained_layers = 1
    with pytest.raises(
        WeightsDoNotMatch, match="norm_epsilon *1e-06 there: what is fro"
    ):
        pretrained.initial_params(config, model, shapes, classes)


def from_run(config, workdir, **init):
    """What a model takes of the run in `workdir`, and the report."""
    config.init.update({"weights": str(workdir), **init})
    model = make_model(config, {"a": 2})
    shapes = jax.eval_shape(
        lambda k: init_params(model, k, model.clip), jax.random.key(0)
    )
    return pretrained.initial_params(config, model, shapes, {"a": ("x", "y")})


@pytest.fixture(scope="module")
def run_of_three_tubes(tmp_path_factory):
    """(workdir, parameters) of a run whose last tube reads images."""
    workdir = tmp_path_factory.mktemp("run")
    params = save_run(video_config(), {"a": ("x", "y")}, workdir)
    return workdir, jax.device_get(params)


def test_the_image_tube_of_a_run_is_taken_wherever_it_stands(run_of_three_tubes):
    workdir, theirs = run_of_three_tubes
    config = video_config()
    config.model.tubes = (
        image_tube(16),
        {"kernel": (8, 4, 4), "stride": (8, 16, 16)},
        image_tube(8),
    )
    several = ("stem/tube_0", "stem/tube_1")
    ours, report = from_run(config, workdir, fresh=several[1:])
    image = theirs["stem"]["tube_2"]
    np.testing.assert_array_equal(ours["stem"]["tube_0"]["kernel"], image["kernel"])
    np.testing.assert_array_equal(ours["stem"]["tube_0"]["bias"], image["bias"])
    small = resizing.resize_patches(image["kernel"][0], (8, 8))
    np.testing.assert_allclose(ours["stem"]["tube_2"]["kernel"][0], small, atol=1e-6)
    assert sorted(ours["stem"]) == ["tube_0", "tube_2"]
    assert "stem/tube_1/kernel" in report.new
    dropped = {name: why for name, (_, why) in report.dropped.items()}
    assert dropped["stem/tube_0/kernel"] == "this tube takes the patches of another"
    assert dropped["stem/tube_1/kernel"] == "in init.fresh"
    assert report.resized["stem/tube_0/kernel"][1] == "of stem/tube_2"


def test_two_image_tubes_change_places(tmp_path):
    config = video_config()
    config.model.tubes = (image_tube(16), image_tube(8))
    config.model.positions = "learned"
    model = make_model(config, {"a": 2})
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0), model.clip))
    params = random_like(shapes)
    theirs = params["stem"]
    save_params(tmp_path, params, describe_run(config, {"a": ("x", "y")}))
    config = video_config()
    config.model.tubes = (image_tube(8), image_tube(16))
    config.model.positions = "learned"
    ours, report = from_run(config, tmp_path, positions="keep")
    for i, j in ((0, 1), (1, 0)):
        jax.tree.map(
            np.testing.assert_array_equal,
            ours["stem"][f"tube_{i}"],
            theirs[f"tube_{j}"],
        )
        np.testing.assert_array_equal(
            ours["positions"][f"tube_{i}"], params["positions"][f"tube_{j}"]
        )
    assert not any(name.startswith(("stem/", "positions/")) for name in report.dropped)


def test_learned_positions_of_a_tube_that_is_added_are_new(tmp_path):
    config = video_config()
    tubes = config.model.tubes
    config.model.tubes, config.model.positions = tubes[:2], "learned"
    theirs = jax.device_get(save_run(config, {"a": ("x", "y")}, tmp_path))
    config.model.tubes = tubes
    ours, report = from_run(config, tmp_path, positions="keep", fresh=("stem/tube_2",))
    for i in (0, 1):
        np.testing.assert_array_equal(
            ours["positions"][f"tube_{i}"], theirs["positions"][f"tube_{i}"]
        )
    assert {"stem/tube_2/kernel", "positions/tube_2"} <= report.new.keys()
    # In front of the others.
    config.model.tubes = (tubes[2], *tubes[:2])
    fresh = ("stem/tube_0", "stem/tube_1", "stem/tube_2")
    _, report = from_run(config, tmp_path, positions="keep", fresh=fresh)
    assert {f"positions/tube_{i}" for i in range(3)} <= report.new.keys()
    config.model.positions = "fixed"
    with pytest.raises(WeightsDoNotMatch, match="set init.positions='drop'"):
        from_run(config, tmp_path, positions="keep", fresh=fresh)


@pytest.mark.parametrize("how", ["keep", "drop"])
def test_a_gain_that_is_not_here_is_dropped(tmp_path, how):
    config = video_config()
    config.model.update(positions="learned", position_gain=0.0)
    save_run(config, {"a": ("x", "y")}, tmp_path)
    config.model.position_gain = None
    config.model.positions = "learned" if how == "keep" else "fixed"
    _, report = from_run(config, tmp_path, positions=how)
    assert report.dropped["positions/gain"] == ((), "model.position_gain is None")


def test_a_shape_of_charades_keeps_the_image_tube_in_its_place(run_of_three_tubes):
    workdir, theirs = run_of_three_tubes
    config = video_config()
    config.model.tubes = (
        {"kernel": (8, 4, 4), "stride": (8, 16, 16)},
        {"kernel": (4, 4, 4), "stride": (4, 16, 16)},
        image_tube(16),
    )
    with pytest.raises(WeightsDoNotMatch, match="tube_0  kernel .4, 8, 8.* is .8, 4"):
        from_run(config, workdir)
    ours, report = from_run(config, workdir, fresh=("stem/tube_0", "stem/tube_1"))
    assert [*ours["stem"]] == ["tube_2"]
    jax.tree.map(
        np.testing.assert_array_equal, ours["stem"]["tube_2"], theirs["stem"]["tube_2"]
    )
    assert "stem/tube_2/kernel" in report.loaded


@pytest.mark.parametrize("how", ["repeat", "central_frame"])
def test_tubes_of_several_frames_are_inflated_from_a_run(run_of_three_tubes, how):
    workdir, theirs = run_of_three_tubes
    ours, report = from_run(video_config(), workdir, inflate=how)
    image = theirs["stem"]["tube_2"]
    for i, (frames, size) in enumerate(((4, 8), (3, 16))):
        tube = ours["stem"][f"tube_{i}"]
        patch = resizing.resize_patches(image["kernel"][0], (size, size))
        weights = {
            "repeat": np.full(frames, 1 / frames),
            "central_frame": np.eye(frames)[frames // 2],
        }[how]
        expected = weights[:, None, None, None, None] * patch
        np.testing.assert_allclose(tube["kernel"], expected, atol=1e-6)
        np.testing.assert_array_equal(tube["bias"], image["bias"])
        remark = report.resized[f"stem/tube_{i}/kernel"][1]
        assert remark == f"of stem/tube_2, {how}"
    jax.tree.map(np.testing.assert_array_equal, ours["stem"]["tube_2"], image)
    config = video_config()
    config.model.tubes[0]["space_to_depth"] = (2, 1, 1)
    with pytest.raises(WeightsDoNotMatch, match="a ViT's kernel makes whole tokens"):
        from_run(config, workdir, inflate=how)


def test_an_image_run_of_one_tube_is_inflated(tmp_path):
    config = video_config()
    config.clip.frames = 1
    config.model.tubes = (image_tube(16),)
    theirs = jax.device_get(save_run(config, {"a": ("x", "y")}, tmp_path))
    ours, report = from_run(video_config(), tmp_path, inflate="repeat")
    assert sorted(ours["stem"]) == ["tube_0", "tube_1", "tube_2"]
    for x in (
        ours["stem"]["tube_2"]["kernel"][0],
        ours["stem"]["tube_1"]["kernel"].sum(0),
    ):
        np.testing.assert_allclose(x, theirs["stem"]["tube_0"]["kernel"][0], atol=1e-6)
    assert not any(name.startswith("stem") for name in report.dropped)
