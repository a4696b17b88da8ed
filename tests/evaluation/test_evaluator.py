"""Evaluation of a trained run: its command, results, and what it refuses."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from sparse_tube_vit import evaluate, train
from sparse_tube_vit.checkpoints import release, stored
from sparse_tube_vit.checkpoints.stored import locate
from sparse_tube_vit.config import from_json
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.datasets.classes import ClassNamesDiffer
from sparse_tube_vit.datasets.reading import DatasetNotPrepared
from sparse_tube_vit.distributed.sharding import make_mesh
from sparse_tube_vit.evaluation import evaluator, results
from sparse_tube_vit.figures import run as run_pictures
from sparse_tube_vit.models.losses import LossDoesNotFit
from sparse_tube_vit.models.scores import NonFiniteScores, make_scores
from sparse_tube_vit.training.reporting import read_metrics
from sparse_tube_vit.video.limits import UndecodableClip
from tests.tiny import COUNTS, tiny_multi_label_config


@pytest.mark.parametrize(
    "options, message",
    [
        ("--stride_scale=-1", "stride_scale is -1.0: it must be between 0.1 and 10"),
        ("--stride_scale=nan", "stride_scale is nan"),
        ("--batch_size=0", "batch_size is 0: it must be a whole number"),
    ],
)
def test_options_of_evaluate_follow_the_rules_of_the_config(
    finished, options, message, capsys
):
    with pytest.raises(SystemExit):
        evaluate.main([f"--workdir={finished[0]}", options])
    assert message in capsys.readouterr().err


def test_devices_of_any_number_evaluate_what_several_slices_trained(
    finished, tmp_path, capsys
):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    file = workdir / "checkpoints" / "6" / "run" / "metadata"
    run = json.loads(file.read_text())
    run["config"]["mesh"].update(data=3, slices=3)
    del run["checksum"]
    # The data of evaluations that are not asked for is not needed.
    run["config"]["evaluations"]["video"]["dataset"] = "elsewhere"
    file.write_text(json.dumps(run))
    evaluate.main([f"--workdir={workdir}", f"--out={tmp_path}", "--only", "image"])
    assert "image: Top-1" in capsys.readouterr().out


def test_an_evaluation_that_fails_leaves_the_results_before_it(
    finished, tmp_path, monkeypatch, capsys
):
    run = evaluator.Evaluator.run

    def fail_second(self, *options):
        if self.name == "video":
            raise NonFiniteScores("video: the scores are not finite")
        return run(self, *options)

    monkeypatch.setattr(evaluator.Evaluator, "run", fail_second)
    with pytest.raises(SystemExit):
        evaluate.main([f"--workdir={finished[0]}", f"--out={tmp_path}"])
    printed = capsys.readouterr()
    assert "NonFiniteScores: video" in printed.err
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text())["summary"] in printed.out


def test_results_that_cannot_be_written_are_not_computed(
    finished, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(evaluate, "evaluate", lambda *_: pytest.fail("computed"))
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        evaluate.main([f"--workdir={finished[0]}", f"--out={tmp_path / 'file'}"])
    assert f"UnwritableOutput: {tmp_path / 'file'} cannot be" in capsys.readouterr().err


def test_few_videos_at_a_time_where_their_views_are_large(
    finished, tmp_path, monkeypatch
):
    """Of 8 devices: 8 at least, whatever the limit; the result is the same."""
    sizes = []
    score = evaluator.Evaluator._score

    def record_size(self, params, batch, step):
        sizes.append([part["video"].shape for part in batch])
        return score(self, params, batch, step)

    monkeypatch.setattr(evaluator.Evaluator, "_score", record_size)
    found = []
    video = 6 * 4 * 16 * 16 * 3
    for limit, most in ((2**29, 16), (17 * video, 16), (15 * video, 8), (1, 8)):
        monkeypatch.setattr(evaluator, "SHARE_BYTES", limit)
        out = tmp_path / str(limit)
        out.mkdir()
        options = [f"--workdir={finished[0]}", "--only=video", f"--out={out}"]
        evaluate.main(options)
        assert {*map(tuple, sizes)} == {((most // 8, 6, 4, 16, 16, 3),) * 8}
        sizes.clear()
        found.append((out / "video_step6_2x3.json").read_text())
    assert len({*found}) == 1


def test_step_and_views_of_the_command_line(finished, tmp_path):
    options = ["--step=4", "--only=video", "--views=1x2", "--combine_views=max"]
    evaluate.main([f"--workdir={finished[0]}", *options, f"--out={tmp_path}"])
    (path,) = tmp_path.glob("*.json")
    result = json.loads(path.read_text())
    views = [result[f"{axis}_views"] for axis in ("temporal", "spatial")]
    assert views == [1, 2] and result["combine_views"] == "max"
    assert path.stem.startswith("video_step4_1x2") and result["step"] == 4


@pytest.mark.smoke
def test_evaluation_result(finished, data_dir):
    workdir, _ = finished
    config = from_json(locate(workdir, 6).read_description()["config"])
    (video,) = evaluator.evaluate(config, locate(workdir, 6), ["video"])
    saved = json.loads((workdir / "evaluations" / "video_step6_2x3.json").read_text())
    # What training wrote at its end is what evaluating the checkpoint gives.
    assert video.to_json() == saved
    assert saved["examples"] == COUNTS["videos"]["test"]
    # Square crops of square pictures are all the same.
    assert saved["mean_distinct_views"] == 2
    assert saved["videos_with_fewer_views"] == COUNTS["videos"]["test"]
    told = f"8 fps (2.00 distinct on average, {saved['examples']} videos have fewer)"
    assert told in str(video)
    expected = {"split": "test", "temporal_views": 2, "spatial_views": 3, "frames": 4}
    expected |= {"fps": 8.0, "size": 16, "step": 6, "dataset": "moving_shapes/videos"}
    assert {key: saved[key] for key in expected} == expected
    assert np.sum(saved["confusion"]) == COUNTS["videos"]["test"]
    assert (workdir / "evaluations" / "video_step6_2x3_confusion.png").exists()
    assert saved["top1"] == np.trace(saved["confusion"]) / COUNTS["videos"]["test"]
    with pytest.raises(evaluator.UnknownEvaluation, match="no evaluation dogs"):
        evaluator.evaluate(config, locate(workdir, 6), ["dogs"])


def test_undecodable_videos_count_as_wrong_and_are_named(
    finished, data_dir, monkeypatch
):
    workdir, _ = finished
    run = locate(workdir, 6).read_description()
    read = evaluator.pipeline.EvaluationExample.read
    calls = []

    def damaged(self, encoded, rng):
        calls.append(1)
        if len(calls) % 4 == 0:
            raise UndecodableClip("damaged")
        return read(self, encoded, rng)

    monkeypatch.setattr(evaluator.pipeline.EvaluationExample, "read", damaged)
    config = from_json(run["config"])
    config.loader.threads = 1
    (result,) = evaluator.evaluate(config, locate(workdir, 6), ["image"])
    bad = COUNTS["images"]["test"] // 4
    assert len(set(result.undecodable)) == bad
    assert f"({bad} undecodable)" in str(result)
    assert result.to_json()["confusion"] == result.confusion().tolist()
    assert result.confusion().sum() == COUNTS["images"]["test"] - bad
    # Were every decodable one right, the others would still be wrong.
    assert result.decoded.sum() == COUNTS["images"]["test"] - bad
    scores = np.eye(6)[result.labels] * result.decoded[:, None]
    perfect = dataclasses.replace(result, scores=scores)
    assert perfect.top(1) == 1 - bad / COUNTS["images"]["test"]
    assert perfect.top(6) == perfect.top(1)


def test_scores_that_are_no_numbers_end_an_evaluation(finished, monkeypatch):
    """They are no wrong answers: the step and the example are named."""
    workdir, _ = finished
    config = from_json(locate(workdir, 6).read_description()["config"])

    def with_nans(*options):
        scores = make_scores(*options)
        bad = jnp.arange(8)[:, None] == 5
        return lambda *args: jnp.where(bad, np.nan, scores(*args))

    monkeypatch.setattr(evaluator, "make_scores", with_nans)
    split = reading.open_split("moving_shapes/images", "test", config.data_dir, "image")
    named = f"image: the scores of {split[5]['id']} at step 6 are not finite"
    with pytest.raises(NonFiniteScores, match=named):
        next(evaluator.evaluate(config, locate(workdir, 6), ["image"]))


def test_top_k_per_class_and_confusion():
    scores = np.array([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6], [0.2, 0.5, 0.3], [0, 0, 0]])
    result = results.Accuracy(
        {},
        ("a", "b", "c"),
        np.array([0, 1, 2, 1]),
        scores,
        ("x",),
        np.ones(4),
        np.array([True, True, True, False]),
    )
    assert result.top(1) == 1 / 4 and result.top(2) == 3 / 4
    assert result.confusion().tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert result.per_class() == {
        "a": {"top1": 1.0, "count": 1},
        "b": {"top1": 0.0, "count": 2},
        "c": {"top1": 0.0, "count": 1},
    }


@pytest.fixture(scope="module")
def multi_label(data_dir, tmp_path_factory):
    """Work directory of a run jointly on videos of several labels and on images."""
    workdir = tmp_path_factory.mktemp("multi_label")
    train.train(tiny_multi_label_config(data_dir), workdir)
    return workdir


def test_several_labels_are_measured_by_map(multi_label):
    run = locate(multi_label, 3).read_description()
    config = from_json(run["config"])
    (result,) = evaluator.evaluate(config, locate(multi_label, 3), ["video"])
    saved = json.loads(
        (multi_label / "evaluations" / "video_step3_2x3.json").read_text()
    )
    assert result.to_json() == saved
    n, some = COUNTS["crowds"]["test"], result.labels.any(axis=0)
    assert result.labels.shape == result.scores.shape == (n, 24)
    expected = average_precision_score(
        result.labels[:, some], result.scores[:, some], average="macro"
    )
    np.testing.assert_allclose(saved["mAP"], expected, rtol=1e-9)
    assert "top1" not in saved and "confusion" not in saved
    assert saved["examples"] == n and len(saved["per_class"]) == 24
    told = {key: x for line in read_metrics(multi_label) for key, x in line.items()}
    assert told["evaluation/video/mAP"] == saved["mAP"]
    assert 0 <= told["train/video/precision_at_1"] <= 1
    assert {"train/image/accuracy", "evaluation/image/top1"} < told.keys()
    assert not list((multi_label / "evaluations").glob("video*.png"))
    pictures = run_pictures.curves(run_pictures.Run(multi_label))
    assert [p.name for p in pictures] == ["training_curves", "throughput"]
    picture = next(run_pictures.confusion(run_pictures.Run(multi_label)))
    assert picture.name == "image_step3_confusion"
    assert str(result).startswith(
        f"video: mAP {expected:.1%} over {some.sum()} of 24 classes, of {n} videos of "
        "moving_shapes/crowds test (0 undecodable); 2x3 views of 4 frames at 8 fps"
    )


def test_map_of_each_class_and_of_what_does_not_decode():
    labels = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]])
    scores = np.array([[0.9, 0.2, 0.5], [0.8, 0.6, 0.5], [0.7, 0.4, 0.5], [0, 0, 0]])
    protocol = {"evaluation": "e", "dataset": "d", "split": "s"}
    result = results.MeanAveragePrecision(
        protocol, ("a", "b", "c"), labels, scores, ("x",), np.ones(4), np.ones(4) > 0
    )
    # b is found at ranks 1 and 3, and in the undecodable one, at the end.
    b = (1 / 1 + 2 / 3 + 3 / 4) / 3
    expected = {"a": (1 + 2 / 3) / 2, "b": b, "c": None}
    assert result.per_class() == {
        name: {
            "average_precision": ap and pytest.approx(ap),
            "count": int(labels[:, i].sum()),
        }
        for i, (name, ap) in enumerate(expected.items())
    }
    np.testing.assert_allclose(result.metrics()["mAP"], (5 / 6 + b) / 2)
    assert result.headline().endswith("over 2 of 3 classes,")
    with pytest.raises(results.NoLabels, match="e: none of the 4 examples of d s"):
        dataclasses.replace(result, labels=0 * labels)


def test_a_loss_for_one_label_on_several_is_refused(multi_label, data_dir, tmp_path):
    config = tiny_multi_label_config(data_dir)
    config.streams.video.loss = "softmax"
    with pytest.raises(LossDoesNotFit, match="streams.video reads .*'sigmoid'"):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()  # this one is not the run's to remove
    with pytest.raises(LossDoesNotFit):
        train.train(config, tmp_path / "run")
    assert not [*(tmp_path / "run").iterdir()]
    # The other way round is one-against-all: a head of several labels may be trained
    # and measured on one.
    run = locate(multi_label, 3).read_description()
    config = from_json(run["config"])
    config.evaluations.video.dataset = "moving_shapes/videos"
    (result,) = evaluator.evaluate(config, locate(multi_label, 3), ["video"])
    assert set(result.metrics()) == {"top1", "top5"}
    assert not np.allclose(result.scores.sum(axis=1), 1)
    config.evaluations.image.update(config.evaluations.video, head="shapes")
    config.evaluations.image.dataset = "moving_shapes/crowds"
    names = run["class_names"] | {"shapes": run["class_names"]["crowds"]}
    with pytest.raises(LossDoesNotFit, match="evaluations.image reads"):
        evaluator.prepare(config, names, None, make_mesh(config))


def test_classes_that_differ_from_the_head_are_refused(finished, data_dir):
    workdir, _ = finished
    run = locate(workdir, 6).read_description()
    config = from_json(run["config"])
    names = run["class_names"]
    names["shapes"] = [*names["shapes"][1:], names["shapes"][0]]
    with pytest.raises(ClassNamesDiffer, match="'square' as class 0.* has 'circle'"):
        evaluator.prepare(config, names, None, make_mesh(config))


def test_ctrl_c_ends_an_evaluation_without_a_trace(finished):
    command = [sys.executable, "-m", "sparse_tube_vit.evaluate"]
    run = subprocess.Popen(
        [*command, f"--workdir={finished[0]}"], stderr=subprocess.PIPE, text=True
    )
    assert "Evaluating" in run.stderr.readline()
    run.send_signal(signal.SIGINT)
    assert "Traceback" not in run.communicate()[1]
    assert run.returncode == -signal.SIGINT


def test_evaluating_makes_no_data_where_the_model_says(finished, tmp_path):
    release.release(finished[0], tmp_path / "release")
    file, elsewhere = tmp_path / "release" / "config.json", tmp_path / "elsewhere"
    described = json.loads(file.read_text())
    del described["checksum"]
    described["config"]["data_dir"] = str(elsewhere)
    file.write_text(json.dumps(described))
    model = stored.locate(tmp_path / "release")
    config = from_json(model.read_description()["config"])
    with pytest.raises(DatasetNotPrepared, match="prepare moving_shapes"):
        evaluator.evaluate(config, model)
    assert not elsewhere.exists()
