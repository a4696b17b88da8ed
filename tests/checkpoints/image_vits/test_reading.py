"""Features of image ViTs against those of transformers and timm.

The folders in golden/image_vits are made by golden/make.py, of every family and naming.
"""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sparse_tube_vit.checkpoints import image_vits
from sparse_tube_vit.checkpoints.image_vits import (
    UnreadableWeights,
    UnsupportedViT,
    families,
)
from sparse_tube_vit.checkpoints.image_vits.families import FAMILIES
from sparse_tube_vit.checkpoints.resizing import positions_at
from sparse_tube_vit.models.tubes import Tube
from tests.checkpoints.image_vits.models import (
    GOLDEN,
    config_of,
    copy,
    features,
    load,
)

#: Family that a folder is of, its tokens without a place, and their pooling.
FOLDERS = {
    "hugging_face_deit_distilled": ("distilled DeiT", 2, "class_token"),
    "hugging_face_mae": ("MAE", 1, "class_token"),
    "hugging_face_dino": ("ViT", 1, "class_token"),
    "hugging_face_dinov2": ("DINOv2", 1, "class_token"),
    "hugging_face_dinov2_registers": ("DINOv2 with registers", 3, "class_token"),
    "hugging_face_dinov2_gated": ("DINOv2", 1, "class_token"),
    "hugging_face_dinov2_registers_gated": ("DINOv2 with registers", 3, "class_token"),
    "hugging_face_clip": ("CLIP", 1, "class_token"),
    "hugging_face_siglip": ("SigLIP", 0, "map"),
    "timm_deit": ("ViT", 1, "class_token"),
    "timm_deit_distilled": ("distilled DeiT", 2, "class_token"),
    "timm_deit3": ("DINOv2 or DeiT-III", 1, "class_token"),
    "timm_dinov2": ("DINOv2 or DeiT-III", 1, "class_token"),
    "timm_dinov2_registers": ("DINOv2 or DeiT-III", 5, "class_token"),
    "timm_dinov2_gated": ("DINOv2", 1, "class_token"),
    "timm_clip": ("CLIP", 1, "class_token"),
    "timm_siglip": ("SigLIP", 0, "map"),
    "timm_average": ("ViT", 1, "mean"),
    "timm_without_biases": ("ViT", 1, "class_token"),
    "timm_eva": ("EVA", 1, "class_token"),
    "hugging_face_without_biases": ("ViT", 1, "class_token"),
    "big_vision.npz": ("ViT or SigLIP", 0, "map"),
}


@pytest.fixture(scope="module")
def references():
    return dict(np.load(GOLDEN / "references.npz"))


def expected(references, name, extra):
    name = name.removesuffix(".npz")
    pooled, tokens = (references[f"{name}/{x}"] for x in ("pooled", "tokens"))
    if name == "timm_deit_distilled":  # the mean of class and distillation token
        pooled = tokens[:, 0]
    return pooled, tokens[:, extra:]


@pytest.mark.parametrize("name", FOLDERS)
def test_features_equal_those_of_the_library(references, name):
    family, extra, pooling = FOLDERS[name]
    vit = image_vits.read(GOLDEN / name)
    assert vit.family.name == family and not vit.left_over
    assert vit.model["pooling"] == pooling
    ours = features(config_of(GOLDEN / name), references["images"])
    for x, theirs in zip(ours, expected(references, name, extra), strict=True):
        assert x.shape == theirs.shape and np.ptp(theirs) > 1
        np.testing.assert_allclose(x, theirs, atol=1e-4)


def test_videomae_reads_clips_with_its_tubes_of_two_frames(references):
    path = GOLDEN / "hugging_face_videomae"
    config = config_of(path, frames=4)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = (references["images"] / 255 - mean) / std
    dimmed = np.stack([x * b for b in (0.25, 0.5, 0.75, 1)], 1)  # as in make.py
    pooled, tokens = features(config, (2 * (dimmed * std + mean) - 1).astype("f4"))
    name = "hugging_face_videomae"
    np.testing.assert_allclose(tokens, references[f"{name}/tokens"], atol=1e-4)
    np.testing.assert_allclose(pooled, references[f"{name}/pooled"], atol=1e-4)
    _, _, report = load(config)
    assert {*report.new} == {"head_h/kernel", "head_h/bias"}
    for leaf, value in (("scale", 1), ("bias", 0)):  # its trunk ends without a norm
        remark = f"the file has none: {leaf} {value}"
        assert report.loaded[f"encoder/norm/{leaf}"] == ((16,), remark)
    # An image tube takes the sum over frames: a still clip's.
    config.model.tubes = (
        *config.model.tubes,
        {"kernel": (1, 8, 8), "stride": (4, 8, 8)},
    )
    _, params, _ = load(config)
    kernels = [params["stem"][f"tube_{i}"]["kernel"] for i in (0, 1)]
    np.testing.assert_allclose(kernels[0].sum(0), kernels[1][0], atol=1e-6)


