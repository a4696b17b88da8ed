"""A model card can be read, and its example runs."""

import dataclasses
import re
import shutil

import jax
import numpy as np
import pytest

from sparse_tube_vit.checkpoints import release, stored
from sparse_tube_vit.checkpoints.model_card import model_card
from sparse_tube_vit.evaluation import results
from tests.checkpoints import written
from tests.datasets.builders import official
from tests.saved import save_model
from tests.tiny import tiny_config

CLASSES = {"motions": ("turn_left", "_a|b_", "<c> & `d`"), "shapes": ("ring", "star")}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A stored model, of which nothing was measured."""
    workdir = tmp_path_factory.mktemp("model")
    return save_model(workdir, tiny_config("nowhere"), CLASSES)


def card_of(model, name="dances", path=".", classes=CLASSES, results=()):
    found = stored.read(model)
    found.description["class_names"] = {
        head: list(names) for head, names in classes.items()
    }
    return model_card(name, path, found, "float32", [*results])


def test_the_example_runs_in_the_folder(model, tmp_path, monkeypatch, capsys):
    release.release(model, tmp_path / "release")
    monkeypatch.chdir(tmp_path / "release")
    card = (tmp_path / "release" / "README.md").read_text()
    (tmp_path / "release" / "clip.mp4").write_bytes(official.encode(90))
    (tmp_path / "release" / "photo.jpg").write_bytes(official.encode_image(90))
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(code, {})
    printed = capsys.readouterr().out.splitlines()
    for line, names in zip(printed, CLASSES.values(), strict=True):
        assert all(name in line for name in names)
    # Training writes releases to DIR/release.
    assert f"\n# {tmp_path.name}: TubeViT trained on moving_shapes/images and " in card


def test_the_hub_knows_what_it_is_for(model):
    card = card_of(model, "me/dances", "hf://me/dances")
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert "pipeline_tag: video-classification" in front.splitlines()
    assert body.startswith("\n# me/dances: TubeViT")
    assert 'stv.load("hf://me/dances")\n' in body and '".[hub]"' in body
    assert "predict --model hf://me/dances clip.mp4" in body


def test_few_classes_are_a_line_and_many_are_folded(model):
    card = card_of(model)
    line = r"Head motions, 3 classes: turn_left, \_a\|b\_, &lt;c&gt; &amp; \`d\`."
    assert line in card.splitlines() and "<details>" not in card
    many = {"motions": [f"class {i}" for i in range(400)], "shapes": ("ring", "star")}
    card = card_of(model, classes=many)
    (folded,) = re.findall(r"<details>(.*?)</details>", card, re.DOTALL)
    title, *lines = folded.strip().splitlines()
    assert title == "<summary>Head motions, 400 classes</summary>"
    assert lines[1:] == [f"{i}. class {i}" for i in range(400)]


def test_a_head_is_named_where_there_are_several_and_where_none_is_trained(tmp_path):
    config = tiny_config("nowhere")
    config.streams.image.update(kind="video", dataset="video_folder/my-clips-0123abcd")
    classes = CLASSES | {"kept": ("x", "y")}
    card = card_of(save_model(tmp_path / "model", config, classes), classes=classes)
    for head in ("motions", "shapes", "kept"):
        assert f'predict("clip.mp4", head="{head}", top=3)' in card
    assert "photo.jpg" not in card
    assert "TubeViT trained on moving_shapes/videos and my-clips\n" in card


def test_tokens_of_other_strides_are_told_from_those_of_training(model):
    measured = {"kind": "image", "head": "shapes", "dataset": "d", "split": "test"}
    measured |= {"size": 16, "examples": 9, "undecodable": [], "top1": 0.5}
    rows = [{"tokens": n, "training_tokens": 9} for n in (9, 30)]
    card = card_of(model, results=[measured | row for row in rows])
    assert re.findall(r"16x16, (.*) \|", card) == [
        *("9 tokens", "30 tokens (9 in training)")
    ]


def test_a_model_card_tells_data_steps_and_accuracy_with_its_protocol(copy):
    workdir, _ = copy
    (workdir / "evaluations").mkdir()
    result = results.Accuracy(
        {
            "evaluation": "video",
            **tiny_config("nowhere").evaluations.video,
            "tokens": 8,
            "training_tokens": 8,
            "frames": 4,
            "fps": 8.0,
            "size": 16,
            "step": 5,
        },
        written.CLASSES["motions"],
        np.array([0, 1, 2, 1]),
        np.eye(3)[[0, 1, 1, 0]] * [[1], [1], [1], [0]],
        ("gone",),
        np.array([6, 6, 6, 0]),
        np.array([True, True, True, False]),
    )
    result.save(workdir / "evaluations")
    other = dict(result.protocol, step=3)  # of another checkpoint
    dataclasses.replace(result, protocol=other).save(workdir / "evaluations")
    release.release(workdir, workdir / "out", dtype="bfloat16", license="cc-by-4.0")
    card = (workdir / "out" / "README.md").read_text()
    assert card.startswith("---\n") and "license: cc-by-4.0" in card
    assert "trained for 5 steps" in card and "averaged over training" in card
    assert "| video | moving_shapes/videos | train | video | motions | 3 | 8 |" in card
    assert card.count("Top-1") == 1
    assert (
        "| motions | Top-1 50.0% | 4 videos of moving_shapes/videos test, 1 of them "
        "undecodable and so wrong | 2x3 views of 4 frames at 8 fps, 16x16, 8 tokens |"
    ) in card
    assert "in float32, before bfloat16" in card and f"jax {jax.__version__}" in card
    # It is found from the step too, wherever that is named from; of a copy that is
    # elsewhere nothing is known.
    steps = workdir / "checkpoints"
    elsewhere = shutil.copytree(steps / "5", workdir / "5")
    for i, (path, step, said) in enumerate(
        [
            (steps / "5", None, "Top-1 50.0%"),
            (steps, 5, "Top-1 50.0%"),
            (elsewhere, None, "No results of step 5 are known here"),
            (workdir / "of_step_0", None, "No results of step 5 are known here"),
        ]
    ):
        release.release(path, workdir / f"of_step_{i}", step)
        assert said in (workdir / f"of_step_{i}" / "README.md").read_text()
    # The last step's own parameters are not what was measured.
    release.release(workdir, workdir / "own", ema=False)
    card = (workdir / "own" / "README.md").read_text()
    assert "Not measured: these are the parameters of the last step" in card
