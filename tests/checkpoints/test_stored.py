"""Checkpoints and releases, read: whole, from a bucket, damaged, and of others."""

import dataclasses
import json
import os
import shutil
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
from sparse_tube_vit.checkpoints.run import (
    FORMAT,
    DamagedCheckpoint,
    ForeignCheckpoint,
    NewerCheckpoint,
    NoCheckpoint,
    OtherRun,
    UnfinishedCheckpoint,
    describe_run,
)
from sparse_tube_vit.config import from_json
from sparse_tube_vit.errors import UnwritableOutput
from sparse_tube_vit.evaluation import results
from sparse_tube_vit.inference import loaded
from sparse_tube_vit.models.tubevit import init_params, make_model
from sparse_tube_vit.training.state import TrainState
from tests import bucket
from tests.tiny import tiny_config

CLASSES = {"motions": ("left", "right", "up"), "shapes": ("ring", "star")}
MODEL = make_model(
    tiny_config("nowhere"), {head: len(names) for head, names in CLASSES.items()}
)


def write_run(workdir, steps=(3, 5), **said):
    """Checkpoints of random parameters, and of twice these as their average."""
    config = tiny_config("nowhere")
    params = jax.device_get(init_params(MODEL, jax.random.key(0), MODEL.clip))
    run = describe_run(config, CLASSES) | said
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
    assert from_json(found.run["config"]) == tiny_config("nowhere")
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
        assert describe(path) == (of_all.name, of_all.run)
        with pytest.raises(DamagedCheckpoint):
            stored.read(path)
    assert stored.locate(whole, step=3).name == f"step 3 of {whole}"
    (copy / "config.json").unlink()
    (copy / "model.safetensors").touch()
    with pytest.raises(DamagedCheckpoint, match="config.json"):
        stored.locate(copy).read_description()


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
        assert describe(path)[1] == stored.read(path).run
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
    write_run(tmp_path / "newer", format=FORMAT + 1)
    with pytest.raises(NewerCheckpoint, match="Upgrade sparse_tube_vit"):
        stored.read(tmp_path / "newer")
    write_run(tmp_path / "older", steps=(1,))
    said = tmp_path / "older" / "checkpoints" / "1" / "run" / "metadata"
    told = json.loads(said.read_text())
    del told["format"], told["config"]["optimizer"]["first_moment_dtype"]
    said.write_text(json.dumps(told))
    assert loaded.load(tmp_path / "older").step == 1


def test_a_run_resumes_that_was_saved_before_a_key_was_added(copy):
    workdir, step = copy
    said = step / "run" / "metadata"
    told = json.loads(said.read_text())
    del told["format"], told["config"]["optimizer"]["first_moment_dtype"]
    said.write_text(json.dumps(told))
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
    run = describe_run(config, CLASSES)
    writer = checkpoints.Checkpoints(workdir, 2, run)
    with pytest.raises(OtherRun, match="'float32' then, 'bfloat16' now"):
        writer.resume(state)
    writer.close()


def test_nothing_and_things_of_others_are_told_apart(run, tmp_path):
    with pytest.raises(NoCheckpoint, match="is no directory"):
        stored.read(tmp_path / "nowhere")
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


def test_checksums_are_compiled_for_the_first_checkpoint_alone(monkeypatch):
    traced, checksum = [], checkpoints._checksum
    monkeypatch.setattr(
        checkpoints,
        "_checksum",
        lambda x, xp: traced.append(x.shape) or checksum(x, xp),
    )
    for value in (1, 2):
        found = checkpoints._checksums({"params": {"x": jnp.full((3, 5, 7), value)}})
        assert found == {"params/x": 105 * value}
    assert traced == [(3, 5, 7)]


def test_parameters_of_another_model_are_damage(copy):
    workdir, step = copy
    said = step / "run" / "metadata"
    told = json.loads(said.read_text())
    told["config"]["model"]["width"] = 48
    said.write_text(json.dumps(told))
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
    assert found.run == stored.read(workdir).run
    assert (found.step, found.averaged) == (5, False)
    # Any reader of safetensors finds the arrays by their paths.
    with safetensors.safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        x = file.get_tensor("encoder/block_0/attention/query/kernel")
    kernel = params["encoder"]["block_0"]["attention"]["query"]["kernel"]
    np.testing.assert_array_equal(x, kernel.astype(dtype))


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
            (elsewhere, None, "Not measured at step 5"),
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


def no_space(*_):
    raise OSError("no space left")


def test_evaluations_of_before_count_examples_by_another_name(tmp_path):
    (tmp_path / "evaluations").mkdir()
    for i, key in enumerate(("distinct", "examples")):
        path = tmp_path / "evaluations" / f"video_step{i}_2x3.json"
        path.write_text(json.dumps({"step": i, key: 7}))
    found = stored.read_evaluations(tmp_path)
    assert found == {f"video_step{i}_2x3": {"step": i, "examples": 7} for i in (0, 1)}