def test_an_average_without_the_class_token_before_its_norm(references, tmp_path):
    """timm's norm comes after the mean, ours before it: the rest is the same."""
    path = GOLDEN / "timm_fc_norm"
    config = config_of(path)
    assert (config.model.pooling, config.model.registers) == ("mean", 1)
    pooled, tokens = features(config, references["images"])
    norm = load_file(path / "model.safetensors")
    x = references["timm_fc_norm/tokens"][:, 1:]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * norm["fc_norm.weight"] + norm["fc_norm.bias"]
    np.testing.assert_allclose(tokens, x, atol=1e-4)
    np.testing.assert_allclose(pooled, x.mean(1), atol=1e-4)
    # Without a config the norm tells.
    shutil.copy(path / "model.safetensors", tmp_path / "a.safetensors")
    model = image_vits.read(tmp_path / "a.safetensors").model
    assert (model["pooling"], model["registers"]) == ("mean", 1)


def same_arrays(a, b):
    assert a.arrays.keys() == b.arrays.keys() and not a.left_over
    jax.tree.map(np.testing.assert_array_equal, a.arrays, b.arrays)


@pytest.mark.parametrize(
    "name, renamed",
    [
        (
            name,
            (
                ("encoder.layer.", "encoder.layer." if "dinov2" in name else "layers."),
                ("attention.attention.query", "attention.q_proj"),
                ("attention.attention.key", "attention.k_proj"),
                ("attention.attention.value", "attention.v_proj"),
                ("attention.output.dense", "attention.o_proj"),
                ("intermediate.dense", "mlp.fc1"),
                ("output.dense", "mlp.fc2"),
                ("decoder_encoder.layers", "decoder_layers"),
                ("weights_out", "down_proj"),
            ),
        )
        for name in (
            "hugging_face_deit_distilled",
            "hugging_face_mae",
            "hugging_face_dino",
            "hugging_face_dinov2",
            "hugging_face_dinov2_registers",
            "hugging_face_dinov2_gated",
            "hugging_face_dinov2_registers_gated",
        )
    ]
    + [
        (
            "hugging_face_videomae",
            (("q_bias", "query.bias"), ("v_bias", "value.bias")),
        )
    ],
)
def test_names_of_modules_since_transformers_5(references, tmp_path, name, renamed):
    def rename(array):
        for old, new in renamed:
            array = array.replace(old, new)
        return array

    folder = copy(name, tmp_path / "vit", rename)
    arrays = load_file(folder / "model.safetensors")
    for fused in [n for n in arrays if "weights_in" in n]:
        halves = np.split(arrays.pop(fused), 2)
        for part, x in zip(("gate_proj", "up_proj"), halves, strict=True):
            arrays[fused.replace("weights_in", part)] = x
    save_file(arrays, folder / "model.safetensors")
    names = sorted(arrays)
    module_names = references[f"{name}/module_names"].tolist()
    if name != "hugging_face_mae":  # the decoder's are others again
        assert names == module_names
    assert {n for n in names if n.startswith("vit.")} <= {*module_names}
    same_arrays(image_vits.read(folder), image_vits.read(GOLDEN / name))


@pytest.mark.parametrize(
    "name, rename",
    [
        ("hugging_face_siglip", lambda n: f"vision_model.{n}"),
        ("hugging_face_clip", lambda n: n.removeprefix("vision_model.")),
        ("hugging_face_mae", lambda n: n.removeprefix("vit.")),
        ("hugging_face_mae", lambda n: f"model.{n}"),
        ("timm_dinov2", lambda n: f"module.{n}"),
        ("timm_dinov2", lambda n: f"timm_model.{n}"),  # transformers' TimmWrapper
        ("timm_clip", lambda n: f"_orig_mod.visual.trunk.{n}"),
        # A head may stand outside.
        ("timm_deit3", lambda n: n if n.startswith("head.") else f"backbone.{n}"),
    ],
)
def test_a_vit_as_a_part_and_alone(tmp_path, name, rename):
    folder = copy(name, tmp_path / "vit", rename)
    vit = image_vits.read(GOLDEN / name)
    same_arrays(image_vits.read(folder), vit)
    (folder / "model.safetensors").rename(tmp_path / "alone.safetensors")
    assert image_vits.read(tmp_path / "alone.safetensors").family == vit.family


