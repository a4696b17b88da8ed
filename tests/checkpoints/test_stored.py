"""Checkpoints and releases, read: whole, from a bucket, damaged, and of others."""

import dataclasses
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors

from sparse_tube_vit import release as command
from sparse_tube_vit.checkpoints import pretrained, release, stored
from sparse_tube_vit.checkpoints import run as checkpoints
from sparse_tube_vit.checkpoints import step as one_step
from sparse_tube_vit.checkpoints.run import OtherRun, describe_run
from sparse_tube_vit.checkpoints.step import (
    FORMAT,
    DamagedCheckpoint,
    ForeignCheckpoint,
    NewerCheckpoint,
    NoCheckpoint,
    UnfinishedCheckpoint,
)
from sparse_tube_vit.checkpoints.workdir import UnusableWorkdir
from sparse_tube_vit.config import from_json
from sparse_tube_vit.datasets.reading import DatasetNotPrepared
from sparse_tube_vit.errors import TubeViTError, UnwritableOutput
from sparse_tube_vit.evaluation import evaluator, results
from sparse_tube_vit.inference import loaded
from sparse_tube_vit.models.tubevit import init_params, make_model
from sparse_tube_vit.models.variants import make_tubes
from sparse_tube_vit.storage import UnreachableStorage, remove_leftovers
from sparse_tube_vit.training.state import TrainState
from tests import bucket
from tests.tiny import tiny_config

CLASSES = {"motions": ("left", "right", "up"), "shapes": ("ring", "star")}
MODEL = make_model(
    tiny_config("nowhere"), {head: len(names) for head, names in CLASSES.items()}
)


def write_run(workdir, steps=(3, 5)):
    """Checkpoints of random parameters, and of twice these as their average."""
    config = tiny_config("nowhere")
    params = jax.device_get(init_params(MODEL, jax.random.key(0), MODEL.clip))
    run = describe_run(config, CLASSES)
    writer = checkpoints.Checkpoints(workdir, 2, run)
    ema = jax.tree.map(lambda x: 2 * x, params)
    for step in steps:
        optimizer = {"count": jnp.int32(step)}
        writer.save(TrainState(jnp.int32(step), params, optimizer, ema))
    writer.close()
    return params


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(work directory, parameters) of a run with steps 3 and 5."""
    workdir = tmp_path_factory.mktemp("saved") / "run"
    return workdir, write_run(workdir)


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the work directory, to be damaged, and of its last step."""
    workdir = shutil.copytree(run[0], tmp_path / "run")
    return workdir, workdir / "checkpoints" / "5"


@pytest.fixture(scope="module")
def released(run, tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "release"
    release.release(run[0], directory)
    return directory


def rewrite(step, change):
    """Changes a step's description, as of before it had a checksum."""
    file = step / "run" / "metadata"
    described = json.loads(file.read_text())
    del described["checksum"]
    change(described)
    file.write_text(json.dumps(described))


def make_older(described):
    del described["format"], described["config"]["optimizer"]["first_moment_dtype"]


def describe(path, step=None):
    source = stored.locate(path, step)
    return source.name, source.read_description()


def assert_equal(a, b, times=1):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, times * y), a, b)


def test_reads_the_latest_or_one_step_averaged_or_not(run):
    workdir, params = run
    found = stored.read(workdir)
    assert (found.step, found.averaged) == (5, True)
    assert found.name == f"step 5 of {workdir}"
    assert_equal(found.params, params, 2)
    assert from_json(found.description["config"]) == tiny_config("nowhere")
    found = stored.read(str(workdir), step=3, ema=False)
    assert (found.step, found.averaged) == (3, False)
    assert_equal(found.params, params)
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
    assert_equal(stored.read(url, step=3).params, params, 2)
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


def test_formats_before_the_first_are_read_and_newer_ones_are_not(tmp_path):
    write_run(tmp_path / "newer", steps=(1,))
    newer = tmp_path / "newer" / "checkpoints" / "1"
    rewrite(newer, lambda described: described.update(format=FORMAT + 1))
    with pytest.raises(NewerCheckpoint, match="Upgrade sparse_tube_vit"):
        stored.read(tmp_path / "newer")
    write_run(tmp_path / "older", steps=(1,))
    rewrite(tmp_path / "older" / "checkpoints" / "1", make_older)
    assert loaded.load(tmp_path / "older").step == 1


