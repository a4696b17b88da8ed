"""Worker processes and Apache Beam: the same data set, whatever writes it or dies."""

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

from sparse_tube_vit.datasets.builders import folders
from sparse_tube_vit.datasets.preparing import parallel, processes, write
from sparse_tube_vit.datasets.preparing import plan as planning
from sparse_tube_vit.storage import UnreadableFile
from tests.datasets.builders import official
from tests.datasets.preparing.test_write import contents

CLIPS = [f"train/{label}/{i}.mp4" for label in ("ant", "wolf") for i in range(7)]


@pytest.fixture
def clips(tmp_path):
    """A folder of clips, one of which does not decode."""
    official.write_clips(tmp_path / "clips", *CLIPS)
    (tmp_path / "clips" / CLIPS[0]).write_bytes(b"damaged")
    return tmp_path / "clips"


@pytest.fixture
def whole(clips, tmp_path, monkeypatch):
    """What is to come out: written here, one by one, in several shards."""
    monkeypatch.setitem(planning.SHARD_EXAMPLES, "video", 2)
    ours = builder(clips, tmp_path / "whole")
    assert write.write(ours)
    assert len(list(ours.directory.glob("*-of-00007"))) == 7
    return contents(ours.directory)


def builder(clips, data_dir):
    listing = folders.read_folder(clips, "video")
    return folders.VideoFolder(listing=listing, data_dir=data_dir, config="x")


def test_a_worker_that_is_killed_and_then_the_rest(clips, whole, tmp_path):
    ours = builder(clips, tmp_path)

    def run(plan, progress):
        parallel.in_processes(list(planning.unfinished(plan)), 2, progress)

    def kill_one(more):
        children = multiprocessing.active_children()
        if more and children:
            os.kill(children[0].pid, signal.SIGKILL)

    with pytest.raises(processes.WorkerDied, match="Run the same command again"):
        write.write(ours, run=functools.partial(run, progress=kill_one))
    assert not multiprocessing.active_children()
    seen = []
    assert write.write(ours, run=functools.partial(run, progress=seen.append))
    assert 0 < sum(seen) <= len(CLIPS)
    assert contents(ours.directory) == whole


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
        parallel.in_processes(work_for_minutes, 2, lambda more: None)

    start = time.monotonic()
    with pytest.raises(UnreadableFile, match=f"{CLIPS[1]}: .*No such file"):
        write.write(ours, run=run)
    assert time.monotonic() - start < 30


BEAM = (
    "--runner=DirectRunner --direct_num_workers=2"
    " --direct_running_mode=multi_processing"
)


def test_beam(clips, whole, tmp_path):
    ours = builder(clips, tmp_path)
    assert write.write(ours, run=functools.partial(parallel.on_beam, options=BEAM))
    assert contents(ours.directory) == whole


def test_a_beam_pipeline_that_fails(clips, tmp_path, monkeypatch):
    ours = builder(clips, tmp_path)

    def run(plan):
        os.remove(clips / CLIPS[1])
        parallel.on_beam(plan, BEAM)

    with pytest.raises(parallel.BeamFailed, match=f"UnreadableFile: .*{CLIPS[1]}"):
        write.write(ours, run=run)
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(parallel.NoBeam, match="pip install"):
        parallel.on_beam("plan", "")


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
    while any(os.path.exists(f"/proc/{pid}") for pid in workers):
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


def test_interrupts_are_the_parents_to_heed_from_a_workers_first_moment_on():
    with processes.pool(1) as pool:
        masks = [signal.pthread_sigmask(signal.SIG_BLOCK, [])]
        masks += [pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, []).result()]
        later = pool.submit(signal.getsignal, signal.SIGINT).result()
    # What is blocked when a process starts is so while it imports what it runs.
    assert [signal.SIGINT in mask for mask in masks] == [False, True]
    assert later == signal.SIG_IGN  # those too that start when nothing is blocked