def test_parts_of_a_larger_model_are_dropped_and_said(tmp_path):
    arrays = load_file(GOLDEN / "timm_deit3" / "model.safetensors")
    alone = {n: x for n, x in arrays.items() if not n.startswith("head.")}
    whole = {f"teacher.backbone.{n}": x for n, x in alone.items()}
    others = {"teacher.head.mlp.0.weight": 2, "norm.weight": 16, "cls_token": 16}
    whole |= {n: np.ones(size, np.float32) for n, size in others.items()}
    save_file(whole, tmp_path / "whole.safetensors")
    save_file(alone, tmp_path / "alone.safetensors")
    vit = image_vits.read(tmp_path / "whole.safetensors")
    same_arrays(vit, image_vits.read(tmp_path / "alone.safetensors"))
    why = "is no part of the ViT in 'teacher.backbone.'"
    assert vit.dropped == {n: ((size,), why) for n, size in others.items()}
    # Without a prefix nothing is outside.
    save_file(alone | {"neck.weight": np.ones(2)}, tmp_path / "alone.safetensors")
    assert image_vits.read(tmp_path / "alone.safetensors").left_over == {
        "neck.weight": (2,)
    }


def test_the_config_of_a_part_tells_its_options(tmp_path):
    """As in Depth Anything, whose backbone is a DINOv2."""
    theirs = GOLDEN / "hugging_face_dinov2"
    folder = copy(theirs.name, tmp_path / "vit", lambda n: f"backbone.{n}")
    backbone = json.loads((theirs / "config.json").read_text())
    for model_type, part in (
        ("depth_anything", "backbone_config"),
        ("vision-encoder-decoder", "encoder"),
    ):
        config = {"model_type": model_type, part: backbone}
        (folder / "config.json").write_text(json.dumps(config))
        vit = image_vits.read(folder)
        same_arrays(vit, image_vits.read(theirs))
        assert vit.model["heads"] == 2 and "heads" in vit.known


def test_several_vits_in_a_file_are_an_error_that_keeps_one(tmp_path, monkeypatch):
    arrays = load_file(GOLDEN / "timm_dinov2" / "model.safetensors")
    arrays = {f"{w}.{n}": x for n, x in arrays.items() for w in ("student", "teacher")}
    monkeypatch.chdir(tmp_path)
    index = tmp_path / "vit" / "model.safetensors.index.json"
    index.parent.mkdir()
    shards = {}
    for i in range(2):
        name = f"model-{i}.safetensors"
        shard = {k: x for j, (k, x) in enumerate(arrays.items()) if j % 2 == i}
        save_file(shard, index.with_name(name))
        shards |= dict.fromkeys(shard, name)
    index.write_text(json.dumps({"weight_map": shards}))
    save_file(arrays, tmp_path / "both.safetensors")
    np.savez(tmp_path / "both.npz", **arrays)
    for path in ("vit", "both.safetensors", "both.npz"):
        with pytest.raises(UnreadableWeights, match="holds 2 ViTs") as error:
            image_vits.read(tmp_path / path)
        lines = str(error.value).splitlines()[1:]
        exec("\n".join(line.removeprefix("  ") for line in lines), {})
        (one,) = tmp_path.glob("one.*")
        same_arrays(image_vits.read(one), image_vits.read(GOLDEN / "timm_dinov2"))
        one.unlink()


def test_what_is_beside_a_vit_does_not_refuse_it_or_tell_its_family(tmp_path):
    vit = load_file(GOLDEN / "hugging_face_siglip" / "model.safetensors")
    for name in (
        "language_model.layers.0.self_attn.k_norm.weight",
        "rotary_emb.inv_freq",
        "text.transformer.resblocks.0.ln_1.weight",
        "aux.patch_embed.proj.weight",
    ):
        beside = {name: np.ones((16, 3, 8, 8), np.float32)}
        file = {f"vision_tower.{n}": x for n, x in vit.items()} | beside
        save_file(file, tmp_path / "vit.safetensors")
        read = image_vits.read(tmp_path / "vit.safetensors")
        assert read.family.name == "SigLIP" and not read.left_over
        assert [*read.dropped] == [name]
        _, why = read.dropped[name]
        assert name.startswith("language") == ("language model" in why)