def test_a_run_resumes_that_was_saved_before_a_key_was_added(copy):
    workdir, step = copy
    rewrite(step, make_older)
    empty = jax.tree.map(jnp.zeros_like, stored.read(workdir).params)
    state = TrainState(jnp.int32(0), empty, {"count": jnp.int32(0)}, empty)
    config = tiny_config("nowhere")
    run = describe_run(config, CLASSES)
    writer = checkpoints.Checkpoints(workdir, 2, run)
    resumed = writer.resume(state)
    assert resumed.step == 5
    assert_equal(resumed.ema, resumed.params, 2)
    writer.close()
    config.optimizer.first_moment_dtype = "bfloat16"  # not what it was trained with
    # The same tubes, with all that is default.
    config.model.tubes = tuple(map(dataclasses.asdict, make_tubes(config.model.tubes)))
    run = describe_run(config, CLASSES)
    writer = checkpoints.Checkpoints(workdir, 2, run)
    with pytest.raises(OtherRun) as error:
        writer.resume(state)
    changed = [line for line in str(error.value).splitlines() if " then, " in line]
    assert changed == ["  optimizer.first_moment_dtype: 'float32' then, 'bfloat16' now"]
    writer.close()


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


@pytest.mark.parametrize("lost", ["run", "params", "ema", "params/manifest.ocdbt"])
def test_a_checkpoint_that_lost_a_part_is_damaged(copy, lost):
    workdir, step = copy
    part = step / lost
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    with pytest.raises(DamagedCheckpoint, match="is damaged"):
        stored.read(workdir)


def test_a_checkpoint_with_a_file_cut_short_is_damaged(copy):
    """Whatever file it is: what is read is right, or an error."""
    workdir, step = copy
    whole, damaged = stored.read(workdir), []
    files = (f for item in ("run", "ema") for f in (step / item).rglob("*"))
    for file in filter(Path.is_file, files):
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2])
        try:
            assert_equal(stored.read(workdir).params, whole.params)
        except DamagedCheckpoint:
            damaged.append(str(file.relative_to(step)))
        file.write_bytes(data)
    (step / "ema" / "_METADATA").unlink()
    with pytest.raises(DamagedCheckpoint, match="ema is damaged: its _METADATA is gon"):
        stored.read(workdir)
    assert {"run/metadata", "ema/manifest.ocdbt", "ema/_METADATA"} <= {*damaged}
    assert any("/d/" in name for name in damaged)


def test_a_checkpoint_with_a_changed_byte_is_damaged_or_gives_the_same(copy):
    workdir, step = copy
    whole, noticed = stored.read(workdir), []
    for file in sorted(step.glob("ema/**/d/*")):
        bytes_ = file.read_bytes()
        middle = len(bytes_) // 2
        file.write_bytes(
            bytes_[:middle] + bytes([bytes_[middle] ^ 1]) + bytes_[middle + 1 :]
        )
        try:
            read = stored.read(workdir)
        except DamagedCheckpoint:
            noticed.append(file)
        else:
            jax.tree.map(np.testing.assert_array_equal, read.params, whole.params)
        file.write_bytes(bytes_)
    assert noticed


def test_a_run_in_a_bucket_has_its_checkpoints_there(monkeypatch):
    """Not below gs: in the current directory, where each host would have its own."""
    used = []
    monkeypatch.setattr(
        checkpoints.ocp, "CheckpointManager", lambda at, **_: used.append(str(at))
    )
    checkpoints.Checkpoints("gs://bucket/run", 1, {})
    checkpoints.Checkpoints("runs/x", 1, {})
    assert used == ["gs://bucket/run/checkpoints", f"{Path.cwd()}/runs/x/checkpoints"]


