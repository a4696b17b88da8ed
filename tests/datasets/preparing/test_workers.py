"""The same data set, whatever process writes it or dies."""

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from sparse_tube_vit.datasets import processes
from sparse_tube_vit.datasets.preparing import plan as planning
from sparse_tube_vit.datasets.preparing import prepare, write
from sparse_tube_vit.distributed import cpu
from sparse_tube_vit.storage import UnreadableFile
from tests.datasets.preparing.conftest import CLIPS, builder
from tests.datasets.written import contents
from tests.processes import alive


def write_and_linger(shard, count):
    """Writes a shard, and is at work until it is killed."""
    write.write_shard(shard, count)
    time.sleep(60)


def test_a_worker_that_is_killed_and_then_the_rest(clips, whole, tmp_path):
    ours = builder(clips, tmp_path)

    def run(plan, function, progress):
        shards = list(planning.unfinished(plan))
        list(processes.run(function, shards, 2, progress))

    def kill_one(more):
        children = multiprocessing.active_children()
        if more and children:
            with contextlib.suppress(
                ProcessLookupError
            ):  # killed before, and dead by now
                os.kill(children[0].pid, signal.SIGKILL)

    killed = functools.partial(run, function=write_and_linger, progress=kill_one)
    with pytest.raises(processes.WorkerDied, match="Run the same command again"):
        write.write_dataset(ours, run=killed)
    assert not multiprocessing.active_children()
    seen = []
    rest = functools.partial(run, function=write.write_shard, progress=seen.append)
    assert write.write_dataset(ours, run=rest)
    assert 0 < sum(seen) <= len(CLIPS)
    assert contents(ours.directory) == whole


def test_a_container_has_a_worker_for_each_core_of_its_quota(
    clips, tmp_path, monkeypatch
):
    workers, run = [], processes.run

    def run_here(function, tasks, number, progress):
        workers.append(number)
        return run(function, tasks, 0, progress)

    monkeypatch.setattr(processes, "run", run_here)
    monkeypatch.setattr(os, "cpu_count", lambda: 112)
    monkeypatch.setattr(cpu, "_quotas", lambda: [1.5])
    prepare.prepare(builder(clips, tmp_path))
    assert workers == [1]


def test_an_error_in_a_worker_ends_the_others(clips, tmp_path):
    ours = builder(clips, tmp_path)

    def run(plan):
        os.remove(clips / CLIPS[1])
        shards = list(planning.unfinished(plan))
        work_for_minutes = [
            dataclasses.replace(shard, name=f"{i}.{shard.name}")
            for i in range(20_000)
            for shard in shards
        ]
        list(processes.run(write.write_shard, work_for_minutes, 2))

    start = time.monotonic()
    with pytest.raises(UnreadableFile, match=f"{CLIPS[1]}: .*No such file"):
        write.write_dataset(ours, run=run)
    assert time.monotonic() - start < 30


@pytest.mark.slow
def test_killed_outright_and_gone_on_with(real_data, tmp_path):
    """As a user does it: kill -9 in the middle, then the same command again."""
    program = [sys.executable, "-m", "sparse_tube_vit.prepare", "ucf101"]
    program += ["--videos", str(real_data / "ucf10" / "videos"), "--workers", "2"]
    program += ["--annotations", str(real_data / "ucf10")]
    program += ["--transcode", "short_side=32,gop=15,crf=40", "--data_dir"]
    subprocess.run([*program, tmp_path / "whole"], check=True, timeout=300)
    killed = subprocess.Popen(
        [*program, tmp_path / "killed"], stderr=subprocess.PIPE, text=True
    )
    directory = pathlib.Path("ucf101", "split1", "1.0.0")
    deadline = time.monotonic() + 300
    while not list((tmp_path / "killed" / directory).glob("preparing.*.csv")):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    workers = children(killed.pid)
    assert len(workers) >= 2
    killed.kill()
    killed.wait()
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, (
            "workers outlive the process that was killed"
        )
        time.sleep(0.02)
    done = subprocess.run(
        [*program, tmp_path / "killed"], stderr=subprocess.PIPE, text=True, check=True
    )
    assert "of 47 shards are there already" in done.stderr
    whole, again = (tmp_path / name / directory for name in ("whole", "killed"))
    assert contents(again) == contents(whole)


def children(pid):
    path = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]