@pytest.mark.parametrize(
    "name, prefix, beside, family, kind",
    [
        ("timm_deit", "", ("mask_token", "decoder_embed.weight"), "MAE", "imagenet"),
        ("timm_deit", "module.", ("module.decoder_embed.bias",), "MAE", "imagenet"),
        ("hugging_face_dino", "encoder.", ("decoder.conv.weight",), "ViT", "half"),
        ("timm_eva", "visual.", (), "EVA", "clip"),
    ],
)
def test_the_family_of_a_file_alone_tells_its_normalization(
    tmp_path, name, prefix, beside, family, kind
):
    arrays = load_file(GOLDEN / name / "model.safetensors")
    file = {f"{prefix}{n}": x for n, x in arrays.items()}
    file |= {n: np.ones(2, np.float32) for n in beside}
    save_file(file, tmp_path / "vit.safetensors")
    vit = image_vits.read(tmp_path / "vit.safetensors")
    assert vit.family.name == family and not vit.left_over
    assert str(vit.normalization).startswith(f"{kind} (")


@pytest.mark.parametrize(
    "name, why",
    [
        (
            "blocks.0.attn.qkv.lora_A.default.weight",
            r"adapter \(LoRA\).*merge_and_unload",
        ),
        ("base_model.model.blocks.0.attn.qkv.base_layer.weight", "merge_and_unload"),
        ("blocks.0.mlp.fc1.SCB", "is quantized. Take the weights in float32"),
        ("encoder.layers.encoder_layer_0.self_attention.in_proj_bias", "torchvision's"),
    ],
)
def test_adapters_and_quantized_weights_are_refused(tmp_path, name, why):
    arrays = load_file(GOLDEN / "timm_deit" / "model.safetensors")
    altered = {name: np.ones((8, 16), np.float32)}
    for file in (altered, arrays | altered):
        if "torchvision" in why and len(file) > 1:
            continue
        save_file(file, tmp_path / "vit.safetensors")
        with pytest.raises(ValueError, match=why):
            image_vits.read(tmp_path / "vit.safetensors")


def test_pooling_that_this_model_has_not_is_warned_of(tmp_path):
    for key, value, why in (
        ("global_pool", "avgmax", "there global_pool is 'avgmax'"),
        ("pool_include_prefix", True, "there the class token is a part of the mean"),
    ):
        folder = copy("timm_deit", tmp_path / key, **{key: value})
        assert image_vits.read(folder).why_pooled_differs == why
    assert not image_vits.read(GOLDEN / "timm_deit").why_pooled_differs


def test_stacked_blocks_of_big_vision_and_its_bfloat16(tmp_path):
    arrays = dict(np.load(GOLDEN / "big_vision.npz"))
    stacked = {k: x for k, x in arrays.items() if "encoderblock" not in k}
    for name in [k for k in arrays if "encoderblock_0/" in k]:
        both = [arrays[name.replace("_0/", f"_{i}/", 1)] for i in (0, 1)]
        stacked[name.replace("encoderblock_0/", "encoderblock/")] = np.stack(both)
    stacked = {k.removeprefix("params/img/"): x for k, x in stacked.items()}
    stacked["params/txt/head/kernel"] = np.ones(3)
    np.savez(tmp_path / "stacked.npz", **stacked)
    vit = image_vits.read(tmp_path / "stacked.npz")
    same_arrays(vit, image_vits.read(GOLDEN / "big_vision.npz"))
    assert vit.dropped == {"params/txt/head/kernel": ((3,), "of the text encoder")}
    # numpy writes bfloat16 as two bytes without a name.
    rounded = {k: x.astype("bfloat16").view("V2") for k, x in arrays.items()}
    np.savez(tmp_path / "bfloat16.npz", **rounded)
    read = image_vits.read(tmp_path / "bfloat16.npz").arrays["patch/kernel"]
    kernel = arrays["params/img/embedding/kernel"].astype("bfloat16")
    np.testing.assert_array_equal(read, kernel.astype(np.float32))


def test_attention_pooling_takes_siglips_probe_without_its_mlp():
    config = config_of(GOLDEN / "hugging_face_siglip", pooling="attention")
    _, params, report = load(config)
    config.model.pooling = "map"
    _, whole, _ = load(config)
    assert {*params["pooling"]} == {"probe", "attention"}
    jax.tree.map(
        np.testing.assert_array_equal,
        params["pooling"],
        {k: whole["pooling"][k] for k in ("probe", "attention")},
    )
    assert report.dropped["head.mlp.fc1.weight"][1].endswith("has no MLP; 'map' has")


