import argparse
import dataclasses
import json
import time

import jax
import pytest

from sparse_tube_vit.benchmark import __main__ as command
from sparse_tube_vit.benchmark import gpu, jax_steps
from sparse_tube_vit.benchmark.gpu_process import Job, Step, rows, sizes_to_try
from sparse_tube_vit.models.variants import VARIANTS

SHAPE = {"variant": "B", "frames": 32, "size": 224, "streams": "video"}
TINY = ["--variants", "Ti", "--frames", "20", "--size", "32", "--small", "2"]


def parse(tmp_path, *arguments):
    parser = argparse.ArgumentParser()
    gpu.add_arguments(parser)
    return parser.parse_args(["--out", str(tmp_path), *arguments])


def make_job(**changes):
    job = Job(
        implementation="ours",
        variant="Ti",
        frames=20,
        size=32,
        streams="joint",
        direction="train",
        small=2,
        largest=3,
        dtype="float32",
        options={},
        seconds=0.0,
    )
    return dataclasses.replace(job, **changes)


class FakeSteps:
    """Steps of a device that more than `fits` clips do not fit into."""

    def __init__(self, fits, limit=100):
        self.fits, self.tried, self.ran = fits, [], {}
        self.fixed_bytes, self.limit_bytes = 20, limit

    def prepare(self, batch):
        self.tried.append(batch)
        if batch > self.fits:
            raise MemoryError("too large\nof many words")

        def run(steps):
            self.ran[batch] = self.ran.get(batch, 0) + steps
            time.sleep(0.01 * steps)

        return Step(run, lambda: self.fixed_bytes + batch)

    def release(self):
        pass


def test_the_largest_batch_is_what_fits():
    # 1 byte a clip, 20 for the state: 92 of 100 bytes leave 72, a multiple of 8.
    assert [*sizes_to_try(8, 28, 20, 100)] == [72, 56, 40, 32]
    assert [*sizes_to_try(72, 92, 20, 100)] == []
    assert [*sizes_to_try(8, None, 20, 100)] == []
    steps = FakeSteps(fits=60)
    small, largest = rows(make_job(small=8, largest=None, seconds=0.1), steps)
    assert steps.tried == [8, 72, 56]
    assert (small["batch"], small["which"], small["memory_bytes"]) == (8, "small", 28)
    assert (largest["batch"], largest["which"]) == (56, "largest")
    assert largest["notes"] == ["72 clips: MemoryError: too large"]
    assert 0.01 <= small["least_seconds"] <= small["step_seconds"] < 0.02
    assert small["steps"] + 2 == steps.ran[8] and 6 <= small["steps"] <= 12
    steps = FakeSteps(fits=60, limit=None)
    *_, unknown = rows(make_job(small=8, largest=None), steps)
    assert "give --largest" in unknown["failed"] and steps.tried == [8]
    steps = FakeSteps(fits=60)  # as another implementation has, or less
    *_, given = rows(make_job(small=8, largest=66), steps)
    assert given["batch"] == 56 and steps.tried == [8, 66, 56]
    assert len([*rows(make_job(small=8, largest=0), FakeSteps(60))]) == 1


@pytest.fixture
def tiny(monkeypatch):
    sizes = {"depth": 1, "width": 48, "mlp_dim": 64, "heads": 2}
    monkeypatch.setitem(VARIANTS, "Ti", sizes)


@pytest.mark.parametrize(
    "direction", [pytest.param("train", marks=pytest.mark.slow), "forward"]
)
def test_our_steps(tiny, direction):
    largest = 3 if direction == "forward" else 0
    job = make_job(direction=direction, streams="video", largest=largest)
    steps = jax_steps.make_steps(job)
    measured = [*rows(job, steps)]
    assert [row["batch"] for row in measured] == [2, 3][: 1 + bool(job.largest)]
    parameters = steps.fixed_bytes // 4
    if direction == "train":
        assert int(steps._state.step) == sum(row["steps"] + 2 for row in measured)
        parameters //= 3  # and two moments
    for row in measured:
        clip = 20 * 32 * 32 * 3
        assert row["memory_bytes"] > 4 * parameters + row["batch"] * clip
        assert row["compile_seconds"] > row["step_seconds"] > 0


@pytest.mark.slow
def test_a_step_that_failed_does_not_keep_the_next_from_training(tiny):
    steps = jax_steps.make_steps(make_job(streams="video"))
    jax.tree.map(lambda x: x.delete(), steps._state)  # it was given away
    steps.prepare(2).run(1)
    assert int(steps._state.step) == 1


def test_flops_of_a_step(tiny):
    """Products counted by hand: 1, 1, 2 and 4 tokens of the four tubes."""
    forward = gpu.job_flops(make_job(direction="forward", streams="video"))
    video = gpu.job_flops(make_job(streams="video"))
    joint = gpu.job_flops(make_job())
    assert video == 3 * forward and joint > video
    d, m, n = 48, 64, 1 + 1 + 2 + 4
    block = n * (4 * d * d + 2 * d * m) + 2 * n * n * d
    stem = 3 * (2 * 512 * 24 + 4 * 256 * 12 + 2 * 576 * 48 + 4 * 256 * 48)
    pooling, head = (2 * n + 2) * d * d + 2 * n * d, d * 400
    assert forward == 2 * (stem + block + pooling + head)