def test_a_damaged_checkpoint_is_not_resumed_from(tmp_path):
    """Changed, cut short or lost, whatever item it is in."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 64)), jnp.float32)
    moments = (optax.ScaleByAdamState(jnp.int32(7), {"x": 2 * x}, {"x": 3 * x}),)
    state = TrainState(jnp.int32(7), {"x": x}, moments, {"x": 4 * x})
    run = describe_run(tiny_config("nowhere"), CLASSES)

    def resume(workdir):
        writer = checkpoints.Checkpoints(workdir, 1, run)
        try:
            return writer.resume(jax.tree.map(jnp.zeros_like, state))
        finally:
            writer.close()

    writer = checkpoints.Checkpoints(tmp_path / "whole", 1, run)
    writer.save(state)
    writer.close()
    assert_equal(resume(tmp_path / "whole"), state)
    for item in ("params", "optimizer", "ema"):
        workdir = shutil.copytree(tmp_path / "whole", tmp_path / item)
        files = (workdir / "checkpoints" / "7" / item).glob("ocdbt*/d/*")
        file = max(files, key=lambda file: file.stat().st_size)  # of the arrays
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        with pytest.raises(DamagedCheckpoint, match=f"{item}/.* is not what was saved"):
            resume(workdir)
        file.write_bytes(data[: len(data) // 2])
        with pytest.raises(DamagedCheckpoint, match="checkpoints/7 is damaged"):
            resume(workdir)
        shutil.rmtree(workdir / "checkpoints" / "7" / item)
        gone = OtherRun if item == "optimizer" else DamagedCheckpoint
        with pytest.raises(gone):
            resume(workdir)
    checksums = tmp_path / "whole" / "checkpoints" / "7" / "checksums"
    (checksums / "metadata").write_text("[1]")
    with pytest.raises(DamagedCheckpoint, match="checksums is damaged"):
        resume(tmp_path / "whole")
    shutil.rmtree(checksums)
    with pytest.raises(DamagedCheckpoint, match="its checksums are gone"):
        resume(tmp_path / "whole")


def empty(path):
    shutil.rmtree(path)
    path.mkdir()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_arrays(item):
    """Cuts the file that holds the arrays of an item."""
    files = item.glob("ocdbt*/d/*")
    cut(Path(max(files, key=os.path.getsize)))


def replace_by_file(path):
    shutil.rmtree(path)
    path.write_text("")


DAMAGE = {
    "empty": empty,
    "a file": replace_by_file,
    "metadata": lambda step: cut(step / "_CHECKPOINT_METADATA"),
    "no params": lambda step: shutil.rmtree(step / "params"),
    "no optimizer": lambda step: shutil.rmtree(step / "optimizer"),
    "no checksums": lambda step: shutil.rmtree(step / "checksums"),
    "nothing but params": lambda step: [
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in step.iterdir()
        if path.name != "params"
    ],
    "run": lambda step: cut(step / "run" / "metadata"),
    "params": lambda step: cut_arrays(step / "params"),
    "optimizer": lambda step: cut_arrays(step / "optimizer"),
    "ema": lambda step: cut(step / "ema" / "manifest.ocdbt"),
}


def small_state(step):
    x = jnp.asarray(np.random.default_rng(step).normal(size=(64, 64)), jnp.float32)
    moments = (optax.ScaleByAdamState(jnp.int32(step), {"x": 2 * x}, {"x": 3 * x}),)
    return TrainState(jnp.int32(step), {"x": x}, moments, {"x": 4 * x})


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Work directory of three checkpoints, and the description of its run."""
    workdir = tmp_path_factory.mktemp("small") / "run"
    run = describe_run(tiny_config("nowhere"), CLASSES)
    writer = checkpoints.Checkpoints(workdir, 3, run)
    for step in (3, 5, 7):
        writer.save(small_state(step))
    writer.close()
    return workdir, run


def resume(workdir, run):
    """Resumes as training does, and saves step 9."""
    checkpoints.set_damaged_aside(workdir)
    writer = checkpoints.Checkpoints(workdir, 3, run)
    assert writer.resumable
    state = writer.resume(jax.tree.map(jnp.zeros_like, small_state(0)))
    writer.save(small_state(9))
    writer.close()
    return state


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_run_resumes_from_the_latest_whole_checkpoint(
    small, tmp_path, damage, caplog
):
    workdir, run = tmp_path / "run", small[1]
    shutil.copytree(small[0], workdir)
    steps, aside = workdir / "checkpoints", workdir / "damaged"
    DAMAGE[damage](steps / "7")
    assert_equal(resume(workdir, run), small_state(5))
    (message,) = [r.message for r in caplog.records if r.levelname == "ERROR"]
    assert message.startswith(f"{steps / '7'}") and "It is moved to" in message
    assert "goes on from 5" in message and "take another" not in message
    assert [path.name for path in aside.iterdir()] == ["7"]  # not deleted
    assert stored.locate(workdir).step == 9
    assert_equal(stored.read(workdir).params, small_state(9).ema)
    # The same once more: nothing that was moved is overwritten.
    shutil.rmtree(steps / "9")
    (steps / "7").mkdir()
    assert_equal(resume(workdir, run), small_state(5))
    assert sorted(path.name for path in aside.iterdir()) == ["7", "7_2"]