def test_what_has_no_part_is_dropped_and_said():
    for name, theirs, why in (
        ("hugging_face_mae", "decoder.decoder_norm.weight", "of the decoder"),
        ("hugging_face_clip", "text_model.final_layer_norm.bias", "of the text enc"),
        ("hugging_face_dinov2", "classifier.weight", "reads class token and mean"),
        ("timm_deit_distilled", "head_dist.weight", "of the distillation token"),
    ):
        vit = image_vits.read(GOLDEN / name)
        assert why in vit.dropped[theirs][1]
    _, _, report = load(config_of(GOLDEN / "timm_without_biases"))
    for leaf in ("kernel", "bias"):
        _, remark = report.loaded[f"encoder/block_1/attention/key/{leaf}"]
        assert remark == ("the file has none: zeros" if leaf == "bias" else "")
    _, _, report = load(config_of(GOLDEN / "timm_average"))
    assert report.loaded["registers"] == ((1, 1, 16), "cls_token")
    _, _, report = load(config_of(GOLDEN / "timm_dinov2_registers", registers=0))
    assert report.dropped["reg_token"] == ((1, 4, 16), "model.registers is 0")


def test_heads_epsilon_and_gelu_are_the_configs(tmp_path):
    for changes in (
        {"num_attention_heads": 4, "layer_norm_eps": 0.1},
        {"hidden_act": "gelu_new"},
    ):
        folder = copy("hugging_face_dino", tmp_path / "-".join(changes), **changes)
        model = image_vits.read(folder).model
        ours = {"num_attention_heads": "heads", "layer_norm_eps": "norm_epsilon"}
        for key, value in changes.items():
            assert model[ours.get(key, "gelu")] in (value, "tanh")
    assert image_vits.read(GOLDEN / "timm_clip").model["gelu"] == "quick"
    siglip2 = {"architecture": "vit_so400m_patch16_siglip_256"}
    folder = copy("timm_siglip", tmp_path / "siglip2", **siglip2)
    assert image_vits.read(folder).model["gelu"] == "tanh"
    # Without a config heads are width / 64, but for a few widths.
    save_file(load_file(folder / "model.safetensors"), tmp_path / "alone.safetensors")
    vit = image_vits.read(tmp_path / "alone.safetensors")
    assert vit.model["heads"] == 1 and "heads" not in vit.known
    config = config_of(tmp_path / "alone.safetensors")
    notes = load(config)[2].notes
    assert "model.heads is 1; a file does not tell them" in notes
    with pytest.raises(UnsupportedViT, match="hidden_act 'relu'"):
        image_vits.read(copy("hugging_face_dino", tmp_path / "relu", hidden_act="relu"))


@pytest.mark.parametrize("name, heads", [("siglip", 16), ("dinov2_gated", 24)])
def test_heads_of_two_giants_of_one_width(tmp_path, name, heads):
    wide = {16: 1536, 32: 2 * 1536, 48: 3 * 1536}
    arrays = load_file(GOLDEN / f"timm_{name}" / "model.safetensors")
    arrays = {
        name: np.zeros([wide.get(n, n) for n in x.shape], np.float16)
        for name, x in arrays.items()
    }
    save_file(arrays, tmp_path / "giant.safetensors")
    model = image_vits.read(tmp_path / "giant.safetensors").model
    assert (model["width"], model["heads"]) == (1536, heads)


def test_heads_of_all_of_timms_vits(references):
    # Refused, as norms or their biases are missing, or for what it pools.
    others = {"test_vit4", "vit_giant_patch16_radio_v3", "test_vit3"}
    for architecture, width, gated, heads in references["heads"]:
        if architecture in others:
            continue
        sizes = int(width), gated == "True"
        assert families.heads_of(*sizes, architecture) == int(heads), architecture
        assert architecture in families.HEADS or sizes[0] in families.WIDTHS


def test_an_architecture_tells_heads_and_a_guess_is_a_warning(tmp_path, caplog):
    folder = copy("timm_deit", tmp_path / "vit")
    config = {"architecture": "test_vit"}
    (folder / "config.json").write_text(json.dumps(config))
    vit = image_vits.read(folder)
    assert vit.model["heads"] == 2 and "heads" in vit.known
    load(config_of(folder))
    assert not caplog.messages
    (folder / "config.json").unlink()
    load(config_of(folder / "model.safetensors"))
    (message,) = caplog.messages
    assert "1 heads are a guess" in message and '{"num_attention_heads": N}' in message
    assert 'Add theirs, "num_attention_heads": N, to the config.json beside' in message
    wide = load_file(GOLDEN / "timm_deit3" / "model.safetensors")
    wide = {f"module.momentum_encoder.{n}": x for n, x in wide.items()}
    save_file(wide, tmp_path / "moco.safetensors")
    assert image_vits.read(tmp_path / "moco.safetensors").why_heads_guessed.startswith(
        "MoCo"
    )
    (folder / "config.json").write_text('{"num_attention_heads": 2}')
    assert image_vits.read(folder / "model.safetensors").model["heads"] == 2