def test_the_most_important_jobs_come_first(tmp_path):
    args = parse(tmp_path)
    jobs = gpu.plan(args)
    names = [job.name for job in jobs]
    assert len({*names}) == len(names) == 2 * (8 + 4) + 6
    assert names[:9] == [
        "ours_B_32x224x224_video_train",
        "pytorch_B_32x224x224_video_train",
        "ours_L_32x224x224_video_train",
        "pytorch_L_32x224x224_video_train",
        "ours_B_64x224x224_joint_train",
        "pytorch_B_64x224x224_joint_train",
        "ours_B_32x224x224_video_forward",
        "pytorch_B_32x224x224_video_forward",
        "videomae_B_16x224x224_video_train",
    ]
    args = parse(tmp_path, *TINY, "--implementations", "pytorch", "--streams", "joint")
    assert [job.name for job in gpu.plan(args)] == [
        "pytorch_Ti_20x32x32_joint_train",
        "pytorch_Ti_20x32x32_video_forward",
    ]


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


def test_implementations_take_turns_at_the_same_batches(tmp_path, capsys):
    args = parse(tmp_path, "--variants", "B", "--frames", "32", "--streams", "video")
    args.implementations, args.rounds = ["ours", "pytorch"], 2
    times = iter([0.4, 0.2])

    def written(job):
        yield device("NVIDIA H200")
        if job.direction == "forward":
            yield {"failed": "ValueError: no"}
            return
        yield measured(8, "small", 0.1 if job.implementation == "ours" else 0.15)
        seconds = next(times) if job.implementation == "ours" else 0.45
        yield measured(job.largest or 344, "largest", seconds)

    processes = FakeProcesses(written)
    results = gpu.Results(tmp_path / "results.json", None)
    gpu.measure_all(gpu.plan(args), args, time.time() + 600, results, processes)
    turns = [(j.implementation, j.direction, j.largest) for j in processes.jobs]
    assert turns == [
        ("ours", "train", None),
        ("pytorch", "train", 344),
        ("ours", "forward", 344),
        ("pytorch", "forward", 344),
        ("ours", "train", 344),  # those that failed are not tried again
        ("pytorch", "train", 344),
    ]
    assert [job.platform for job in processes.jobs] == [None] + 5 * ["gpu"]
    assert not processes.waiting
    ours = results.rows[1]
    assert [round_["step_seconds"] for round_ in ours["rounds"]] == [0.4, 0.2]
    assert ours["clips_per_second"] == pytest.approx(344 / 0.3)
    flops = 344 * gpu.job_flops(make_job(**SHAPE))
    assert ours["mfu"] == pytest.approx(flops / 0.3 / 989e12)
    lines = gpu.table(results.rows).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert [row[5] + row[4] for row in cells] == [
        *("ours8", "ours344", "pytorch8", "pytorch344")
    ]
    assert [row[-1] for row in cells] == ["1.50", "1.50", "", ""]
    assert cells[1][6:9:2] == ["300.00", f"{flops / 0.3e12:.3g}"]
    stored = json.loads((tmp_path / "results.json").read_text())
    assert len(stored["rows"]) == 4 and "no" in [*stored["failed"].values()][0]
    assert "ours_B_32x224x224_video_forward failed" in capsys.readouterr().out


def test_jobs_without_time_are_named(tmp_path):
    args = parse(tmp_path, *TINY, "--implementations", "ours", "--streams", "video")

    def written(job):
        yield device("NVIDIA L4")
        yield measured(2, "small", 0.1)
        yield {"late": True}

    processes = FakeProcesses(written)
    results = gpu.Results(tmp_path / "results.json", None)
    jobs = gpu.plan(args)
    gpu.measure_all(jobs, args, time.time() + 13, results, processes)
    assert len(results.rows) == 2
    assert results.left_out == [f"{job.name} (no time to end it)" for job in jobs]
    late = gpu.Results(tmp_path / "results.json", None)
    gpu.measure_all(jobs, args, time.time() + 5, late, processes)
    assert late.left_out == [job.name for job in jobs] and not late.rows


def test_the_cpu_beside_a_gpu_is_refused(tmp_path, monkeypatch):
    args = parse(tmp_path, *TINY)
    processes = FakeProcesses(lambda job: iter([device("cpu", "cpu")]))
    results = gpu.Results(tmp_path / "results.json", None)
    monkeypatch.setattr(gpu, "has_gpu", lambda: True)
    monkeypatch.delenv("JAX_PLATFORMS")
    with pytest.raises(gpu.NoGpu, match="JAX_PLATFORMS=cpu"):
        gpu.measure_all(gpu.plan(args), args, time.time() + 60, results, processes)
    assert not processes.waiting


def test_a_process_ends_in_time(tmp_path):
    job, started = make_job(), time.time()
    log = tmp_path / "log"
    process = gpu.Process("ours", log, gpu.environment(tmp_path))
    assert [*process.lines(job, 0.3)] == [{"late": True}]
    assert time.time() - started < 10
    process = gpu.Process("none", log, gpu.environment(tmp_path))
    (line,) = process.lines(job, 60)
    assert line["failed"] == "ended with 1: KeyError: 'none'"


@pytest.mark.slow
def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")  # that of the tests
    folders = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    only = ["--implementations", "ours", "--streams", "video", "--rounds", "1"]
    options = ["--largest", "3", "--scan", "--dtype", "float32", "--seconds", "0.1"]
    command.main(["gpu", *TINY, *folders, *only, *options])
    printed = capsys.readouterr().out
    assert "tells nothing of a GPU" in printed
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(row["direction"], row["batch"]) for row in stored["rows"]] == [
        *(("train", 2), ("train", 3), ("forward", 2), ("forward", 3))
    ]
    assert (tmp_path / "out" / "table.md").read_text() in printed
    assert [*(tmp_path / "cache" / "jax").iterdir()]