def test_strangers_beside_checkpoints_do_not_stop_a_run(small, tmp_path):
    shutil.copytree(small[0], tmp_path / "run")
    steps = tmp_path / "run" / "checkpoints"
    for name in ("15", "007", "notes", "15.orbax-checkpoint-tmp", "²"):
        (steps / name).mkdir()
    assert_equal(resume(tmp_path / "run", small[1]), small_state(7))
    assert {"007", "notes", "²"} <= {path.name for path in steps.iterdir()}


def test_without_a_whole_checkpoint_all_stay_where_they_are(small, tmp_path):
    shutil.copytree(small[0], tmp_path / "run")
    steps = tmp_path / "run" / "checkpoints"
    for step in ("3", "5", "7"):
        empty(steps / step)
    with pytest.raises(DamagedCheckpoint, match="checkpoints/7 .* empty.* No other"):
        checkpoints.set_damaged_aside(tmp_path / "run")
    assert sorted(path.name for path in steps.iterdir()) == ["3", "5", "7"]
    checkpoints.set_damaged_aside(tmp_path / "nowhere")


@pytest.mark.slow
def test_a_damaged_checkpoint_in_a_bucket_is_moved_aside(small, monkeypatch):
    storage = bucket.use(monkeypatch)
    storage.upload(small[0], "moved", "run")
    last = "run/checkpoints/7/"
    for name in storage.names("moved", f"{last}params/"):
        del storage.objects["moved", name]
    checkpoints.set_damaged_aside("gs://moved/run")
    assert not storage.names("moved", last)
    assert storage.names("moved", "run/damaged/7/optimizer/")
    assert stored.locate("gs://moved/run").step == 5


@pytest.mark.parametrize("part", ["_CHECKPOINT_METADATA", "params/", "optimizer/d/"])
def test_a_checkpoint_that_a_bucket_does_not_give_stays(small, monkeypatch, part):
    """A refusal, as of one minute without rights, is no damage."""
    storage = bucket.use(monkeypatch)
    storage.upload(small[0], "refused", "run")
    last = "run/checkpoints/7/"
    before = storage.names("refused", last)
    monkeypatch.setattr(storage, "forbidden", ("refused", last + part))
    with pytest.raises(UnreachableStorage, match="7.* cannot be read: .*orb"):
        checkpoints.set_damaged_aside("gs://refused/run")
    assert storage.names("refused", last) == before


def test_the_first_checkpoint_of_a_run_is_read_back(small, tmp_path, monkeypatch):
    """As of a storage that loses a part of what is written to it."""
    wait = ocp.CheckpointManager.wait_until_finished
    monkeypatch.setattr(
        ocp.CheckpointManager,
        "wait_until_finished",
        lambda self: (wait(self), [*map(cut_arrays, self.directory.glob("*/ema"))]),
    )
    writer = checkpoints.Checkpoints(tmp_path / "run", 3, small[1])
    with pytest.raises(UnusableWorkdir, match="not give back .*/2/ema is damaged"):
        writer.save(small_state(2))
    monkeypatch.undo()
    writer.close()


@pytest.mark.parametrize("name", ["a b", "ü{x}", "$HOME", "100%", "]", "a:b&c"])
def test_a_work_directory_of_any_name_gives_its_checkpoints_back(small, tmp_path, name):
    workdir = shutil.copytree(small[0], tmp_path / name / "run")
    assert_equal(resume(workdir, small[1]), small_state(7))
    assert_equal(stored.read(workdir).params, small_state(9).ema)