def test_the_gelu_of_timm_is_that_of_its_config_or_a_note(tmp_path):
    args = {"model_args": {"act_layer": "gelu_tanh"}}
    vit = image_vits.read(copy("timm_deit", tmp_path / "vit", **args))
    assert vit.model["gelu"] == "tanh" and "gelu" in vit.known
    shutil.copy(GOLDEN / "timm_clip" / "model.safetensors", tmp_path / "a.safetensors")
    for path, noted in ((tmp_path / "a.safetensors", True), (GOLDEN / "timm_clip", 0)):
        note = "model.gelu is 'erf'; a file does not tell it, and models of CLIP differ"
        assert (note in load(config_of(path))[2].notes) == noted
    args["model_args"]["act_layer"] = "silu"
    with pytest.raises(UnsupportedViT, match="act_layer 'silu'; the model has gelu"):
        image_vits.read(copy("timm_deit", tmp_path / "other", **args))


def test_blocks_in_a_row_are_read_where_parallel_ones_are_not(tmp_path):
    config = {"architecture": "vit_small_patch16_36x1_224"}  # DeiT-III's names
    folder = copy("timm_deit3", tmp_path / "vit", **config)
    same_arrays(image_vits.read(folder), image_vits.read(GOLDEN / "timm_deit3"))


@pytest.mark.parametrize(
    "size",
    [
        {"image_size": [16, 64]},
        {"image_size": {"height": 16, "width": 64}},
        {"pretrained_cfg": {"input_size": [3, 16, 64]}},
        {"model_args": {"img_size": [16, 64]}},
    ],
)
def test_as_many_positions_as_a_square_has_may_be_an_oblongs(tmp_path, size):
    arrays = load_file(GOLDEN / "timm_deit" / "model.safetensors")
    arrays["pos_embed"] = np.zeros((1, 1 + 2 * 8, 16), np.float32)
    save_file(arrays, tmp_path / "vit.safetensors")
    assert image_vits.read(tmp_path / "vit.safetensors").arrays["positions"].ndim == 3
    (tmp_path / "config.json").write_text(json.dumps(size))
    config = config_of(tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match="pos_embed .*no square grid of patches"):
        load(config)


def test_sizes_as_lists(tmp_path):
    name = "hugging_face_videomae"
    lists = {"image_size": [24, 24], "patch_size": [8, 8]}
    vit, listed = (
        image_vits.read(path)
        for path in (GOLDEN / name, copy(name, tmp_path / "vit", **lists))
    )
    same_arrays(listed, vit)
    assert listed.size == vit.size == 24


@pytest.mark.parametrize("channels", [1, 13])
def test_images_of_other_channels_are_refused(tmp_path, channels):
    arrays = load_file(GOLDEN / "hugging_face_dino" / "model.safetensors")
    kernel = "embeddings.patch_embeddings.projection.weight"
    arrays[kernel] = np.ones((16, channels, 8, 8), np.float32)
    save_file(arrays, tmp_path / "vit.safetensors")
    statistics = {"image_mean": [0.1] * channels, "image_std": [0.3] * channels}
    preprocessor = tmp_path / "preprocessor_config.json"
    preprocessor.write_text(json.dumps(statistics))
    with pytest.raises(UnsupportedViT, match=f"{channels}-channel images, .*{kernel}"):
        image_vits.read(tmp_path / "vit.safetensors")


@pytest.mark.parametrize(
    "name, gelu, epsilon, normalization",
    [
        ("hugging_face_deit_distilled", "erf", 1e-12, "imagenet"),
        ("hugging_face_mae", "erf", 1e-12, "imagenet"),
        ("hugging_face_dino", "erf", 1e-12, "half"),
        ("hugging_face_dinov2_registers", "erf", 1e-6, "imagenet"),
        ("hugging_face_dinov2_gated", None, 1e-6, "imagenet"),
        ("hugging_face_dinov2_registers_gated", None, 1e-6, "imagenet"),
        ("timm_dinov2_gated", None, 1e-6, "imagenet"),
        ("hugging_face_clip", "quick", 1e-5, "clip"),
        ("hugging_face_siglip", "tanh", 1e-6, "half"),
        ("hugging_face_videomae", "erf", 1e-12, "imagenet"),
        ("timm_deit", "erf", 1e-6, "half"),
        ("timm_deit_distilled", "erf", 1e-6, "imagenet"),
        ("timm_deit3", "erf", 1e-6, "imagenet"),
        ("timm_clip", "erf", 1e-5, "clip"),
        ("timm_siglip", "erf", 1e-6, "half"),
    ],
)
def test_a_file_alone_has_its_familys_options(
    tmp_path, name, gelu, epsilon, normalization
):
    shutil.copy(GOLDEN / name / "model.safetensors", tmp_path / "a.safetensors")
    vit = image_vits.read(tmp_path / "a.safetensors")
    assert not vit.left_over and vit.family == image_vits.read(GOLDEN / name).family
    assert (vit.model.get("gelu"), vit.model["norm_epsilon"]) == (gelu, epsilon)
    assert str(vit.normalization).startswith(f"{normalization} (")


