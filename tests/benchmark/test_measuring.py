"""Jobs in turns, as time allows, each in a process."""

import argparse
import json
import time

import pytest

from sparse_tube_vit.benchmark import gpu, measuring
from sparse_tube_vit.errors import UnwritableOutput
from tests.benchmark.jobs import TINY, make_job, parse

SHAPE = {"variant": "B", "frames": 32, "size": 224, "streams": "video"}


class FakeProcesses:
    """Processes that write lines given by job; as many seconds pass as they say."""

    def __init__(self, written):
        self.written, self.jobs, self.waiting = written, [], set()

    def __call__(self, job):
        self.waiting.add(job.name)
        process = argparse.Namespace()

        def lines(job, seconds):
            self.waiting.discard(job.name)
            self.jobs.append(job)
            yield from self.written(job)

        process.lines = lines
        process.end = lambda: self.waiting.discard(job.name)
        return process


def device(kind, platform="gpu"):
    return {"device": {"kind": kind, "platform": platform, "versions": {"jax": "1"}}}


def measured(batch, which, seconds):
    return {
        "row": {
            "batch": batch,
            "which": which,
            "step_seconds": seconds,
            "least_seconds": seconds,
            "greatest_seconds": seconds,
            "steps": 6,
            "memory_bytes": 2**30,
            "compile_seconds": 5.0,
            "notes": [],
        }
    }


def test_variables_that_are_set_are_kept(tmp_path, monkeypatch):
    for name in ("CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    found = measuring.environment(tmp_path)
    assert found["CUDA_VISIBLE_DEVICES"] == "0"
    assert found["XLA_CLIENT_MEM_FRACTION"] == "0.92"
    assert found["TRITON_CACHE_DIR"] == str(tmp_path / "triton")
    given = {"CUDA_VISIBLE_DEVICES": "3", "TRITON_CACHE_DIR": "mine"}
    given |= {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    found = measuring.environment(tmp_path)
    assert given.items() <= found.items() and "XLA_CLIENT_MEM_FRACTION" not in found


def test_implementations_take_turns_at_the_same_batches(tmp_path, capsys):
    args = parse(tmp_path, "--variants", "B", "--frames", "32", "--streams", "video")
    args.implementations, args.rounds = ["ours", "pytorch"], 3
    times = iter([0.4, 0.3, 0.1])

    def written(job):
        yield device("NVIDIA H200")
        if job.direction == "forward":
            yield {"failed": "ValueError: no"}
            return
        yield measured(8, "small", 0.1 if job.implementation == "ours" else 0.15)
        seconds = next(times) if job.implementation == "ours" else 0.45
        yield measured(job.largest or 344, "largest", seconds)

    processes = FakeProcesses(written)
    results = measuring.Results(tmp_path / "results.json", None)
    measuring.take_turns(gpu.plan(args), args, time.time() + 600, results, processes)
    turns = [(j.implementation, j.direction, j.largest) for j in processes.jobs]
    assert turns == [
        ("ours", "train", None),
        ("pytorch", "train", 344),
        ("ours", "forward", 344),
        ("pytorch", "forward", 344),
        *(2 * [("ours", "train", 344), ("pytorch", "train", 344)]),
    ]  # those that failed are not tried again
    assert [job.platform for job in processes.jobs] == [None] + 7 * ["gpu"]
    assert not processes.waiting
    ours = results.rows[1]
    assert [round_["step_seconds"] for round_ in ours["rounds"]] == [0.4, 0.3, 0.1]
    assert ours["clips_per_second"] == pytest.approx(344 / 0.3)
    flops = 344 * measuring.job_flops(make_job(**SHAPE))
    assert ours["mfu"] == pytest.approx(flops / 0.3 / 989e12)
    lines = measuring.markdown(gpu.cells(results.rows)).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert [row[5] + row[4] for row in cells] == [
        *("ours8", "ours344", "pytorch8", "pytorch344")
    ]
    assert [row[-1] for row in cells] == ["1.50", "1.50", "", ""]
    assert cells[1][6:9:2] == ["300.00", f"{flops / 0.3e12:.3g}"]
    stored = json.loads((tmp_path / "results.json").read_text())
    assert len(stored["rows"]) == 4 and "no" in [*stored["failed"].values()][0]
    assert "ours_B_32x224x224_video_forward failed" in capsys.readouterr().out


@pytest.mark.parametrize("platform", ["gpu", "cpu"])
def test_the_next_process_imports_beside_a_gpu_alone(platform, tmp_path):
    args = parse(tmp_path, *TINY, "--implementations", "ours", "--rounds", "1")
    beside = []

    def written(job):
        yield device("NVIDIA L4", platform)
        beside.append(len(processes.waiting))
        yield measured(2, "small", 0.1)

    processes = FakeProcesses(written)
    results = measuring.Results(tmp_path / "results.json", None)
    jobs = gpu.plan(args)
    measuring.take_turns(jobs, args, time.time() + 600, results, processes)
    many = len(jobs) - 1 if platform == "gpu" else 0
    assert beside == [1] * many + [0] * (len(jobs) - many)


def test_jobs_without_time_are_named(tmp_path):
    args = parse(tmp_path, *TINY, "--implementations", "ours", "--streams", "video")

    def written(job):
        yield device("NVIDIA L4")
        yield measured(2, "small", 0.1)
        yield {"late": True}

    processes = FakeProcesses(written)
    results = measuring.Results(tmp_path / "results.json", None)
    jobs = gpu.plan(args)
    measuring.take_turns(jobs, args, time.time() + 13, results, processes)
    assert len(results.rows) == 2
    assert results.left_out == [f"{job.name} (no time to end it)" for job in jobs]
    late = measuring.Results(tmp_path / "results.json", None)
    measuring.take_turns(jobs, args, time.time() + 5, late, processes)
    assert late.left_out == [job.name for job in jobs] and not late.rows


def test_the_cpu_beside_a_gpu_is_refused(tmp_path, monkeypatch):
    args = parse(tmp_path, *TINY)
    processes = FakeProcesses(lambda job: iter([device("cpu", "cpu")]))
    results = measuring.Results(tmp_path / "results.json", None)
    monkeypatch.setattr(measuring, "has_gpu", lambda: True)
    monkeypatch.delenv("JAX_PLATFORMS")
    with pytest.raises(measuring.NoGpu, match="JAX_PLATFORMS=cpu"):
        measuring.take_turns(gpu.plan(args), args, time.time() + 60, results, processes)
    assert not processes.waiting


def test_a_process_ends_in_time(tmp_path):
    job, started = make_job(), time.time()
    log = tmp_path / "log"
    process = measuring.Process("ours", log, measuring.environment(tmp_path))
    assert [*process.lines(job, 0.3)] == [{"late": True}]
    assert time.time() - started < 60
    process = measuring.Process("none", log, measuring.environment(tmp_path))
    (line,) = process.lines(job, 60)
    assert line["failed"] == "ended with 1: KeyError: 'none'"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    args = parse(tmp_path / "file" / "out")
    results = measuring.Results(args.out / "results.json", None)
    with pytest.raises(UnwritableOutput, match="--out: .*Not a directory"):
        measuring.measure_jobs([], args, results, gpu.cells)