@pytest.mark.parametrize("name", ["lr[0.1]", "a\\b", "a*b", "a?b"])
def test_a_work_directory_named_by_a_pattern_is_refused(small, tmp_path, name):
    with pytest.raises(UnusableWorkdir, match="choose another"):
        checkpoints.Checkpoints(tmp_path / name / "run", 3, small[1])
    assert not [*tmp_path.iterdir()]


def test_a_checkpoint_that_cannot_be_written_is_named(small, tmp_path):
    writer = checkpoints.Checkpoints(tmp_path / "run", 3, small[1])
    writer.save(small_state(2))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "checkpoints").write_text("")
    with pytest.raises(UnwritableOutput, match="run/checkpoints cannot be written"):
        writer.save(small_state(3))
        writer.close()


def change_class(described):
    described["class_names"]["shapes"][0] = "king"


def change_config(described):
    described["config"]["streams"]["video"]["dataset"] = "moving_shapes/video"


@pytest.mark.parametrize("change", [change_class, change_config])
def test_one_changed_letter_of_a_description_is_seen(copy, released, tmp_path, change):
    shutil.copytree(released, tmp_path / "release")
    files = (copy[1] / "run" / "metadata", tmp_path / "release" / "config.json")
    for path, file in zip((copy[0], tmp_path / "release"), files, strict=True):
        described = json.loads(file.read_text())
        change(described)
        file.write_text(json.dumps(described))
        for read in (describe, stored.read, loaded.load):
            with pytest.raises(DamagedCheckpoint, match="class names are not what was"):
                read(path)
        del described["checksum"]  # as of before there was one
        file.write_text(json.dumps(described))
        assert loaded.load(path).step == 5


def put(*keys):
    """Returns a change of a description: a value set, or removed for `...`."""
    *sections, key, value = keys

    def change(described):
        for section in sections:
            described = described[section]
        if value is ...:
            del described[key]
        else:
            described[key] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        put("format", "one"),
        put("format", 1.0),
        put("config", ...),
        put("config", []),
        put("config", "streams", ...),
        put("config", "model", "heads", 0),
        put("config", "model", "heads", -1),
        put("config", "model", "heads", 5),
        put("config", "model", "dtype", "float8"),
        put("config", "model", "depth", 10**6),
        put("config", "model", "depth", 1000),
        put("config", "model", "width", 10**8),
        put("config", "model", "width", 2**16),
        put("config", "model", "tubes", [{"kernel": [1, 1, 1], "stride": [0, 1, 1]}]),
        put("config", "model", "tubes", [{"kernel": [1, 1, 1], "stride": [1e999] * 3}]),
        put("config", "model", "tubes", 7),
        put("config", "model", "tubes", [{"kernel": [1, 1, 1], "stride": [1e300] * 3}]),
        put("config", "model", "depth", None),
        put("config", "model", "width", None),
        put("config", "clip", "size", 10**5),
        put("config", "evaluations", "../../up", {}),
        put("config", "init", "keep_heads", ["gone"]),
        put("config", "init", "keep_heads", [[]]),
        put("config", "init", "keep_heads", None),
        put("config", "evaluations", "image", "head", None),
        put("config", "evaluations", "video", "temporal_views", ""),
        put("class_names", 3),
        put("class_names", {}),
        put("class_names", "shapes", ...),
        put("class_names", "shapes", 3),
        put("class_names", "shapes", {}),
        put("class_names", "shapes", []),
        put("class_names", "shapes", ["ring", 2]),
        put("class_names", "shapes", ["ring", "\ud800"]),
        put("class_names", "a/b", ["ring"]),
        put("class_names", "more", ["ring"]),
        put("versions", None),
        put("release", 3),
        put("release", {}),
        put("release", "step", "5"),
        put("release", "step", ...),
        put("release", "averaged", None),
        put("release", "sha256", 7),
    ],
)
def test_a_mangled_release_is_refused_by_name(released, tmp_path, change):
    """In little time and memory, and not in a trace."""
    shutil.copytree(released, tmp_path / "release")
    file = tmp_path / "release" / "config.json"
    described = json.loads(file.read_text())
    del described["checksum"]
    change(described)
    file.write_text(json.dumps(described))
    begin, (_, limit) = time.monotonic(), resource.getrlimit(resource.RLIMIT_DATA)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (used + 2**32, limit))
    try:
        with pytest.raises(TubeViTError) as error:
            loaded.load(tmp_path / "release")
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    assert time.monotonic() - begin < 10, error
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("text", ["", "[", "[]", "3", "null", "{}", "[" * 100_000])
def test_a_release_without_a_description_is_refused_by_name(released, tmp_path, text):
    shutil.copytree(released, tmp_path / "release")
    (tmp_path / "release" / "config.json").write_text(text)
    with pytest.raises(TubeViTError, match="release"):
        loaded.load(tmp_path / "release")


