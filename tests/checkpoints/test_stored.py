"""Runs, their steps and releases are found and read; what is neither is named."""

import json
import os
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest

from sparse_tube_vit.checkpoints import stored
from sparse_tube_vit.checkpoints.step import (
    FORMAT,
    DamagedCheckpoint,
    ForeignCheckpoint,
    NewerCheckpoint,
    NoCheckpoint,
    UnfinishedCheckpoint,
)
from sparse_tube_vit.config import from_json
from sparse_tube_vit.inference import loaded
from tests import bucket
from tests.checkpoints.written import (
    assert_equal,
    describe,
    make_older,
    rewrite,
    write_run,
)
from tests.tiny import tiny_config


def test_reads_the_latest_or_one_step_averaged_or_not(run):
    workdir, params = run
    found = stored.read(workdir)
    assert (found.step, found.averaged) == (5, True)
    assert found.name == f"step 5 of {workdir}"
    assert_equal(found.params, params, 2)
    assert from_json(found.description["config"]) == tiny_config("nowhere")
    found = stored.read(str(workdir), step=3, ema=False)
    assert (found.step, found.averaged) == (3, False)
    assert_equal(found.params, params, 3 / 5)
    assert stored.read(workdir / "checkpoints" / "3").step == 3
    assert stored.read(workdir / "checkpoints").step == 5
    with pytest.raises(NoCheckpoint, match="no checkpoint of step 4; it has 3, 5"):
        stored.read(workdir, step=4)


def test_what_a_run_was_is_told_without_its_parameters(run, released, tmp_path):
    whole = shutil.copytree(run[0], tmp_path / "run")
    copy = shutil.copytree(released, tmp_path / "release")
    found = {path: stored.read(path) for path in (whole, copy)}
    for path in (*whole.rglob("d/*"), copy / "model.safetensors"):
        path.unlink()
    for path, of_all in found.items():
        assert describe(path) == (of_all.name, of_all.description)
        with pytest.raises(DamagedCheckpoint):
            stored.read(path)
    assert stored.locate(whole, step=3).name == f"step 3 of {whole}"
    (copy / "config.json").unlink()
    (copy / "model.safetensors").touch()
    with pytest.raises(DamagedCheckpoint, match="config.json"):
        stored.locate(copy).read_description()


@pytest.mark.slow
def test_a_bucket_gives_what_the_disk_gives(run, released, monkeypatch):
    workdir, params = run
    storage = bucket.use(monkeypatch)
    storage.upload(workdir, "models", "run")
    storage.upload(released, "models", "release")
    url = "gs://models/run"
    assert_equal(stored.read(url, step=3).params, params, 2 * 3 / 5)
    assert_equal(stored.read(f"{url}/checkpoints/5").params, params, 2)
    assert_equal(stored.read("gs://models/release").params, params, 2)
    assert os.fspath(stored.locate(url).workdir) == url
    for path in (url, "gs://models/release"):
        assert describe(path)[1] == stored.read(path).description
    # What is being written to a bucket has its place already.
    at = "models", "run/checkpoints/5/_CHECKPOINT_METADATA"
    told = json.loads(storage.objects[at][0])
    storage.put(at, json.dumps(told | {"commit_timestamp_nsecs": None}).encode())
    assert stored.read(url).step == 3
    with pytest.raises(UnfinishedCheckpoint, match="not written to its end"):
        stored.read(url, step=5)
    with pytest.raises(stored.UnreachableStorage, match="nosuch"):
        stored.read("nosuch://bucket/run")


def test_the_latest_step_is_the_same_to_all(copy):
    workdir, last = copy
    assert stored.locate(workdir).step == stored.read(workdir).step == 5
    # As in a bucket, where what is being written has its place already.
    file = last / "_CHECKPOINT_METADATA"
    told = json.loads(file.read_text())
    file.write_text(json.dumps(told | {"commit_timestamp_nsecs": None}))
    assert stored.locate(workdir).step == stored.read(workdir).step == 3
    shutil.rmtree(workdir / "checkpoints" / "3")
    for read in (stored.locate, stored.read):
        with pytest.raises(NoCheckpoint):
            read(workdir)
    file.write_text("{")
    for read in (stored.locate, stored.read):
        with pytest.raises(DamagedCheckpoint, match="checkpoints/5"):
            read(workdir)


def test_keys_of_later_versions_take_defaults_and_newer_formats_are_refused(tmp_path):
    write_run(tmp_path / "newer", steps=(1,))
    newer = tmp_path / "newer" / "checkpoints" / "1"
    rewrite(newer, lambda described: described.update(format=FORMAT + 1))
    with pytest.raises(NewerCheckpoint, match="Upgrade sparse_tube_vit"):
        stored.read(tmp_path / "newer")
    write_run(tmp_path / "older", steps=(1,))
    rewrite(tmp_path / "older" / "checkpoints" / "1", make_older)
    assert loaded.load(tmp_path / "older").step == 1


def test_nothing_and_things_of_others_are_told_apart(run, tmp_path):
    with pytest.raises(NoCheckpoint, match="is no directory"):
        stored.read(tmp_path / "nowhere")
    (tmp_path / "weights.h5").touch()
    with pytest.raises(NoCheckpoint, match="is a file, .* are for predict"):
        stored.read(tmp_path / "weights.h5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoCheckpoint, match="is empty"):
        stored.read(tmp_path / "empty")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("train")
    with pytest.raises(ForeignCheckpoint, match="holds todo.txt: neither"):
        stored.read(tmp_path / "notes")
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    with pytest.raises(NoCheckpoint, match="no checkpoint yet"):
        stored.read(tmp_path / "begun")
    (tmp_path / "begun" / "checkpoints" / "2.orbax-checkpoint-tmp").mkdir()
    with pytest.raises(UnfinishedCheckpoint, match="while it saved its first"):
        stored.read(tmp_path / "begun")
    # Of orbax, but not of this package.
    with ocp.CheckpointManager(tmp_path / "theirs" / "checkpoints") as manager:
        manager.save(1, args=ocp.args.StandardSave({"w": np.ones(3)}))
    for path in (tmp_path / "theirs", tmp_path / "theirs" / "checkpoints" / "1"):
        with pytest.raises(ForeignCheckpoint, match="where run and params are needed"):
            stored.read(path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "other" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ForeignCheckpoint, match="not of sparse_tube_vit"):
        stored.read(tmp_path / "other")


def test_a_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(stored.DEMO, tmp_path / "demo")
    assert stored.locate("~/demo").folder == tmp_path / "demo"


def test_a_name_on_the_hub_is_suggested_as_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NoCheckpoint, match="Hub is hf://facebook/dinov2-small$"):
        stored.read("facebook/dinov2-small")
    for name in ("dinov2-small", "../runs", "/runs/x", "runs/x/checkpoints"):
        with pytest.raises(NoCheckpoint, match="no model to load.$"):
            stored.read(name)
