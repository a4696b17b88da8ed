"""The whole: train, stop, resume. What evaluates is in evaluation/test_evaluator.py."""

import functools
import importlib.metadata
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import jax
import numpy as np
import pytest
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

import sparse_tube_vit
from sparse_tube_vit import train
from sparse_tube_vit.checkpoints import run as run_module
from sparse_tube_vit.checkpoints import workdir as workdirs
from sparse_tube_vit.checkpoints.run import OtherRun
from sparse_tube_vit.checkpoints.step import NoCheckpoint
from sparse_tube_vit.checkpoints.stored import locate
from sparse_tube_vit.config import from_json
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.datasets.reading import UnsupportedDataset
from sparse_tube_vit.distributed import cores, hosts
from sparse_tube_vit.errors import IndivisibleBatch
from sparse_tube_vit.evaluation import evaluator
from sparse_tube_vit.input import pipeline
from sparse_tube_vit.models.tubevit import make_model
from sparse_tube_vit.storage import UnreachableStorage
from sparse_tube_vit.training import signals, undecodable
from sparse_tube_vit.training import step as steps
from sparse_tube_vit.training.batches import InputFailed
from sparse_tube_vit.training.freezing import NewButFrozen
from sparse_tube_vit.training.reporting import PARTS, read_metrics
from sparse_tube_vit.video.limits import UndecodableClip
from tests.tiny import tiny_config


class PowerCut(Exception):
    pass


def cut_power_in(step, monkeypatch):
    """The run dies when it looks at the loss of the step before this one."""
    check_finite = steps.check_finite

    def die(metrics, at):
        check_finite(metrics, at)
        if at == step - 1 and metrics is not None:
            raise PowerCut

    monkeypatch.setattr(train, "check_finite", die)


