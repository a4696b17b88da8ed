import json
import re
import shutil
import textwrap

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sparse_tube_vit.checkpoints import image_vits, stored
from sparse_tube_vit.checkpoints.image_vits import UnreadableWeights
from sparse_tube_vit.checkpoints.step import DamagedCheckpoint
from sparse_tube_vit.config import InvalidConfig
from tests import hub as stand_in
from tests.checkpoints.image_vits.models import GOLDEN, config_of, load

VIT = GOLDEN / "hugging_face_dinov2"


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a.arrays, b.arrays)
    assert a.model == b.model and a.normalization == b.normalization


def test_a_file_is_read_with_the_configs_beside_it():
    same(image_vits.read(VIT / "model.safetensors"), image_vits.read(VIT))


def test_nulls_are_as_what_is_not_there(tmp_path):
    shutil.copytree(VIT, tmp_path / "vit")
    for name, keys in (
        ("config.json", ("vision_config", "model_args", "pretrained_cfg")),
        ("preprocessor_config.json", ("rescale_factor", "do_rescale", "crop_size")),
    ):
        content = json.loads((VIT / name).read_text()) | dict.fromkeys(keys)
        (tmp_path / "vit" / name).write_text(json.dumps(content))
    same(image_vits.read(tmp_path / "vit"), image_vits.read(VIT))


def test_a_config_of_other_weights_is_named(tmp_path):
    shutil.copytree(VIT, tmp_path / "vit")
    file = tmp_path / "vit" / "config.json"
    for changes, sizes in (
        (
            {"hidden_size": 768, "num_hidden_layers": 12, "patch_size": [14, 14]},
            "hidden_size is 768 there, 16 in the weights; num_hidden_layers is 12 .*; "
            r"patch_size is \[14, 14\] there, 8 in the weights. .* folder of their own",
        ),
        ({"vision_config": {"hidden_size": 32}}, "hidden_size is 32 there"),
        (
            {"model_args": {"embed_dim": 32}, "depth": 3},
            "embed_dim is 32 .*; depth is 3",
        ),
    ):
        config = json.loads((VIT / "config.json").read_text()) | changes
        file.write_text(json.dumps(config))
        with pytest.raises(UnreadableWeights, match=f"{file} is of other .*: {sizes}"):
            image_vits.read(tmp_path / "vit")


def test_shards_and_their_index(tmp_path):
    shutil.copytree(VIT, tmp_path / "vit")
    (tmp_path / "vit" / "model.safetensors").unlink()
    arrays = load_file(VIT / "model.safetensors")
    parts = [{}, {}]
    for i, name in enumerate(arrays):
        parts[i % 2][name] = arrays[name]
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, tmp_path / "vit" / name)
    weight_map = {k: names[i] for i, part in enumerate(parts) for k in part}
    index = tmp_path / "vit" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    for path in (tmp_path / "vit", index):
        assert image_vits.holds_image_vit(path)
        same(image_vits.read(path), image_vits.read(VIT))
    (tmp_path / "vit" / names[1]).unlink()
    with pytest.raises(UnreadableWeights, match="cannot be read: .*00002-of-00002"):
        image_vits.read(tmp_path / "vit")


def test_a_folder_of_the_hub(monkeypatch, tmp_path):
    with stand_in.running(monkeypatch, tmp_path / "cache") as server:
        server.repositories["me/vit"] = {p.name: p.read_bytes() for p in VIT.iterdir()}
        for path in ("hf://me/vit", "hf://me/vit/model.safetensors"):
            assert image_vits.holds_image_vit(path)
            same(image_vits.read(path), image_vits.read(VIT))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "vit.pth", "vit.pt"])
def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    for path in (tmp_path, tmp_path / name):
        assert image_vits.holds_image_vit(path)
        with pytest.raises(UnreadableWeights, match="is a pickle") as error:
            image_vits.read(path)
    assert "weights = torch.load" in str(error.value)
    assert f"{name.split('.')[0]}.safetensors" in str(error.value)


def test_the_lines_that_convert_pickles_take_shards_and_nested_tensors(tmp_path):
    with pytest.raises(UnreadableWeights, match=r"vit.pth does not exist"):
        image_vits.read(tmp_path / "vit.pth")
    for i in (1, 2):
        (tmp_path / f"pytorch_model-0000{i}-of-00002.bin").touch()
    with pytest.raises(UnreadableWeights, match="is a pickle") as error:
        image_vits.read(tmp_path)
    lines = str(error.value).partition("installed:\n")[2]
    compile(textwrap.dedent(lines), "lines", "exec")
    for text in (
        "glob('pytorch_model-*-of-00002.bin')",
        "'model_state_dict', 'model', 'teacher', 'student'",
        "if torch.is_tensor(x)}, 'pytorch_model.safetensors')",
    ):
        assert text in lines


@pytest.mark.parametrize(
    "content, why",
    [
        (b"", "it is empty. Download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html>", "web page"),
        (b"cut", "cut short: download it again"),
        (None, "cut short: download it again"),
    ],
)
@pytest.mark.parametrize("name", ["vit.safetensors", "vit.npz"])
def test_files_that_are_not_what_they_should_be_are_named(tmp_path, name, content, why):
    whole = VIT / "model.safetensors"
    if name.endswith("npz"):
        whole = GOLDEN.parent / "augreg.npz"
    content = whole.read_bytes()[:-100] if content is None else content
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableWeights, match=f"{name} cannot be read: .*{why}"):
        image_vits.read(tmp_path / name)