@pytest.mark.parametrize(
    "model_type, name, epsilon",
    [("vit_msn", "MSN", 1e-6), ("ijepa", "I-JEPA", 1e-12), ("vit", "ViT", 1e-12)],
)
def test_a_config_tells_models_that_have_vits_names(
    tmp_path, model_type, name, epsilon
):
    file = tmp_path / "a.safetensors"
    shutil.copy(GOLDEN / "hugging_face_dino" / "model.safetensors", file)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    vit = image_vits.read(file)
    assert (vit.family.name, vit.model["norm_epsilon"]) == (name, epsilon)
    kind = "half" if name == "ViT" else "imagenet"
    assert str(vit.normalization).startswith(f"{kind} (")


@pytest.mark.parametrize(
    "name, how",
    [("hugging_face_dino", "cubic"), ("timm_deit", "smoothed_cubic")],
)
def test_positions_of_plain_vits_are_resized_as_their_libraries_do(
    references, tmp_path, name, how
):
    grid = references["positions/old"][0].reshape(3, -1).T  # (25, 3)
    arrays = load_file(GOLDEN / name / "model.safetensors")
    key = next(k for k in arrays if "pos" in k)
    padded = np.pad(grid, [(1, 0), (0, 13)])[None]
    arrays[key] = np.ascontiguousarray(padded)
    save_file(arrays, tmp_path / "vit.safetensors")
    vit = image_vits.read(tmp_path / "vit.safetensors")
    for side in (3, 7):
        tube, clip = Tube((1, 4, 4), (1, 4, 4)), (1, 4 * side, 4 * side)
        at = positions_at(vit.arrays["positions"], tube, clip, vit.family.interpolation)
        expected = references[f"positions/{how}/{side}"][0].transpose(1, 2, 0)
        np.testing.assert_allclose(at[0, ..., :3], expected, atol=1e-5)


def test_gated_mlps_of_an_unknown_family_are_an_error(tmp_path):
    folder = copy("timm_dinov2_gated", tmp_path / "vit")
    arrays = load_file(folder / "model.safetensors")
    plain = {name: x for name, x in arrays.items() if ".ls" not in name}
    save_file(plain, folder / "model.safetensors")
    with pytest.raises(UnreadableWeights, match="is not a ViT by names"):
        image_vits.read(folder)


def test_wrong_sizes_are_an_error_that_gives_them():
    config = config_of(GOLDEN / "hugging_face_dino", heads=4, depth=3)
    with pytest.raises(ValueError, match="model.heads  2 is 4 here") as error:
        load(config)
    assert str(error.value).endswith(
        "Set config.model to these sizes (depth=2, heads=2), or choose other "
        "init.weights."
    )
    for name, key in (("clip", "pre_norm"), ("dinov2_gated", "gated_mlp")):
        config = config_of(GOLDEN / f"hugging_face_{name}", **{key: False})
        with pytest.raises(ValueError, match=f"these sizes .{key}=True"):
            load(config)
    config = config_of(GOLDEN / "timm_average", pooling="class_token")
    with pytest.raises(ValueError, match="not there; set model.pooling=mean"):
        load(config)
    config = config_of(GOLDEN / "hugging_face_dino")
    config.model.tubes = ({"kernel": (4, 8, 8), "stride": (4, 8, 8)},)
    config.clip.frames = 4
    with pytest.raises(ValueError, match="no tube takes it") as error:
        load(config)
    assert "sizes" not in str(error.value)