def test_evaluating_makes_no_data_where_the_model_says(released, tmp_path):
    shutil.copytree(released, tmp_path / "release")
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


def test_checksums_are_compiled_for_the_first_checkpoint_alone(monkeypatch):
    traced, checksum = [], one_step._checksum
    monkeypatch.setattr(
        one_step,
        "_checksum",
        lambda x, xp: traced.append(x.shape) or checksum(x, xp),
    )
    for value in (1, 2):
        found = one_step.checksums_of_items(
            {"params": {"x": jnp.full((3, 5, 7), value)}}
        )
        assert found == {"params/x": 105 * value}
    assert traced == [(3, 5, 7)]


def test_replicas_share_the_writing_of_large_arrays_alone(tmp_path, monkeypatch):
    sliced, slice_in_dim = [], jax.lax.slice_in_dim
    monkeypatch.setattr(
        jax.lax,
        "slice_in_dim",
        lambda x, **where: sliced.append(x.shape) or slice_in_dim(x, **where),
    )
    mesh = jax.sharding.Mesh(jax.devices(), "data")
    on_all = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shapes = {"large": (8, 128, 128), "small": (8, 127, 128)}  # float32: 64 KiB each
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    state = jax.device_put(small_state(1).replace(params=params), on_all)
    writer = checkpoints.Checkpoints(
        tmp_path, 1, describe_run(tiny_config("nowhere"), CLASSES)
    )
    writer.save(state)
    writer.close()
    assert set(sliced) == {shapes["large"]}
    assert_equal(writer.resume(state).params, state.params)


def test_parameters_of_another_model_are_damage(copy):
    workdir, step = copy
    rewrite(step, lambda described: described["config"]["model"].update(width=48))
    with pytest.raises(DamagedCheckpoint, match=r"block_0/.* is \(.*24.*48"):
        loaded.load(workdir)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_release_gives_the_checkpoint_back(run, tmp_path, dtype):
    workdir, params = run
    release.release(workdir, tmp_path / "out", ema=False, dtype=dtype)
    found = stored.read(tmp_path / "out")
    rounded = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), params)
    assert_equal(found.params, rounded)
    # And so it is to a run that starts from it.
    config = tiny_config("nowhere")
    config.init.weights = str(tmp_path / "out")
    given, report = pretrained.initial_params(config, MODEL, params, CLASSES)
    assert_equal(given, rounded)
    assert not report.new and report.source == f"release {tmp_path / 'out'}"
    assert found.description == stored.read(workdir).description
    assert (found.step, found.averaged) == (5, False)
    # Any reader of safetensors finds the arrays by their paths.
    with safetensors.safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        x = file.get_tensor("encoder/block_0/attention/query/kernel")
    kernel = params["encoder"]["block_0"]["attention"]["query"]["kernel"]
    np.testing.assert_array_equal(x, kernel.astype(dtype))


def test_a_release_keeps_scalars(run, tmp_path):
    """Gates and the gain of the positions have no axes."""
    found = stored.read(run[0])
    params = found.params | {"gain": np.float32(0.5)}
    release.write_folder(
        tmp_path / "out", dataclasses.replace(found, params=params), "card"
    )
    assert stored.read(tmp_path / "out").params["gain"].shape == ()