@pytest.mark.parametrize(
    "key, value",
    [
        ("hidden_act", ["gelu"]),
        ("num_attention_heads", "2"),
        ("layer_norm_eps", "1e-6"),
        ("pretrained_cfg", "vit"),
        ("vision_config", {"num_attention_heads": True}),
    ],
)
def test_what_a_config_has_of_another_type_is_named(tmp_path, key, value):
    shutil.copytree(VIT, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    key, value = [*value.items()][0] if isinstance(value, dict) else (key, value)
    said = rf"config.json cannot be read: its {key} is {re.escape(repr(value))}"
    with pytest.raises(UnreadableWeights, match=said):
        image_vits.read(tmp_path)


def test_classes_may_have_names_of_keys(tmp_path):
    shutil.copytree(VIT, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "config.json"
    names = {"architecture": 0, "hidden_act": 1, "model_args": 2}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"label2id": names}))
    assert image_vits.read(tmp_path).arrays.keys() == image_vits.read(VIT).arrays.keys()


def test_shards_without_their_index_are_named(tmp_path):
    for i in (1, 2):
        shutil.copy(
            VIT / "model.safetensors", tmp_path / f"model-0000{i}-of-00002.safetensors"
        )
    for path in (tmp_path, tmp_path / "model-00002-of-00002.safetensors"):
        with pytest.raises(UnreadableWeights, match="a part of the weights: .*index"):
            image_vits.read(path)


def test_what_the_hub_has_of_others_is_downloaded_to_be_converted(
    monkeypatch, tmp_path
):
    with stand_in.running(monkeypatch, tmp_path / "cache") as server:
        server.repositories["me/old"] = {"flax_model.msgpack": b""}
        server.repositories["me/torch"] = {"pytorch_model.bin": b""}
        with pytest.raises(UnreadableWeights, match="hf download me/old .*; cd old\n"):
            image_vits.read("hf://me/old")
        with pytest.raises(UnreadableWeights, match="hf download me/torch ") as error:
            image_vits.read("hf://me/torch")
    assert "torch.load('pytorch_model.bin'" in str(error.value)


@pytest.mark.parametrize("kind, option", [("msgpack", "from_flax"), ("h5", "from_tf")])
def test_other_libraries_weights_are_refused_with_the_way_to_convert_them(
    tmp_path, kind, option
):
    (tmp_path / f"model.{kind}").touch()
    for path in (tmp_path, tmp_path / f"model.{kind}"):
        assert image_vits.holds_image_vit(path)
        with pytest.raises(UnreadableWeights, match=f"{option}=True"):
            image_vits.read(path)


def test_releases_and_runs_are_told_apart(tmp_path):
    assert not image_vits.holds_image_vit("demo")
    assert not image_vits.holds_image_vit(tmp_path / "nothing")
    (tmp_path / "checkpoints").mkdir()
    assert not image_vits.holds_image_vit(tmp_path)
    (tmp_path / "features.npz").touch()  # a run may hold what commands write
    assert not image_vits.holds_image_vit(tmp_path)
    (tmp_path / "checkpoints").rmdir()
    assert image_vits.holds_image_vit(tmp_path)
    # A release without its config is a damaged one, as before.
    shutil.copy(stored.DEMO / "model.safetensors", tmp_path)
    assert not image_vits.holds_image_vit(tmp_path)
    with pytest.raises(DamagedCheckpoint, match="config.json is gone .*file itself"):
        stored.read(tmp_path)
    with pytest.raises(UnreadableWeights, match="part of the release .* give the fold"):
        image_vits.read(stored.DEMO / "model.safetensors")


def test_a_folder_of_an_image_vit_without_a_config_or_with_the_heads_alone(tmp_path):
    arrays = VIT / "model.safetensors"
    shutil.copy(arrays, tmp_path)
    for config in ("", '{"num_attention_heads": 2}'):
        if config:
            (tmp_path / "config.json").write_text(config)
        assert image_vits.holds_image_vit(tmp_path)
        assert image_vits.read(tmp_path).model["depth"] == 2
    # The config of a release that lost its section is not one of an image ViT.
    (tmp_path / "config.json").write_text('{"versions": {}}')
    assert not image_vits.holds_image_vit(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "checkpoints").mkdir()
    assert not image_vits.holds_image_vit(tmp_path)


def test_what_is_no_weights_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UnreadableWeights, match="no weights .* but config.json"):
        image_vits.read(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert not image_vits.holds_image_vit(tmp_path)  # a release may be damaged so
    with pytest.raises(UnreadableWeights, match="config.json cannot be read"):
        (tmp_path / "model.safetensors").touch()
        image_vits.read(tmp_path)


def test_keys_that_do_not_go_with_a_folder_of_an_image_vit():
    config = config_of(VIT)
    config.init.fresh = ("stem",)
    with pytest.raises(InvalidConfig, match="not a run whose parameters"):
        load(config)
