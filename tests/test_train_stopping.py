"""Signals, dead workers, storage, undecodable clips and infinite losses stop a run."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from sparse_tube_vit import train
from sparse_tube_vit.checkpoints.stored import locate
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.distributed import hosts
from sparse_tube_vit.input import pipeline
from sparse_tube_vit.storage import UnreachableStorage
from sparse_tube_vit.training import signals, undecodable
from sparse_tube_vit.training import step as steps
from sparse_tube_vit.training.batches import InputFailed
from sparse_tube_vit.training.reporting import read_metrics
from sparse_tube_vit.video.limits import UndecodableClip
from tests.interrupted import (
    PowerCut,
    assert_bit_identical,
    cut_power_in,
    without_times,
)
from tests.tiny import tiny_config


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
    with pytest.raises(undecodable.TooManyUndecodable, match="Allow more to go on"):
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
        assert process.wait(120) == 75
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