def test_a_model_card_tells_data_steps_and_accuracy_with_its_protocol(copy):
    workdir, _ = copy
    (workdir / "evaluations").mkdir()
    result = results.Accuracy(
        {
            "evaluation": "video",
            **tiny_config("nowhere").evaluations.video,
            "tokens": 8,
            "frames": 4,
            "fps": 8.0,
            "size": 16,
            "step": 5,
        },
        CLASSES["motions"],
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


def test_the_command_writes_a_release(run, tmp_path, capsys):
    options = [f"--workdir={run[0]}", f"--out={tmp_path / 'out'}", "--step=3"]
    command.main(options)
    assert loaded.load(tmp_path / "out").step == 3
    with pytest.raises(SystemExit):
        command.main(options)
    assert "ReleaseExists: " in capsys.readouterr().err


def test_a_run_does_not_put_its_release_over_something_else(copy):
    workdir, _ = copy
    (workdir / "release").mkdir()
    (workdir / "release" / "notes.txt").touch()
    with pytest.raises(release.ReleaseExists, match="Move it, and give the same"):
        release.release_last(workdir)
    shutil.rmtree(workdir / "release")
    for _ in range(2):  # over its own, as after training on
        release.release_last(workdir)
    assert stored.read(workdir / "release").step == 5


def test_a_release_with_a_damaged_file_is_damaged(released, tmp_path):
    for name in ("config.json", "model.safetensors"):
        for how in ("lost", "cut", "changed"):
            broken = shutil.copytree(released, tmp_path / f"{name}.{how}")
            data = bytearray((broken / name).read_bytes())
            data[len(data) // 2] ^= 255
            if how == "lost":
                (broken / name).unlink()
            else:
                cut = data[: len(data) // 2] if how == "cut" else data
                (broken / name).write_bytes(cut)
            with pytest.raises(DamagedCheckpoint):
                stored.read(broken)


def test_a_release_is_written_whole_or_not_at_all(run, tmp_path, monkeypatch):
    found, out = stored.read(run[0]), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(release.Path, "rename", no_space)
        with pytest.raises(UnwritableOutput, match="no space left"):
            release.write_folder(out, found, "card")
    assert not any(tmp_path.iterdir())
    release.write_folder(out, found, "card")
    with pytest.raises(release.ReleaseExists, match="--overwrite"):
        release.write_folder(out, found, "new")
    with monkeypatch.context() as patch:
        patch.setattr(release.Path, "write_text", no_space)
        with pytest.raises(UnwritableOutput):
            release.write_folder(out, found, "new", overwrite=True)
    assert (out / "README.md").read_text() == "card"
    rename = stored.Path.rename

    def fail_last(path, target):
        """The release that was there is away when the new one cannot take its place."""
        if path.name.endswith(".old") or target != out:
            return rename(path, target)
        assert not out.exists()
        no_space()

    with monkeypatch.context() as patch:
        patch.setattr(release.Path, "rename", fail_last)
        with pytest.raises(UnwritableOutput):
            release.write_folder(out, found, "new", overwrite=True)
    assert (out / "README.md").read_text() == "card"
    release.write_folder(out, found, "new", overwrite=True)
    assert (out / "README.md").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(release.ReleaseExists, match="no release. Choose another"):
        release.write_folder(tmp_path / "mine", found, "card", overwrite=True)


# Killed when the release that was there is away, and the new one not in its place.
KILLED = """
import os, pathlib, sys
from sparse_tube_vit.checkpoints import release
workdir, out = sys.argv[1:]
rename = pathlib.Path.rename
def rename_or_die(path, target):
    if os.fspath(target) == out:
        os._exit(9)
    rename(path, target)
pathlib.Path.rename = rename_or_die
release.release(workdir, out, overwrite=True)
"""


def test_a_release_is_put_back_after_a_kill(run, released, tmp_path):
    out = shutil.copytree(released, tmp_path / "out")
    killed = [sys.executable, "-c", KILLED, str(run[0]), str(out)]
    assert subprocess.run(killed).returncode == 9
    remove_leftovers(tmp_path)
    (moved,) = tmp_path.iterdir()  # where nobody overlooks it
    assert re.fullmatch(r"out\..*\.old", moved.name)
    out.mkdir()  # it is no release, so that the one that was moved stays
    with pytest.raises(release.ReleaseExists, match="no release"):
        release.release(run[0], out, overwrite=True)
    assert moved.exists()
    out.rmdir()
    with pytest.raises(release.ReleaseExists, match="--overwrite"):
        release.release(run[0], out)
    for file in released.iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes()
    # Killed a moment later, it has left the one that it replaced.
    shutil.copytree(out, moved)
    release.release(run[0], out, overwrite=True)
    assert [*tmp_path.iterdir()] == [out]


def no_space(*_):
    raise OSError("no space left")
