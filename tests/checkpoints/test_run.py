"""A run saves its checkpoints, and resumes from the latest whole one."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint._src.path import atomicity

from sparse_tube_vit.checkpoints import run as checkpoints
from sparse_tube_vit.checkpoints import stored
from sparse_tube_vit.checkpoints.run import OtherRun, describe_run
from sparse_tube_vit.checkpoints.step import (
    DamagedCheckpoint,
)
from sparse_tube_vit.checkpoints.workdir import UnusableWorkdir
from sparse_tube_vit.config import InvalidConfig, from_json
from sparse_tube_vit.config.schema import SCHEMA, SOURCES, leaves
from sparse_tube_vit.errors import UnwritableOutput
from sparse_tube_vit.models.variants import make_tubes
from sparse_tube_vit.storage import UnreachableStorage
from sparse_tube_vit.training.state import TrainState
from tests import bucket
from tests.checkpoints.written import (
    CLASSES,
    assert_equal,
    make_older,
    rewrite,
    small_state,
)
from tests.tiny import tiny_config


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


#: Keys, or their sections, that do not change what is learnt.
FREE = (
    *("checkpoint.", "compilation_cache.", "data.", "data_dir.", "evaluations."),
    *("evaluate_every_steps.", "loader.", "log_every_steps.", "mesh."),
    *("model.attention.", "model.remat.", "model.scan.", "peak_flops."),
    *("optimizer.accumulate_steps.", "profile_steps."),
)
VALUES = ("other", 2, 3, 0.5, True, False, [0.5, 0.6], ["other"])  # of every type


def other_values(config):
    """Another value for every key of a flat config, such as the key may have."""
    keys, others = dict(leaves(SCHEMA)), {}
    for name, value in config.items():
        path = name.split(".")
        key = SOURCES[path[0]][path[-1]] if path[0] in SOURCES else keys[name]
        for other in (*(key.rule.choices if key.rule else ()), *VALUES):
            with contextlib.suppress(InvalidConfig):
                from_json(unflatten_dict(config | {name: other}, sep="."))
                if other != value:
                    others[name] = other
                    break
    return others


def test_a_run_resumes_if_nothing_has_changed_that_changes_what_is_learnt(small):
    """Each key of the config by itself, and the classes of each head."""
    workdir, run = small
    config = flatten_dict(run["config"], sep=".")
    others = other_values(config)
    assert others.keys() == config.keys()
    writer = checkpoints.Checkpoints(workdir, 3, run)

    def changed(**sections):
        writer.run = run | sections
        with pytest.raises(OtherRun) as error:
            writer.resume(small_state(0))
        return re.findall(r"(?m)^  ([\w.]+): .* then, ", str(error.value))

    free = {k: x for k, x in others.items() if f"{k}.".startswith(FREE)}
    for key in others.keys() - free:
        other = config | {key: others[key]}
        assert changed(config=unflatten_dict(other, sep=".")) == [key]
    for head, names in run["class_names"].items():
        other = run["class_names"] | {head: [*names[:-1], "other"]}
        assert changed(class_names=other) == [head]
    writer.run = run | {"config": unflatten_dict(config | free, sep=".")}
    assert writer.resume(small_state(0)).step == 7
    writer.close()


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


def test_a_whole_checkpoint_in_a_bucket_is_resumed_without_orbax_last_file(
    small, monkeypatch
):
    """As where a run was killed just before it."""
    storage = bucket.use(monkeypatch)
    storage.upload(small[0], "killed", "run")
    del storage.objects["killed", "run/checkpoints/7/commit_success.txt"]
    checkpoints.set_damaged_aside("gs://killed/run")
    writer = checkpoints.Checkpoints("gs://killed/run", 3, small[1])
    assert_equal(
        writer.resume(jax.tree.map(jnp.zeros_like, small_state(0))), small_state(7)
    )
    writer.close()


def test_what_was_not_written_to_its_end_is_removed(
    small, tmp_path, monkeypatch, caplog
):
    storage = bucket.use(monkeypatch)
    storage.upload(small[0], "left", "run")
    at = "left", "run/checkpoints/7/_CHECKPOINT_METADATA"
    told = json.loads(storage.objects[at][0])
    storage.put(at, json.dumps(told | {"commit_timestamp_nsecs": None}).encode())
    storage.put(("left", "run/checkpoints/5/_CHECKPOINT_METADATA"), b"{")
    before = storage.names("left", "run/checkpoints/3/")
    checkpoints.remove_unfinished("gs://left/run")
    assert "checkpoints/5 stays as it is" in caplog.text
    assert storage.names("left", "run/checkpoints/5/params/")
    assert not storage.names("left", "run/checkpoints/7/")
    assert storage.names("left", "run/checkpoints/3/") == before
    steps = shutil.copytree(small[0], tmp_path / "run") / "checkpoints"
    for name in ("15", "notes", "15.orbax-checkpoint-tmp"):
        (steps / name / "params").mkdir(parents=True)
    checkpoints.remove_unfinished(tmp_path / "run")
    assert {x.name for x in steps.iterdir()} == {"3", "5", "7", "15", "notes"}
    checkpoints.remove_unfinished(tmp_path / "nowhere")


@pytest.mark.parametrize("status", [403, 401])
@pytest.mark.parametrize(
    "part", ["_CHECKPOINT_METADATA", "run/", "params/", "optimizer/d/"]
)
def test_a_checkpoint_that_a_bucket_does_not_give_stays(
    small, monkeypatch, part, status
):
    """A refusal, as of one minute without rights, is no damage."""
    storage = bucket.use(monkeypatch)
    monkeypatch.setattr(storage, "refusal", status)
    storage.upload(small[0], "refused", "run")
    last = "run/checkpoints/7/"
    before = storage.names("refused", last)
    monkeypatch.setattr(storage, "forbidden", ("refused", last + part))
    with pytest.raises(UnreachableStorage, match="7.* cannot be read: "):
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


def test_a_checkpoint_that_fails_in_the_background_is_told_before_the_next(
    small, tmp_path, monkeypatch
):
    writer = checkpoints.Checkpoints(tmp_path / "run", 3, small[1])
    writer.save(small_state(2))
    writer.check_for_errors()

    async def refuse(_):
        raise OSError("quota exceeded")

    monkeypatch.setattr(atomicity.AtomicRenameTemporaryPath, "finalize", refuse)
    writer.save(small_state(3))
    with pytest.raises(UnwritableOutput, match="run/checkpoints .*: quota exceeded"):
        for _ in range(600):
            writer.check_for_errors()
            time.sleep(0.1)
    writer.close()


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
