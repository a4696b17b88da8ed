"""Classifiers of image ViTs: which are heads, and of what classes."""

import json
import re

import numpy as np
from safetensors.numpy import load_file, save_file

from sparse_tube_vit.checkpoints import image_vits
from tests.checkpoints.image_vits.models import GOLDEN, config_of, copy, load


def test_a_classifier_that_is_no_head_of_the_features_is_dropped_and_said(tmp_path):
    """What stands between it and the ViT is not known here."""
    arrays = load_file(GOLDEN / "timm_deit3" / "model.safetensors")
    vit = {f"backbone.{n}": x for n, x in arrays.items() if not n.startswith("head.")}
    head = {n: x for n, x in arrays.items() if n.startswith("head.")}
    neck = {"neck.weight": np.ones((16, 16), np.float32)}
    inside = {f"backbone.{n}": x for n, x in head.items()}
    wide = {"head.weight": np.ones((3, 32), np.float32), "head.bias": head["head.bias"]}
    whole = wide | {"head.weight": np.ones((3, 16, 1, 1), np.float32)}
    for added, why in (
        (head, ""),
        (head | neck, "neck.weight is beside head.weight, and may stand before it"),
        (
            inside | head,
            "head.(bias|weight) may stand in the place of backbone.head.weight",
        ),
        (wide, r"head.weight makes 3 classes of \[32\], not of 16 features"),
        (whole, r"head.weight makes 3 classes of \[1, 1, 16\], not of 16"),
    ):
        for prefix in ("", "model."):
            file = {f"{prefix}{n}": x for n, x in (vit | added).items()}
            save_file(file, tmp_path / "vit.safetensors")
            read = image_vits.read(tmp_path / "vit.safetensors")
            told = read.why_headless.replace("model.", "")
            assert re.search(why, told), told
            assert bool(read.why_headless) == bool(why)
            assert read.labels == ("0", "1", "2") and not read.left_over
    config = config_of(tmp_path / "vit.safetensors", heads=2)
    _, _, report = load(config)
    assert "there is no head: model.head.w" in "\n".join(report.notes)
    save_file(vit | head | neck, tmp_path / "vit.safetensors")
    _, _, report = load(config_of(tmp_path / "vit.safetensors", heads=2))
    told = "of the arrays beside 'backbone.', 1 are dropped, as neck.weight"
    assert told in report.notes


def test_the_projection_of_a_clip_is_no_classifier(tmp_path):
    """timm has it as a head of as many classes as the embedding has features."""
    arrays = load_file(GOLDEN / "timm_clip" / "model.safetensors")
    file = tmp_path / "clip.safetensors"
    assert not image_vits.read(GOLDEN / "timm_clip").why_headless
    for outputs, bias, names in (
        (3, 0, None),  # as converted from OpenAI's
        (512, 1, None),
        (3, 0, ["a", "b", "c"]),
    ):
        arrays["head.weight"] = np.ones((outputs, 16), np.float32)
        arrays["head.bias"] = np.full(outputs, bias, np.float32)
        save_file(arrays, file)
        (tmp_path / "config.json").write_text(json.dumps({"label_names": names}))
        why = "" if names else f"CLIP's projection to {outputs} features"
        assert why in image_vits.read(file).why_headless
        assert bool(image_vits.read(file).why_headless) == (not names)


def test_the_projection_of_an_eva_clip_is_no_classifier(tmp_path):
    folder = copy("timm_eva", tmp_path / "vit")
    assert not image_vits.read(folder).why_headless
    config = json.loads((folder / "config.json").read_text())
    config.pop("label_names", None)
    arrays = load_file(folder / "model.safetensors")
    arrays["head.weight"] = np.ones((1024, 16), np.float32)
    arrays["head.bias"] = np.ones(1024, np.float32)
    save_file(arrays, folder / "model.safetensors")
    for architecture in ("eva_giant_patch14_clip_224", ""):
        config["architecture"] = architecture
        (folder / "config.json").write_text(json.dumps(config))
        assert "CLIP's projection to 1024" in image_vits.read(folder).why_headless


def test_class_names_that_several_classes_have_get_their_numbers(tmp_path):
    labels = {"label_names": ["crane", "dog", "crane"]}
    vit = image_vits.read(copy("timm_deit3", tmp_path / "vit", **labels))
    assert vit.labels == ("crane (0)", "dog", "crane (2)")


def test_labels_as_a_list_or_none(tmp_path):
    for i, (labels, names) in enumerate(
        (
            ({"id2label": ["a", "b", "c"]}, ("a", "b", "c")),
            ({"id2label": None, "label_names": None}, ("0", "1", "2")),
        )
    ):
        vit = image_vits.read(copy("timm_deit3", tmp_path / f"{i}", **labels))
        assert vit.labels == names
