"""Image ViTs' weights used as they are, against their libraries' features."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import sparse_tube_vit as stv
from sparse_tube_vit import features as features_command
from sparse_tube_vit.checkpoints.image_vits import UnsupportedViT
from sparse_tube_vit.checkpoints.pretrained import WeightsDoNotMatch
from sparse_tube_vit.checkpoints.step import NoCheckpoint
from sparse_tube_vit.config import InvalidConfig
from sparse_tube_vit.models.tubevit import UnknownHead
from tests.checkpoints.image_vits.models import GOLDEN, config_of, copy, load


@pytest.fixture(scope="module")
def references():
    return dict(np.load(GOLDEN / "references.npz"))


@pytest.mark.parametrize(
    "name, extra",
    [
        ("hugging_face_dinov2_registers", 3),
        ("hugging_face_siglip", 0),
        ("timm_clip", 1),
        ("big_vision.npz", 0),
    ],
)
def test_features_of_an_image_are_the_librarys(references, name, extra):
    tubevit = stv.load(GOLDEN / name)
    assert tubevit.step == 0 and "(" in tubevit.name
    reference = name.removesuffix(".npz")
    for i, image in enumerate(references["images"]):
        found = tubevit.features(image)
        expected = references[f"{reference}/pooled"][i]
        np.testing.assert_allclose(found.pooled, expected, atol=1e-4)
        expected = references[f"{reference}/tokens"][i, extra:]
        np.testing.assert_allclose(found.tokens, expected, atol=1e-4)
        assert found.place.shape == (9, 2)


def test_a_clip_goes_through_the_image_tube():
    tubevit = stv.load(GOLDEN / "hugging_face_dino")
    clip = np.random.default_rng(0).integers(0, 256, (16, 24, 24, 3), np.uint8)
    found = tubevit.features(clip)
    assert found.tokens.shape == (18, 16)
    np.testing.assert_allclose(np.unique(found.time), [0.0625, 1.0625])
    # Frames that no patch reads change nothing.
    clip[[1, 7, 9]] = 0
    np.testing.assert_array_equal(tubevit.features(clip).pooled, found.pooled)
    for several in (clip, [clip, clip]):
        with pytest.raises(UnknownHead, match="no head to predict with.*finetune.py"):
            tubevit.predict(several)
    with pytest.raises(NoCheckpoint, match="without steps"):
        stv.load(GOLDEN / "hugging_face_dino", step=3)


def test_a_classifier_is_a_head(references):
    tubevit = stv.load(GOLDEN / "timm_deit3")
    assert tubevit.class_names == {"classifier": ("0", "1", "2")}
    ((name, probability), *_) = tubevit.predict(references["images"][0])
    pooled = references["timm_deit3/pooled"][0]
    head = tubevit.params["head_classifier"]
    logits = pooled @ head["kernel"] + head["bias"]
    best = np.exp(logits - logits.max())
    assert name == str(logits.argmax())
    assert probability == pytest.approx(best.max() / best.sum(), abs=1e-4)


def test_distilled_deit_that_was_fine_tuned_has_one_classifier(references, tmp_path):
    name = "hugging_face_deit_distilled"
    shutil.copytree(GOLDEN / name, tmp_path / "vit")
    file = tmp_path / "vit" / "model.safetensors"
    arrays = load_file(file)
    head = [arrays.pop(f"cls_classifier.{leaf}") for leaf in ("weight", "bias")]
    arrays = {k: x for k, x in arrays.items() if "distillation_cl" not in k}
    arrays |= {"classifier.weight": head[0], "classifier.bias": head[1]}
    save_file(arrays, file)
    found = dict(stv.load(tmp_path / "vit").predict(references["images"][0]))
    logits = references[f"{name}/pooled"][0] @ head[0].T + head[1]
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose([found["0"], found["1"]], expected, atol=1e-4)


def test_a_classifier_of_several_labels_has_a_sigmoid_and_a_regression_no_classes(
    references, tmp_path
):
    for problem, outputs in (
        ("multi_label_classification", 3),
        ("regression", 3),
        (None, 1),
    ):
        folder = tmp_path / f"{problem}{outputs}"
        shutil.copytree(GOLDEN / "timm_deit3", folder)
        config = json.loads((folder / "config.json").read_text())
        config |= {"problem_type": problem}
        (folder / "config.json").write_text(json.dumps(config))
        arrays = load_file(folder / "model.safetensors")
        arrays |= {k: x[:outputs] for k, x in arrays.items() if k.startswith("head")}
        save_file(arrays, folder / "model.safetensors")
        tubevit = stv.load(folder)
        if outputs == 1 or problem == "regression":
            assert not tubevit.class_names
            continue
        found = dict(tubevit.predict(references["images"][0]))
        head = tubevit.params["head_classifier"]
        pooled = references["timm_deit3/pooled"][0]
        expected = 1 / (1 + np.exp(-pooled @ head["kernel"] - head["bias"]))
        found = [found[str(i)] for i in range(outputs)]
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    "name, why",
    [
        ("timm_deit_distilled", "timm, tokens are: .*mean of class and distillation"),
        ("timm_fc_norm", "timm, tokens are: there fc_norm is of the tokens' mean"),
        ("hugging_face_deit_distilled", ""),
    ],
)
def test_other_pooling_is_a_warning_and_its_classifier_no_head(caplog, name, why):
    caplog.set_level("INFO", "sparse_tube_vit")
    tubevit = stv.load(GOLDEN / name)
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    warnings = [text for text in warnings if "heads are a guess" not in text]
    assert len(warnings) == bool(why)
    assert all(
        re.search(f"pooled features are not those of {why}", w) for w in warnings
    )
    assert not tubevit.class_names
    distilled = "distilled" in name
    reason = "average of two classifiers" if distilled else "stand before the classif"
    assert f"there is no head: {'its' if distilled else 'fc_norm'}" in caplog.text
    assert reason in caplog.text
    with pytest.raises(UnknownHead, match=f"features alone: .*{reason}.*Train one"):
        tubevit.predict(np.zeros((24, 24, 3), np.uint8))


def test_predict_says_why_a_classifier_is_not_computed():
    tubevit = stv.load(GOLDEN / "hugging_face_dinov2")
    with pytest.raises(UnknownHead, match="alone: its classifier reads class token an"):
        tubevit.predict(np.zeros((24, 24, 3), np.uint8))


def test_without_its_positions_a_vit_starts_runs_alone(tmp_path):
    arrays = load_file(GOLDEN / "hugging_face_dino" / "model.safetensors")
    del arrays["embeddings.position_embeddings"]
    save_file(arrays, tmp_path / "vit.safetensors")
    with pytest.raises(UnsupportedViT, match="no position embeddings.* start a run"):
        stv.load(tmp_path / "vit.safetensors")
    config = config_of(tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match="not in the file: .*init.positions=drop"):
        load(config)
    config.model.positions, config.init.positions = "fixed", "drop"
    assert "the file has no position embeddings" in load(config)[2].notes


def test_features_are_not_partly_random(tmp_path):
    folder = copy("hugging_face_siglip", tmp_path / "vit")
    arrays = load_file(folder / "model.safetensors")
    rest = {k: x for k, x in arrays.items() if "head.mlp" not in k}
    assert len(rest) == len(arrays) - 4
    save_file(rest, folder / "model.safetensors")
    with pytest.raises(
        WeightsDoNotMatch, match="lacks pooling/mlp/down/bias, .*random"
    ):
        stv.load(folder)


def test_videomae_reads_clips(references):
    """A clip that brightens, as tests/golden/make.py normalizes it."""
    tubevit = stv.load(GOLDEN / "hugging_face_videomae")
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = (references["images"][0] / 255 - mean) / std
    dimmed = np.stack([x * b for b in (0.25, 0.5, 0.75, 1)])
    clip = (2 * (dimmed * std + mean) - 1).astype("f4")
    theirs = references["hugging_face_videomae/tokens"][0]
    np.testing.assert_allclose(tubevit.features(clip).tokens, theirs, atol=1e-4)


def test_a_normalization_is_given_where_no_file_tells(references, tmp_path, caplog):
    """A file of DeiT alone has AugReg's names; with imagenet it is timm's again."""
    file = tmp_path / "deit.safetensors"
    shutil.copy(GOLDEN / "timm_deit" / "model.safetensors", file)
    (tmp_path / "config.json").write_text('{"num_heads": 2}')
    caplog.set_level("INFO", "sparse_tube_vit")
    expected = references["timm_deit/pooled"][0]
    for normalization, same in (("imagenet", True), ("", False)):
        tubevit = stv.load(file, normalization=normalization)
        assert tubevit.config.init.normalization == normalization
        found = tubevit.features(references["images"][0]).pooled
        assert np.allclose(found, expected, atol=1e-4) == same
    assert "for them" in caplog.text and "--normalization=imagenet" in caplog.text
    with pytest.raises(
        InvalidConfig, match="'rgb': it must be of half, imagenet, clip"
    ):
        stv.load(file, normalization="rgb")
    with pytest.raises(InvalidConfig, match="demo is not an image ViT"):
        stv.load("demo", normalization="imagenet")


def test_the_command_takes_weights_and_their_normalization(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    model, out = str(GOLDEN / "hugging_face_clip"), tmp_path / "features.npz"
    command = ["--model", model, str(tmp_path / "a.png"), "--out", str(out)]
    features_command.main(command)
    pooled = np.load(out)["pooled"]
    assert pooled.shape == (1, 16)
    features_command.main([*command, "--normalization=half"])
    assert not np.allclose(np.load(out)["pooled"], pooled, atol=1e-3)