def assert_bit_identical(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def without_times(lines):
    timed = ("second", "waiting_share")
    return [
        {k: v for k, v in x.items() if not any(t in k for t in timed)} for x in lines
    ]


def test_interrupted_and_resumed_ends_bit_identical(
    finished, data_dir, tmp_path, monkeypatch
):
    workdir, expected = finished
    with monkeypatch.context() as patch:
        cut_power_in(6, patch)  # steps 5 and 6 are lost, and done again
        with pytest.raises(PowerCut):
            train.train(tiny_config(data_dir), tmp_path)
    assert locate(tmp_path).step == 4
    # What is lost is made anew by processes, as where there are cores for them.
    monkeypatch.setattr(cores, "worker_cores", lambda: 3)
    started = []
    monkeypatch.setattr(
        pipeline,
        "iterate",
        lambda batches, loader, where, iterate=pipeline.iterate: (
            started.append((where, loader.workers)) or iterate(batches, loader, where)
        ),
    )
    resumed = train.train(tiny_config(data_dir), tmp_path)
    assert_bit_identical(resumed, expected)
    processes = dict(started)
    assert processes["streams.video"] + processes["streams.image"] == 3
    assert processes["evaluations.video"] == 0  # it is short
    # The metrics of both are those of one run, each step once.
    ours, theirs = (without_times(read_metrics(d)) for d in (tmp_path, workdir))
    assert [x["step"] for x in ours] == [2, 4, 6, 6, 6]
    assert ours == theirs


def test_a_run_with_frozen_layers_resumes_bit_identical(
    finished, data_dir, tmp_path, monkeypatch
):
    def config():
        config = tiny_config(data_dir)
        config.init.weights = str(finished[0])
        config.model.new_layers = 1
        config.optimizer.update(trained_layers=1, layer_decay=0.7, head_steps=3)
        config.mesh.update(data=2, fsdp=2, tensor=2)
        del config.evaluations.video, config.evaluations.image
        return config

    expected = train.train(config(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        cut_power_in(6, patch)
        with pytest.raises(PowerCut):
            train.train(config(), tmp_path / "cut")
    assert_bit_identical(train.train(config(), tmp_path / "cut"), expected)
    read = locate(tmp_path / "cut", 6).read().params
    assert_bit_identical(read, expected.eval_params)
    assert_bit_identical(read["stem"], finished[1].ema["stem"])

    everything = config()
    everything.optimizer.trained_layers = 0
    with pytest.raises(NewButFrozen, match="no encoder/new_block_0/.* keeps from"):
        train.train(everything, tmp_path / "head")


def test_a_run_goes_on_with_other_devices_and_options(
    finished, data_dir, tmp_path, monkeypatch
):
    """From eight devices that share parameters, in a loop over layers, to one."""
    config = tiny_config(data_dir)
    config.mesh.update(data=1, fsdp=8)
    config.model.update(scan=True, remat="full", attention="xla")
    with monkeypatch.context() as patch:
        cut_power_in(6, patch)
        with pytest.raises(PowerCut):
            train.train(config, tmp_path)
    assert locate(tmp_path).step == 4
    one = functools.partial(train.sharding.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(train.sharding, "make_mesh", one)
    state = train.train(tiny_config(data_dir), tmp_path)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state, finished[1]
    )
    # The checkpoint of the eight and that of the one are of the same form.
    ours, theirs = (locate(tmp_path, step).read().params for step in (4, 6))
    assert jax.tree.map(np.shape, ours) == jax.tree.map(np.shape, theirs)


def test_the_next_batch_is_on_its_way_before_a_step_is_looked_at(
    finished, data_dir, tmp_path, monkeypatch
):
    events = []

    def told(name, function):
        return lambda *args: events.append(name) or function(*args)

    for owner, name in (
        (train.sharding, "to_devices"),
        (train.Program, "train_step"),
        (train, "check_finite"),
    ):
        monkeypatch.setattr(owner, name, told(name, getattr(owner, name)))
    config = tiny_config(data_dir)
    config.update(total_steps=3, log_every_steps=10)
    for name in tuple(config.evaluations):
        del config.evaluations[name]
    config.checkpoint.every_steps = 10
    train.train(config, tmp_path)
    ahead = ["train_step", "to_devices", "check_finite"]
    assert events[:7] == ["to_devices", *ahead, *ahead]
    assert Counter(events)["to_devices"] == 3  # and none that no step takes


def test_programs_are_kept_where_the_config_says(data_dir, tmp_path, monkeypatch):
    def cut_power(*_, **__):
        raise PowerCut  # once the first program, that of the parameters, has run

    before = jax.config.jax_compilation_cache_dir
    jax.jit(lambda x: x + 1)(0)  # jax has opened another directory by then
    config = tiny_config(data_dir)
    config.compilation_cache = str(tmp_path / "cache")
    del config.streams.video, config.evaluations.video, config.evaluations.image
    monkeypatch.setattr(train, "Reporter", cut_power)
    try:
        with pytest.raises(PowerCut):
            train.train(config, tmp_path)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
    kept = [path.name for path in (tmp_path / "cache").iterdir()]
    assert any(re.fullmatch("jit_init-.*-cache", name) for name in kept), kept


@pytest.mark.slow
def test_another_seed_is_another_run(finished, data_dir, tmp_path):
    config = tiny_config(data_dir)
    config.seed = 1
    config.total_steps = 3
    state = train.train(config, tmp_path)
    kernel = state.params["stem"]["tube_0"]["kernel"]
    assert not np.array_equal(kernel, finished[1].params["stem"]["tube_0"]["kernel"])


def test_a_finished_run_is_not_trained_and_makes_the_results_that_it_lacks(
    finished, data_dir, monkeypatch
):
    workdir, expected = finished
    before = (workdir / "checkpoints" / "6").stat().st_mtime_ns
    lines, evaluated = read_metrics(workdir), []
    result = workdir / "evaluations" / "video_step6_2x3.json"
    result.unlink()  # as if the run had been stopped in its last evaluation
    run = evaluator.Evaluator.run
    monkeypatch.setattr(
        evaluator.Evaluator,
        "run",
        lambda self, *options: evaluated.append(self.name) or run(self, *options),
    )
    for _ in range(2):
        assert_bit_identical(train.train(tiny_config(data_dir), workdir), expected)
    assert (workdir / "checkpoints" / "6").stat().st_mtime_ns == before
    assert result.exists() and read_metrics(workdir) == lines
    assert evaluated == ["video"]


def test_evaluations_without_result_or_metrics_are_unfinished(
    finished, tmp_path, monkeypatch
):
    workdir = epath.Path(shutil.copytree(finished[0], tmp_path / "run"))
    run = locate(workdir, 6).read_description()
    config, names = from_json(run["config"]), run["class_names"]
    model = make_model(config, {head: len(classes) for head, classes in names.items()})

    def unfinished(step=6):
        evaluations = evaluator.prepare(config, names)
        left = train.unfinished(evaluations, model, workdir, step)
        return [evaluation.name for evaluation in left]

    assert unfinished() == [] and unfinished(step=4) == ["image", "video"]
    with monkeypatch.context() as patch:  # another host, which goes by the first
        patch.setattr(jax, "process_index", lambda: 1)
        patch.setattr(hosts, "gather", lambda key, mine: ['["image"]', mine])
        assert unfinished() == ["image"]
    config.evaluations.video.spatial_views = 1  # which may change in a run
    assert unfinished() == ["video"]
    metrics = workdir / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(x for x in lines if "evaluation/image/" not in x))
    assert unfinished() == ["image", "video"]


def test_the_last_checkpoints_are_kept_with_config_classes_and_versions(finished):
    workdir, state = finished
    directory = workdir / "checkpoints"
    assert sorted(p.name for p in directory.iterdir()) == ["4", "6"]
    run = locate(workdir, 6).read_description()
    assert run["config"]["streams"]["video"]["dataset"] == "moving_shapes/videos"
    assert run["class_names"]["shapes"][:2] == ["circle", "square"]
    assert len(run["class_names"]["motions"]) == 24
    assert run["versions"]["jax"] == jax.__version__
    assert run["versions"]["sparse_tube_vit"] == sparse_tube_vit.__version__
    assert_bit_identical(locate(workdir, 6).read().params, state.ema)


def test_a_run_does_not_go_on_with_data_that_was_prepared_again(
    finished, data_dir, tmp_path
):
    def copy(name):
        config = tiny_config(shutil.copytree(data_dir, tmp_path / name))
        (manifest,) = tmp_path.glob(f"{name}/moving_shapes/videos/*/manifest.csv")
        return config, manifest

    config, manifest = copy("elsewhere")
    train.train(config, finished[0])
    manifest.write_text(manifest.read_text() + "train,one more,0,,,,ok\n")
    with pytest.raises(OtherRun, match=r"streams.video.manifest: '\w+' then, '\w+'"):
        train.train(config, finished[0])


def test_a_run_does_not_go_on_with_another_version_of_its_data(
    finished, data_dir, monkeypatch
):
    fingerprint = reading.Split.fingerprint
    monkeypatch.setattr(
        reading.Split,
        "fingerprint",
        lambda split: fingerprint(split) | {"version": "5.2.0"},
    )
    with pytest.raises(OtherRun, match=r"streams.video.version: '1.*' then, '5.2.0'"):
        train.train(tiny_config(data_dir), finished[0])
    read = run_module.restore_description

    def older(root):  # which do not tell the version
        description = read(root)
        for data in description["data"].values():
            del data["version"]
        return description

    monkeypatch.setattr(run_module, "restore_description", older)
    assert train.train(tiny_config(data_dir), finished[0]).step == 6


def test_a_run_that_goes_on_with_other_packages_says_so(
    finished, data_dir, monkeypatch, caplog
):
    train.train(tiny_config(data_dir), finished[0])
    assert "other packages" not in caplog.text
    read = run_module.restore_description

    def older(root):
        description = read(root)
        description["versions"] |= {"grain": "0.0.1", "left": "1"}
        description["versions"]["sparse_tube_vit"] = "not installed"  # before 2026-12
        return description

    monkeypatch.setattr(run_module, "restore_description", older)
    train.train(tiny_config(data_dir), finished[0])
    grain = importlib.metadata.version("grain")
    assert f"would have been: grain 0.0.1 then, {grain} now\n" in caplog.text


def test_a_work_directory_of_another_config_is_refused(finished, data_dir):
    config = tiny_config(data_dir)
    config.optimizer.learning_rate = 0.5
    config.streams.video.mixup = 0.0
    with pytest.raises(OtherRun) as error:
        train.train(config, finished[0])
    assert "optimizer.learning_rate: 0.001 then, 0.5 now" in str(error.value)
    assert "streams.video.mixup: 0.2 then, 0.0 now" in str(error.value)


@pytest.mark.smoke
def test_metrics_tell_of_both_streams_and_of_speed(finished):
    workdir, _ = finished
    lines = read_metrics(workdir)
    training = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in training] == [2, 4, 6]
    for name in ("video/loss", "image/loss", "video/accuracy", "gradient_norm"):
        assert all(np.isfinite(line[f"train/{name}"]) for line in training)
    parts = training[-1]
    total = parts["train/video/loss"] + parts["train/image/loss"]
    np.testing.assert_allclose(parts["train/loss"], total, rtol=1e-5)
    assert 0 <= parts["train/waiting_share"] <= 1
    spent = {part: parts[f"train/seconds/{part}"] for part in PARTS}
    # Since step 4: two steps, and the evaluations of none.
    assert spent["step"] > 0 and spent["checkpoint"] > 0 and spent["evaluation"] == 0
    training = spent["input"] + spent["step"] + spent["logging"]
    seconds = parts["train/step_seconds"]
    np.testing.assert_allclose(training, 2 * seconds, rtol=1e-6)
    for name in ("video", "image"):
        speed = parts[f"train/{name}/examples_per_second"]
        np.testing.assert_allclose(speed, 8 / seconds, rtol=1e-6)
    assert parts["train/flops_per_second_per_device"] > 0
    absent = ("mfu", "device_bytes", "predicted")  # on a CPU
    assert not [name for name in parts if any(x in name for x in absent)]
    assert list(workdir.glob("events.out.tfevents.*"))
    assert "encoder/block_0/mlp/up/kernel" in (workdir / "parameters.txt").read_text()


def test_what_does_not_decode_stays_counted_after_a_resume(
    data_dir, tmp_path, monkeypatch
):
    """An epoch of the videos is the six steps of a run: each is met once."""
    config = tiny_config(data_dir)
    del config.evaluations.video, config.evaluations.image
    config.loader.max_undecodable = 0.1
    split = reading.open_split("moving_shapes/videos", "train", data_dir, "video")
    read, met = pipeline.TrainingExample.read, []

    def damaged(self, encoded, rng):
        if self.kind == "video":
            met.append(encoded)
            if encoded == met[0]:
                raise UndecodableClip("cut short")
        return read(self, encoded, rng)

    monkeypatch.setattr(pipeline.TrainingExample, "read", damaged)
    with monkeypatch.context() as patch:
        cut_power_in(5, patch)
        with pytest.raises(PowerCut):
            train.train(config, tmp_path)
    first = next(r["id"] for r in split if r["video"] == met[0])
    assert [*json.loads((tmp_path / "undecodable.json").read_text())["video"]] == [
        first
    ]
    train.train(config, tmp_path)
    assert read_metrics(tmp_path)[-1]["train/video/undecodable"] == 1


@pytest.mark.parametrize("step", [3, 6])
def test_the_step_at_which_too_much_does_not_decode_is_saved(
    step, data_dir, tmp_path, monkeypatch
):
    """Whoever allows more, later, goes on from there."""
    config = tiny_config(data_dir)
    del config.evaluations.video, config.evaluations.image
    config.checkpoint.every_steps = 100
    note, counted = undecodable.Undecodable.note, []

    def note_one(self, found, at):
        counted.append(at)
        return note(self, found, at)

    receive = hosts.HostMessages.receive

    def receive_more(self):
        messages = receive(self)
        if self._count == step and not counted:
            found = {"video": {"clip": "cut short"}}
            messages = [{"stop": False, "failed": "", "undecodable": found}]
        return messages

    monkeypatch.setattr(undecodable.Undecodable, "note", note_one)
    monkeypatch.setattr(hosts.HostMessages, "receive", receive_more)
    wrong = f"1 of the 48 examples .*\nStep {step} is saved in "
    with pytest.raises(undecodable.TooManyUndecodable, match=f"(?s){wrong}"):
        train.train(config, tmp_path)
    assert counted == [step] and locate(tmp_path).step == step
    with pytest.raises(undecodable.TooManyUndecodable, match="or allow more"):
        train.train(config, tmp_path)
    config.loader.max_undecodable = 0.1
    assert train.train(config, tmp_path).step == 6


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(data_dir, tmp_path):
    config = tiny_config(data_dir)
    config.optimizer.update(learning_rate=1e30, clip_norm=0.0)
    with pytest.raises(steps.NonFiniteLoss, match="at step [34]"):
        train.train(config, tmp_path)
    # Nothing of it is saved: the last checkpoint is a good one.
    step = locate(tmp_path).step
    params = locate(tmp_path, step).read().params
    assert step <= 2 and all(np.isfinite(x).all() for x in jax.tree.leaves(params))


def test_no_checkpoint_is_a_named_error(tmp_path):
    with pytest.raises(NoCheckpoint, match="sparse-tube-vit train"):
        locate(tmp_path)


def test_a_gradient_that_is_not_finite_stops_the_run_too():
    fine = {"loss": 1.0, "gradient_norm": 2.0}
    steps.check_finite(fine, 3)
    with pytest.raises(steps.NonFiniteLoss, match="gradient_norm is nan at step 3"):
        steps.check_finite(fine | {"gradient_norm": np.nan}, 3)


def test_a_signal_saves_the_step_and_the_run_goes_on_from_there(
    finished, data_dir, tmp_path, monkeypatch
):
    dispatched = train.Reporter.dispatched

    def send_signal(self, metrics):
        dispatched(self, metrics)
        sent.append(metrics)
        if len(sent) == 2:
            signal.raise_signal(signal.SIGTERM)

    sent = []
    with monkeypatch.context() as patch:
        patch.setattr(train.Reporter, "dispatched", send_signal)
        with pytest.raises(signals.Interrupted, match="signal. Step 3 is saved"):
            train.train(tiny_config(data_dir), tmp_path)
    assert locate(tmp_path).step == 3
    assert_bit_identical(train.train(tiny_config(data_dir), tmp_path), finished[1])


def test_a_signal_ends_an_evaluation_which_is_done_again(
    finished, data_dir, tmp_path, monkeypatch
):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(workdir / "evaluations")
    shutil.rmtree(workdir / "checkpoints" / "6")
    send = hosts.HostMessages.send

    def send_signal(self, **message):
        if [*message] == ["stop"]:  # not with the batches of a step
            signal.raise_signal(signal.SIGTERM)
            monkeypatch.undo()
        send(self, **message)

    monkeypatch.setattr(hosts.HostMessages, "send", send_signal)
    with pytest.raises(signals.Interrupted, match="before the evaluation is saved"):
        train.train(tiny_config(data_dir), workdir)
    assert not list(workdir.glob("evaluations/video*"))
    train.train(tiny_config(data_dir), workdir)
    assert list(workdir.glob("evaluations/video*.json"))
    ours, theirs = (without_times(read_metrics(d)) for d in (workdir, finished[0]))
    assert ours == theirs


def test_a_worker_that_dies_is_named_once_the_state_is_saved(
    finished, data_dir, tmp_path, monkeypatch
):
    dispatched, killed = train.Reporter.dispatched, []

    def kill_worker(self, metrics):
        dispatched(self, metrics)
        if not killed:
            killed.extend(multiprocessing.active_children())
            os.kill(killed[0].pid, signal.SIGKILL)

    config = tiny_config(data_dir)
    config.loader.update(workers=1, prefetch=1)
    with monkeypatch.context() as patch:
        patch.setattr(train.Reporter, "dispatched", kill_worker)
        with pytest.raises(InputFailed, match=r"SIGKILL.*\nStep \d is saved") as error:
            train.train(config, tmp_path)
    step = int(re.search(r"Step (\d)", str(error.value))[1])
    assert locate(tmp_path).step == step < 6
    assert_bit_identical(train.train(tiny_config(data_dir), tmp_path), finished[1])


def test_storage_that_does_not_answer_once_costs_no_step(
    finished, data_dir, tmp_path, monkeypatch
):
    take, read = train.TrainingBatches.take, reading.Split.read
    taken, refused = [], []

    def count(self):
        taken.append(0)
        return take(self)

    def refuse_once(self, index):  # each of both
        if len(taken) == 2 and self.name not in refused:
            refused.append(self.name)
            raise UnreachableStorage("The disk does not answer.")
        return read(self, index)

    config = tiny_config(data_dir)
    config.loader.update(workers=0, prefetch=1)
    with monkeypatch.context() as patch:
        patch.setattr(train.TrainingBatches, "take", count)
        patch.setattr(reading.Split, "read", refuse_once)
        with pytest.raises(InputFailed, match=r"not answer\.\nStep \d is saved") as e:
            train.train(config, tmp_path)
    step = int(re.search(r"Step (\d)", str(e.value))[1])
    assert len(refused) == 2 and locate(tmp_path).step == step < 6
    assert_bit_identical(train.train(tiny_config(data_dir), tmp_path), finished[1])


def test_what_is_found_before_anything_is_compiled(data_dir, tmp_path):
    config = tiny_config(data_dir)
    config.evaluations.video.batch_size = 6
    with pytest.raises(IndivisibleBatch, match="evaluations.video.batch_size 6"):
        train.train(config, tmp_path)
    config = tiny_config(data_dir)
    config.streams.image.kind = "video"
    with pytest.raises(UnsupportedDataset, match="holds images; .* 'video'"):
        train.train(config, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(workdirs.UnusableWorkdir, match="file cannot be made"):
        train.train(tiny_config(data_dir), tmp_path / "file")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "checkpoints").touch()  # root may write everywhere else
    with pytest.raises(
        workdirs.UnusableWorkdir, match="there/checkpoints cannot be made"
    ):
        train.train(tiny_config(data_dir), tmp_path / "there")


def test_a_work_directory_that_takes_no_more_is_found_before_the_first_step(
    data_dir, tmp_path
):
    (tmp_path / "checkpoints").mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # as a full disk
    try:
        with pytest.raises(workdirs.UnusableWorkdir, match=f"{tmp_path} cannot be "):
            train.train(tiny_config(data_dir), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def one_still_step_from(source, data_dir):
    """A run whose only step leaves the parameters as they are."""
    config = tiny_config(data_dir)
    config.init.weights = str(source)
    config.total_steps = 1
    config.optimizer.update(learning_rate=1e-12, warmup_steps=0)
    config.model.new_layers = 1
    del config.evaluations.image, config.evaluations.video
    config.streams.image.head = "figures"
    return config


def test_a_run_starts_from_another(finished, data_dir, tmp_path, caplog):
    source = shutil.copytree(finished[0], tmp_path / "source")
    config = one_still_step_from(source, data_dir)
    with caplog.at_level("INFO", "sparse_tube_vit"):
        state = train.train(config, tmp_path / "run")
    ours, theirs = jax.device_get((state.params, finished[1].ema))
    np.testing.assert_allclose(ours.pop("head_figures")["kernel"], 0, atol=1e-7)
    assert "new_block_0" in ours["encoder"] and "head_shapes" in theirs
    del ours["encoder"]["new_block_0"], theirs["head_shapes"]
    assert_close = functools.partial(np.testing.assert_allclose, atol=1e-7)
    jax.tree.map(assert_close, ours, theirs)
    (report,) = [m for m in caplog.messages if m.startswith("Parameters from step 6")]
    compiling = [m.split(" in ")[0] for m in caplog.messages if "Compil" in m]
    assert compiling[:2] == ["Compiling the training step ...", "Compiled"]
    for line in (
        "  loaded   stem/tube_0  kernel (4, 4, 4, 3, 24), bias (24,)",
        "  new      head_figures  kernel (24, 6), bias (6,)",
        "  dropped  head_shapes  kernel (24, 6), bias (6,): there is no such head here",
        "  note     model.new_layers was 0 there, 1 here",
    ):
        assert line in report.splitlines(), report
    assert "new      encoder/new_block_0/mlp/up" in report

    # To go on it needs the other run no more.
    shutil.rmtree(source)
    assert_bit_identical(train.train(config, tmp_path / "run"), state)
    with pytest.raises(NoCheckpoint, match="source is no directory: there is no model"):
        train.train(config, tmp_path / "other")


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_resumes(data_dir, tmp_path):
    (tmp_path / "tiny.py").write_text(
        "from tests.tiny import tiny_config\n"
        "def get_config():\n"
        f"    config = tiny_config({str(data_dir)!r})\n"
        "    config.total_steps = 3000\n"
        "    config.checkpoint.every_steps = 100000\n"
        "    return config\n"
    )
    command = [sys.executable, "-m", "sparse_tube_vit.train", "--config"]
    command += [str(tmp_path / "tiny.py"), "--workdir", str(tmp_path / "run")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "step 4 of" in line:
                process.terminate()
                break
        rest = process.stderr.read()
        assert process.wait(120) == 1
    assert "Interrupted: Stopped by a signal" in rest and "Traceback" not in rest
    step = locate(tmp_path / "run").step
    assert step >= 4
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        started = time.monotonic()
        for line in process.stderr:
            if f"Resumed from step {step}" in line:
                break
            assert time.monotonic() - started < 120
        process.kill()
