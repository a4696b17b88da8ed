"""Scores by strides and views of an evaluation, against the model applied by hand."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from sklearn.metrics import average_precision_score

import sparse_tube_vit as stv
from sparse_tube_vit import evaluate
from sparse_tube_vit.datasets.reading import open_split
from sparse_tube_vit.evaluation import evaluator
from sparse_tube_vit.inference.export import export_scores
from sparse_tube_vit.input.examples import EvaluationExample
from sparse_tube_vit.models.tubevit import make_model
from sparse_tube_vit.video.limits import UndecodableClip
from tests.saved import save_model
from tests.tiny import tiny_multi_label_config

TUBES = (
    {"kernel": (4, 4, 4), "stride": (4, 8, 8)},
    {"kernel": (1, 4, 4), "stride": (4, 8, 8), "space_to_depth": (1, 2, 2)},
)
# Half of the strides; that tokens lie within the clip makes 3x3 of the second in 16x16
# pixels, else there would be 4x4.
DENSER = tuple(tube | {"stride": (2, 4, 4), "whole": True} for tube in TUBES)


@pytest.fixture(scope="module")
def untrained(data_dir, tmp_path_factory):
    """A work directory; its parameters, heads' too, are random."""
    config = tiny_multi_label_config(data_dir)
    config.model.tubes = TUBES
    classes = {
        source.head: open_split(source.dataset, "test", data_dir).class_names
        for source in config.streams.values()
    }
    return save_model(tmp_path_factory.mktemp("untrained"), config, classes)


@pytest.fixture
def run_command(untrained, tmp_path, monkeypatch):
    """A function of options that runs the command; (result, what it wrote)."""
    results = []

    def keep(*options):
        for result in evaluator.evaluate(*options):
            results.append(result)
            yield result

    def run(*options):
        evaluate.main([f"--workdir={untrained}", f"--out={tmp_path}", *options])
        (result,), (path,) = results, tmp_path.glob("*.json")
        return result, json.loads(path.read_text())

    monkeypatch.setattr(evaluate, "evaluate", keep)
    return run


def read_views(config, name):
    """All views (N, V, T, H, W, 3) of an evaluation's data set."""
    source = config.evaluations[name]
    split = open_split(source.dataset, "test", config.data_dir)
    example = EvaluationExample.of(config.clip, config.loader, source)
    encoded = (split[i][source.kind] for i in range(len(split)))
    return np.stack([example.read(x, None)["video"] for x in encoded])


def probabilities(tubevit, head, views, tubes=TUBES):
    """Those (N, V, C) of every view, of a model that has the tubes."""
    config = tubevit.config.copy_and_resolve_references()
    config.model.tubes = tubes
    model = make_model(config, {h: len(c) for h, c in tubevit.class_names.items()})
    flat = views.reshape(-1, *views.shape[2:])
    logits = jax.jit(model.apply, static_argnames="head")(
        {"params": tubevit.params}, flat, head=head
    )
    of_logits = {"shapes": jax.nn.softmax, "crowds": jax.nn.sigmoid}[head]
    return np.asarray(of_logits(logits)).reshape(*views.shape[:2], -1)


def test_other_strides_score_as_a_model_whose_tubes_have_them(
    untrained, run_command, capsys
):
    result, written = run_command("--only=image", "--stride_scale=0.5")
    assert (written["tokens"], written["training_tokens"]) == (9, 4)  # 3x3 for 2x2
    said = capsys.readouterr()
    assert "9 tokens, 2.2 times as many as in training; step 0" in said.out
    compiling, tokens = said.err.splitlines()[1:3]
    assert compiling.endswith("Compiling the evaluation image ...")
    assert tokens.endswith("image has 9 tokens, 2.2 times as many as in training")

    tubevit = stv.load(untrained)
    views = read_views(tubevit.config, "image")
    expected = probabilities(tubevit, "shapes", views, DENSER)[:, 0]
    in_training = probabilities(tubevit, "shapes", views)[:, 0]
    assert abs(expected - in_training).max() > 0.05
    np.testing.assert_allclose(result.scores, expected, atol=1e-5)
    np.testing.assert_allclose(tubevit.scores(views, "shapes"), in_training, atol=1e-5)
    tubevit.config.evaluations.image.stride_scale = 0.5
    np.testing.assert_allclose(tubevit.scores(views, "shapes"), expected, atol=1e-5)
    program = export_scores(tubevit, "image")
    exported = program.call(flatten_dict(tubevit.params, sep="/"), views[:, 0, 0])
    np.testing.assert_allclose(exported["shapes"], expected, atol=1e-5)


def test_views_are_combined_by_their_maximum_where_asked(untrained, run_command):
    options = ["--only=video", "--views=2x1", "--combine_views=max"]
    result, written = run_command(*options)
    views = [written[f"{axis}_views"] for axis in ("temporal", "spatial")]
    assert views == [2, 1] and written["combine_views"] == "max"

    tubevit = stv.load(untrained)
    tubevit.config.evaluations.video.update(
        temporal_views=2, spatial_views=1, combine_views="max"
    )
    views = read_views(tubevit.config, "video")
    of_views = probabilities(tubevit, "crowds", views)
    expected = of_views.max(axis=1)
    assert abs(expected - of_views.mean(axis=1)).max() > 0.05
    np.testing.assert_allclose(result.scores, expected, atol=1e-5)
    np.testing.assert_allclose(tubevit.scores(views, "crowds"), expected, atol=1e-5)
    predicted = dict(tubevit.predict(views[0], top=99))
    in_order = [predicted[name] for name in tubevit.class_names["crowds"]]
    np.testing.assert_allclose(in_order, expected[0], atol=1e-5)


def test_videos_that_do_not_decode_are_wrong_in_map(data_dir, run_command, monkeypatch):
    split = open_split("moving_shapes/crowds", "test", data_dir)
    read = EvaluationExample.read
    decoded = np.arange(len(split)) % 4 > 0
    damaged = {split[i]["video"] for i in np.flatnonzero(~decoded)}

    def read_others(self, encoded, rng):
        if encoded in damaged:
            raise UndecodableClip("damaged")
        return read(self, encoded, rng)

    monkeypatch.setattr(EvaluationExample, "read", read_others)
    result, written = run_command("--only=video", "--views=1x1")
    assert result.scores[decoded].all() and not result.scores[~decoded].any()
    labels = np.stack([split[i]["label"] for i in range(len(split))])
    some = labels.any(axis=0)
    scores = np.where(decoded[:, None], result.scores, 0)
    expected = average_precision_score(labels[:, some], scores[:, some])
    np.testing.assert_allclose(written["mAP"], expected, rtol=1e-9)
