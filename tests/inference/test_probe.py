"""Probes of features: against other libraries, and on a folder of images."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sparse_tube_vit import features as features_command
from sparse_tube_vit import load
from sparse_tube_vit import probe as probe_command
from sparse_tube_vit.inference import features, predictions, probe
from sparse_tube_vit.inference.loaded import TrainedTubeViT
from sparse_tube_vit.inference.probe import NotProbeable
from tests.datasets.builders import official
from tests.saved import save_model
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def labelled():
    """(features, labels) of three classes that overlap."""
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat([0, 1, 2], 12))
    return rng.normal(size=(3, 8))[y] + rng.normal(size=(36, 8)), y


def votes_of_neighbours(x, y, known, sought, k):
    """Votes (M, 3) for the examples `sought`, one by one."""
    votes = np.zeros((len(sought), 3))
    for row, i in enumerate(sought):
        others = [j for j in known if j != i]
        norms = np.linalg.norm(x, axis=1)
        weights = {j: (x[i] @ x[j] / norms[i] / norms[j] + 1) / 2 for j in others}
        for j in sorted(others, key=weights.get)[-k:]:
            votes[row, y[j]] += weights[j]
    return votes / votes.sum(axis=1, keepdims=True)


def test_neighbours_are_the_most_similar_by_cosine(labelled):
    x, y = labelled
    everyone, known, unknown = range(36), range(20), range(20, 36)
    train = np.arange(36) < 20
    for k in (4, 99):  # of fewer neighbours than that, all
        found = probe.nearest_neighbours(x, y, None, k, 3)
        expected = votes_of_neighbours(x, y, everyone, everyone, k)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        found = probe.nearest_neighbours(x, y, train, k, 3)
        expected = votes_of_neighbours(x, y, known, unknown, k)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    # A class without a neighbour to vote for it.
    train &= y != 1
    found = probe.nearest_neighbours(x, y, train, 4, 3)
    known, unknown = np.flatnonzero(train), np.flatnonzero(~train)
    expected = votes_of_neighbours(x, y, known, unknown, 4)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not found[:, 1].any()


def test_the_linear_probe_measures_what_it_was_not_fitted_to(labelled):
    x, y = labelled
    reference = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    folds = StratifiedKFold(4, shuffle=True, random_state=0)
    expected = cross_val_predict(reference, x, y, cv=folds, method="predict_proba")
    scores = probe.linear_probe(x, y, None, 4, 3)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    # A class that is not in the part that is fitted has no probability.
    train = (np.arange(36) < 20) & (y != 1)
    scores = probe.linear_probe(x, y, train, None, 3)
    expected = reference.fit(x[train], y[train]).predict_proba(x[~train])
    np.testing.assert_allclose(scores[:, [0, 2]], expected, atol=1e-6)
    assert not scores[:, 1].any()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    classes = {"motions": ("a",), "shapes": ("b",)}
    return save_model(tmp_path_factory.mktemp("probe"), tiny_config("nowhere"), classes)


def write_images(folder, split, count):
    rng = np.random.default_rng(len(split))
    for name, colour in (("red", (255, 0, 0)), ("sea", (0, 128, 128))):
        (folder / split / name).mkdir(parents=True)
        for i in range(count):
            noise = rng.integers(0, 100, (20, 24, 3))
            picture = (np.array(colour) / 2 + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(picture).save(folder / split / name / f"{i}.png")


def test_the_command_probes_a_folder(workdir, tmp_path, capsys):
    write_images(tmp_path, "train", 3)
    (tmp_path / "train" / "red" / "bad.png").write_text("no picture")

    def run_command(folder, *options, code):
        ended = 0
        try:
            probe_command.main([f"--model={workdir}", f"--clips={folder}", *options])
        except SystemExit as end:
            ended = end.code
        assert ended == code
        return capsys.readouterr()

    # One split: each file by the others. A file that is bad is told of and left out.
    told = run_command(tmp_path / "train", "--format=json", code=1)
    result = json.loads(told.out)
    assert "bad.png: FFmpeg cannot decode it" in told.err
    assert result["undecodable"] == ["red/bad.png"]
    assert (result["files"], result["measured_files"], result["classes"]) == (6, 6, 2)
    alone = result["nearest_neighbours"]
    assert (alone["protocol"], alone["k"]) == ("leave one out", 5)
    assert result["linear_probe"] == {"top1": 1.0, "protocol": "3 stratified folds"}
    # Two: the one by the other.
    (tmp_path / "train" / "red" / "bad.png").unlink()
    write_images(tmp_path, "test", 4)
    told = run_command(tmp_path, "--neighbours=1", code=0).out
    assert "nearest neighbours: Top-1 100.0% (1 by cosine, train to test)" in told
    assert "linear probe: Top-1 100.0% (train to test)" in told
    assert "of 8 files of 2 classes" in told and "16x16; step 0 of" in told
    write_images(tmp_path, "val", 1)  # beside test, as in fine-tuning
    assert "train to test" in run_command(tmp_path, code=0).out
    shutil.rmtree(tmp_path / "val")
    (tmp_path / "test").rename(tmp_path / "extra")
    assert "has the splits" in run_command(tmp_path, code=1).err
    said = run_command(tmp_path / "nowhere", code=1).err
    assert f"NoClassFolders: {tmp_path / 'nowhere'} is not a directory" in said
    (tmp_path / "train" / "sea").rename(tmp_path / "sea")
    assert "two classes at least" in run_command(tmp_path / "train", code=1).err


def test_a_probe_reads_the_views_that_are_asked_for(workdir, tmp_path, monkeypatch):
    official.write_clips(tmp_path, "a/1.mp4", "a/2.mp4", "b/1.mp4", "b/2.mp4")
    views, pooled = [], TrainedTubeViT.pooled

    def record(self, videos):
        views.append(videos.shape[1])
        return pooled(self, videos)

    monkeypatch.setattr(TrainedTubeViT, "pooled", record)
    probe_command.main([f"--model={workdir}", f"--clips={tmp_path}", "--views=2x1"])
    assert {*views} == {2}


def test_an_animation_among_images_is_its_first_picture(workdir, tmp_path, capsys):
    """As in a data set of images."""
    write_images(tmp_path, "all", 2)
    first, *rest = (Image.new("RGB", (16, 16), c) for c in ("red", "blue", "green"))
    path = tmp_path / "all" / "red" / "moving.gif"
    first.save(path, save_all=True, append_images=rest, duration=100)
    tubevit = load(workdir)
    (moving,) = features.pooled(tubevit, [path], kind="image")
    first.save(tmp_path / "still.gif")
    (still,) = features.pooled(tubevit, [tmp_path / "still.gif"])
    assert moving.group == still.group == "image"
    np.testing.assert_array_equal(moving.result, still.result)
    (of_video,) = features.pooled(tubevit, [path])
    assert of_video.group == "video"
    seen = []
    read = type(tubevit).read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(tubevit),
            "read",
            lambda *a, **k: seen.append(k["kind"]) or read(*a, **k),
        )
        assert probe.probe(tubevit, tmp_path / "all", "image")["files"] == 5
    assert seen == ["image"] * 5
    options = [f"--clips={tmp_path / 'all'}", "--kind=image", "--format=json"]
    probe_command.main([f"--model={workdir}", *options])
    assert json.loads(capsys.readouterr().out)["frames"] == 1


def test_features_are_written_without_what_is_bad(workdir, tmp_path):
    write_images(tmp_path, "all", 2)
    (tmp_path / "all" / "sea" / "bad.png").write_text("no picture")
    out = tmp_path / "features.npz"
    options = [f"--model={workdir}", str(tmp_path / "all"), f"--out={out}", "--tokens"]
    with pytest.raises(SystemExit):
        features_command.main(options)
    with np.load(out, allow_pickle=False) as found:
        assert [f.split("/")[-2] for f in found["path"]] == ["red", "red", "sea", "sea"]
        assert found["kind"].tolist() == ["image"] * 4
        assert found["pooled"].shape == (4, 24) and found["tokens"].shape == (4, 4, 24)
        assert found["tube"].shape == (4,) and found["place"].shape == (4, 2)
        assert len(np.unique(found["pooled"], axis=0)) == 4


def test_tokens_are_of_the_central_view_and_pooled_of_all(workdir, tmp_path):
    names = ["a/1.mp4", "a/2.mp4", "b/3.mp4"]
    official.write_clips(tmp_path / "all", *names)
    paths = [str(tmp_path / "all" / name) for name in names]
    image = tmp_path / "all" / "a" / "9.gif"  # its suffix tells no kind
    Image.new("RGB", (16, 16)).save(image)
    out = tmp_path / "features.npz"
    options = [f"--model={workdir}", *paths, str(image), f"--out={out}", "--tokens"]
    with pytest.raises(SystemExit):
        features_command.main([*options, "--views=2x3"])
    tubevit = load(workdir)
    with np.load(out, allow_pickle=False) as found:
        assert found["path"].tolist() == paths
        for i, path in enumerate(paths):
            expected = tubevit.features(path)
            np.testing.assert_allclose(found["tokens"][i], expected.tokens, atol=1e-5)
            np.testing.assert_array_equal(found["place"], expected.place)
            _, views = tubevit.read(path, views=(2, 3))
            over_views = tubevit.pooled(views[None])[0]
            np.testing.assert_allclose(found["pooled"][i], over_views, atol=1e-5)
    assert {p.name for p in tmp_path.iterdir()} == {"all", "features.npz"}


def test_features_that_cannot_be_written_are_not_computed(
    workdir, tmp_path, monkeypatch, capsys
):
    write_images(tmp_path, "all", 1)
    official.write_clips(tmp_path / "all", "red/a.mp4")
    monkeypatch.setattr(features.files, "compute", lambda *_: pytest.fail("computed"))
    out = tmp_path / "features.npz"
    for where, message in (
        (tmp_path / "no" / "x.npz", "UnwritableOutput: "),
        (out, "SeveralKinds: "),
    ):
        given = [f"--model={workdir}", f"--out={where}", "--tokens"]
        with pytest.raises(SystemExit):
            features_command.main([*given, str(tmp_path / "all")])
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["all"]


def test_images_that_no_tube_reads_leave_videos_their_features(tmp_path):
    config = tiny_config("nowhere")
    config.model.tubes = config.model.tubes[:1]
    del config.streams.image, config.evaluations.image
    tubevit = load(save_model(tmp_path / "run", config, {"motions": ("a", "b")}))
    write_images(tmp_path, "all", 1)
    official.write_clips(tmp_path / "all", "red/a.mp4")
    image, video = (str(tmp_path / "all" / "red" / n) for n in ("0.png", "a.mp4"))
    of_image, of_video = features.pooled(tubevit, [image, video])
    assert of_video.group == "video" and of_video.result.any()
    assert of_image.result is None and "reads a single frame" in of_image.problem
    wrong, right = predictions.predict(tubevit, [image, video], "motions")
    assert wrong.problem == of_image.problem
    (best, p), (other, q) = right.classes
    assert {best, other} == {"a", "b"} and p > q > 0 and p + q == pytest.approx(1)


def test_splits_that_make_no_probe():
    with pytest.raises(NotProbeable, match="splits a, b"):
        probe._splits({"a": [], "b": []})
    assert probe._splits({"val": [], "train": []}) == ("train", "val")
