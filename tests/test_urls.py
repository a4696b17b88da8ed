"""Every place that takes a URL, with a storage on 127.0.0.1 in place of gs://.

The clients are those of the pinned environment: gcsfs, tensorstore, array_record.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import sparse_tube_vit as stv
from sparse_tube_vit import (
    evaluate,
    features,
    predict,
    prepare,
    probe,
    release,
    report,
    scale_up,
    train,
    verify,
)
from sparse_tube_vit.checkpoints import stored
from sparse_tube_vit.checkpoints.image_vits import read_arrays
from sparse_tube_vit.checkpoints.release import release as make_release
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.figures import __main__ as figures
from tests import bucket
from tests.checkpoints.created import big_config, small_config, write
from tests.datasets.builders import official
from tests.tiny import tiny_config

GOLDEN = Path(__file__).parent / "golden"
URL = "gs://stand-in"


@pytest.fixture(scope="module")
def storage(finished, data_dir, tmp_path_factory):
    """A bucket with a run, its release, models to scale up, weights, data and clips."""
    root = tmp_path_factory.mktemp("bucket")
    shutil.copytree(finished[0], root / "run")
    make_release(root / "run", root / "release")
    write(root / "small", small_config())
    write(root / "big", big_config())
    names = [f"{split}/{c}/1.mp4" for split in ("train", "test") for c in "ab"]
    official.write_clips(root / "clips", *names)
    shutil.copytree(data_dir, root / "data")
    for name in ("augreg.npz", "timm.safetensors"):
        shutil.copy(GOLDEN / name, root / name)
    with pytest.MonkeyPatch.context() as monkeypatch:
        storage = bucket.use(monkeypatch)
        storage.upload(root, "stand-in")
        yield storage


@pytest.fixture
def run(capsys):
    """Runs a command; returns what it prints."""

    def run(command, *arguments):
        command.main([*map(str, arguments)])
        return capsys.readouterr().out

    return run


def load_runs_steps_and_releases(run, storage, tmp_path):
    for path in ("run", "run/checkpoints/4", "release"):
        tubevit = stv.load(f"{URL}/{path}")
        assert tubevit.step == (4 if path.endswith("4") else 6)


def predict_files(run, storage, tmp_path):
    out = run(predict, f"--model={URL}/release", f"{URL}/clips/train/a/1.mp4")
    assert f"{URL}/clips/train/a/1.mp4" in out
    out = run(predict, f"--model={URL}/run", f"{URL}/clips")
    assert out.count(".mp4") == 4


def write_features(run, storage, tmp_path):
    files = f"--model={URL}/run", f"{URL}/clips/test"
    run(features, *files, f"--out={URL}/out/features.npz")
    assert storage.names("stand-in", "out/features") == ["out/features.npz"]


def probe_a_folder(run, storage, tmp_path):
    out = run(probe, f"--model={URL}/run", f"--clips={URL}/clips", "--neighbours=1")
    assert f"of 2 files of 2 classes in {URL}/clips" in out


def evaluate_a_run_into_it(run, storage, tmp_path):
    options = f"--workdir={URL}/run", f"--data_dir={URL}/data", "--only", "image"
    out = run(evaluate, *options)
    assert f"written to {URL}/run/evaluations/image_step6.json" in out


def evaluate_a_release_elsewhere(run, storage, tmp_path):
    options = f"--workdir={URL}/release", f"--data_dir={URL}/data", "--only", "image"
    assert "written" not in run(evaluate, *options)
    assert f"written to {URL}/out" in run(evaluate, *options, f"--out={URL}/out")
    data, _ = storage.objects["stand-in", "out/image_step6.json"]
    assert json.loads(data)["model"] == f"release {URL}/release"


def train_and_resume(run, storage, tmp_path):
    config = tiny_config(f"{URL}/data")
    config.total_steps = 4
    config.optimizer.warmup_steps = 1
    config.evaluate_every_steps = 4
    config.checkpoint.update(every_steps=1, keep=2)
    config.compilation_cache = f"{URL}/new/compiled"
    train.train(config, f"{URL}/new")
    names = storage.names("stand-in", "new/")
    assert {"new/metrics.jsonl", "new/evaluations/image_step4.json"} <= {*names}
    assert any(name.startswith("new/compiled/jit_") for name in names)
    steps = {name.split("/")[2] for name in names if "/checkpoints/" in name}
    assert {x for x in steps if x.isdecimal()} == {"3", "4"}
    assert stored.locate(f"{URL}/new").step == 4
    assert int(train.train(config, f"{URL}/new").step) == 4


def release_a_run(run, storage, tmp_path):
    run(release, f"--workdir={URL}/run", f"--out={tmp_path / 'out'}")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Top-1" in card  # the evaluations are read as well


def start_from_runs_and_releases(run, storage, tmp_path):
    for source in ("run", "run/checkpoints/4", "release"):
        config = tiny_config(f"{URL}/data")
        config.total_steps = 1
        config.optimizer.warmup_steps = 0
        config.init.weights = f"{URL}/{source}"
        config.evaluations = {}
        train.train(config, tmp_path / source)


def read_image_vits(run, storage, tmp_path):
    for name in ("augreg.npz", "timm.safetensors"):
        arrays, local = read_arrays(f"{URL}/{name}"), read_arrays(GOLDEN / name)
        assert arrays.keys() == local.keys()
        for key, x in local.items():
            np.testing.assert_array_equal(arrays[key], x)


def scale_up_two_models(run, storage, tmp_path):
    models = f"--small={URL}/small", f"--big={URL}/big"
    run(scale_up, *models, f"--workdir={URL}/created")
    assert stored.locate(f"{URL}/created").step == 0


def prepare_clips(run, storage, tmp_path):
    folder = "video_folder", "--name=x", f"--videos={URL}/clips"
    prepare.main([*folder, f"--data_dir={URL}/prepared", "--workers=0"])
    assert len(reading.open_split("video_folder/x", "train", f"{URL}/prepared")) == 2


def read_examples(run, storage, tmp_path):
    split = reading.open_split("moving_shapes/videos", "test", f"{URL}/data")
    assert len(split[0]["video"]) > 100


def verify_a_data_set(run, storage, tmp_path):
    options = f"--data_dir={URL}/data", "--workers=0", f"--out={URL}/out/sheet.html"
    assert "24 classes" in run(verify, "moving_shapes/videos", *options)
    assert storage.names("stand-in", "out/sheet.html")


def draw_figures(run, storage, tmp_path):
    to = f"--workdir={URL}/run", f"--out={URL}/pictures"
    figures.main(["curves", *to])
    assert storage.names("stand-in", "pictures/training_curves")
    figures.main(["tubes", *to, f"--clip={URL}/clips/train/a/1.mp4"])
    assert storage.names("stand-in", "pictures/tubes")


def write_a_report(run, storage, tmp_path):
    report.main([f"--workdir={URL}/run", f"--data_dir={URL}/data", "--clips=1"])
    assert storage.names("stand-in", "run/report")


PLACES = [
    load_runs_steps_and_releases,
    read_image_vits,
    read_examples,
]
#: These take 10 to 60 seconds each.
SLOW = [
    predict_files,
    write_features,
    evaluate_a_release_elsewhere,
    release_a_run,
    probe_a_folder,
    evaluate_a_run_into_it,
    train_and_resume,
    scale_up_two_models,
    prepare_clips,
    verify_a_data_set,
    draw_figures,
    start_from_runs_and_releases,
    write_a_report,
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_a_url_is_taken(place, run, storage, tmp_path):
    place(run, storage, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("place", SLOW, ids=lambda place: place.__name__)
def test_a_url_is_taken_by_what_takes_longer(place, run, storage, tmp_path):
    place(run, storage, tmp_path)