@pytest.mark.parametrize(
    "arrays, config, why",
    [
        ({"blocks.0.attn.rope.freqs": 1}, {}, "rotary positions .* Take DINOv2"),
        ({"layer.0.attention.q_proj.weight": 1}, {}, "rotary"),
        ({}, {"model_type": "dinov3_vit"}, r"dinov3_vit\) has rotary"),
        ({}, {"architecture": "vit_small_patch16_dinov3"}, "rotary"),
        ({"a.relative_position_bias_table": 1}, {}, "relative positions"),
        ({"blocks.0.mlp.w12.weight": 1}, {}, "Meta's .* hf://facebook/dinov2-giant"),
        ({"visual.transformer.resblocks.0.ln_1.bias": 1}, {}, "OpenCLIP's .* hf://op"),
        ({"blocks.0.mlp.fc1_g.weight": 1}, {}, "no plain ViT"),
        ({"blocks.0.attn.q_norm.weight": 1}, {}, "no plain ViT"),
        ({"patch_embed.backbone.stem.conv.weight": 1}, {}, "no plain ViT"),
        ({}, {"architecture": "vit_small_patch16_18x2_224"}, "no plain ViT"),
        ({}, {"model_type": "convnextv2"}, "no plain ViT"),
        ({}, {"model_type": "vivit"}, "a model of clips"),
        ({"vivit.embeddings.cls_token": 1}, {}, r"ViViT.* hf://MCG-NJU/videomae-base"),
        ({}, {"architecture": "vit_pe_spatial_base_patch16_512"}, "Perception Enc"),
        ({}, {"architecture": "beit3_base_patch16_224"}, "no plain ViT"),
        ({}, {"architecture": "test_vit3"}, "pools its register"),
        ({}, {"model_type": "vjepa2"}, "rotary positions .*V-JEPA 2"),
        ({}, {"model_type": "timesformer"}, "no plain ViT"),
        ({"vit.embeddings.detection_tokens": 1}, {}, "no plain ViT"),
        ({"vision_model.pre_layernorm.bias": 1}, {}, "no plain ViT"),
        ({"timesformer.encoder.layer.0.temporal_attention.x": 1}, {}, "no plain ViT"),
    ],
)
def test_what_cannot_be_computed_is_refused_with_a_reason(
    tmp_path, arrays, config, why
):
    arrays = {k: np.ones(2, np.float32) for k in arrays} or {"x": np.ones(2)}
    save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "any"} | config))
    with pytest.raises(UnsupportedViT, match=why):
        image_vits.read(tmp_path)


@pytest.mark.parametrize(
    "architecture, why",
    [
        (
            "vit_pe_core_tiny_patch16_384",
            r"norm_pre.* and attn_pool.latent. .* Perception Enc",
        ),
        ("vit_small_patch16_rope_mixed_224", "rope.freqs. has rotary positions"),
        ("vit_tiny_patch16_dinov3_qkvb", r"gamma_1. scales its layers .* \(DINOv3\)"),
        ("cait_xxs24_224", "gamma_1. scales its layers .* CaiT"),
        ("beit_base_patch16_224", r"adds a bias of relative positions .* \(BEiT"),
        ("hiera_tiny_224", r"blocks.1.proj.* is no plain ViT"),
        ("vit_dwee_patch16_reg1_gap_256", r"attn.lambda_.* is no plain ViT"),
        ("beit3_base_patch16_224", r"attn.norm.* is no plain ViT"),
    ],
)
def test_timms_names_of_such_models_are_refused_without_a_config(
    references, tmp_path, architecture, why
):
    names = references[f"refused/{architecture}"]
    arrays = {n: np.ones((12, 1), np.float32) for n in names}
    save_file(arrays, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedViT, match=why):
        image_vits.read(tmp_path / "model.safetensors")


def test_vivits_names_are_those_of_videomae_with_tokens_of_its_own(tmp_path):
    arrays = load_file(GOLDEN / "hugging_face_videomae" / "model.safetensors")
    for name, tokens in (("cls_token", 1), ("position_embeddings", 19)):
        token = {f"embeddings.{name}": np.ones((1, tokens, 16), np.float16)}
        save_file(arrays | token, tmp_path / "vivit.safetensors")
        with pytest.raises(UnsupportedViT, match=rf"has embeddings.{name}. .*ViViT"):
            image_vits.read(tmp_path / "vivit.safetensors")


def test_names_of_no_family_are_an_error_that_lists_them(tmp_path):
    save_file({"a": np.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(
        UnreadableWeights, match="is not a ViT .* arrays, as a"
    ) as error:
        image_vits.read(tmp_path)
    assert all(family.name in str(error.value) for family in FAMILIES)


DINOV2 = GOLDEN.parents[3] / "shared" / "data" / "dinov2_small"


@pytest.mark.skipif(not DINOV2.is_dir(), reason="the weights are not here")
def test_a_real_dinov2_gives_its_tokens():
    """float16 weights in float32; positions are resized from 37x37 to 16x16."""
    reference = np.load(DINOV2 / "reference.npz")
    config = config_of(DINOV2, size=224)
    pooled, tokens = features(config, reference["image"][None])
    error = np.abs(np.concatenate([pooled, tokens[0]]) - reference["tokens"])
    assert error.max() < 0.02, error.max()
