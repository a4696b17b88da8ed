"""Image ViTs' weights against what timm and transformers compute with them.

The files in golden/ are made by golden/make.py.
"""

import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sparse_tube_vit.checkpoints import image_vits, pretrained
from sparse_tube_vit.checkpoints.image_vits import UnreadableWeights
from sparse_tube_vit.checkpoints.pretrained import WeightsDoNotMatch
from sparse_tube_vit.checkpoints.step import ForeignCheckpoint
from sparse_tube_vit.config import default_config
from sparse_tube_vit.models.tubevit import make_model, param_shapes
from tests.checkpoints.pretrained.models import GOLDEN, VIT, image_tube, video_config


@pytest.fixture(scope="module")
def references():
    return np.load(GOLDEN / "references.npz")


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
    return model, param_shapes(model)


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
