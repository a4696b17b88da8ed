import logging
import threading

import numpy as np
import pytest

from sparse_tube_vit.training import reporting
from sparse_tube_vit.training.reporting import (
    PARTS,
    DamagedMetrics,
    Stopwatch,
    read_metrics,
)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now

    def go(self, seconds):
        self.now += seconds


class Devices:
    """Stands for jax.block_until_ready: results are there when `finish` says so."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(
            reporting.jax, "block_until_ready", lambda event: event.wait()
        )
        self.pending = []

    def work(self, watch):
        self.pending.append(threading.Event())
        watch.dispatched(self.pending[-1])

    def finish(self, watch):
        """The oldest work is done now."""
        done = watch._done
        self.pending.pop(0).set()
        if not self.pending:
            done.result()  # seen by the thread that waits, at the time of the clock


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def devices(monkeypatch):
    return Devices(monkeypatch)


def test_time_is_split_by_part_and_adds_up(clock):
    watch = Stopwatch(clock)
    clock.go(1)
    with watch.time("input"):
        clock.go(2)
    with watch.time("evaluation"):
        clock.go(4)
        with watch.time("logging"):
            clock.go(8)
        clock.go(16)
    seconds = watch.lap()
    expected = {"step": 1, "input": 2, "evaluation": 20, "logging": 8, "checkpoint": 0}
    assert seconds == expected and set(PARTS) == set(expected)
    assert sum(seconds.values()) == clock.now - 100
    assert sum(watch.lap().values()) == 0  # counted once


def test_reading_while_the_devices_work_is_no_waiting(clock, devices):
    watch = Stopwatch(clock)
    devices.work(watch)
    with watch.time("input"):  # 3 s beside the step, and 2 s in which nothing runs
        clock.go(3)
        devices.finish(watch)
        clock.go(2)
    devices.work(watch)
    with watch.time("input"):  # done before the step is
        clock.go(4)
    clock.go(1)
    devices.finish(watch)
    assert watch.lap() == pytest.approx(
        {"input": 2, "step": 8, "logging": 0, "checkpoint": 0, "evaluation": 0}
    )


def test_work_in_a_queue_keeps_the_devices_busy(clock, devices):
    watch = Stopwatch(clock)
    devices.work(watch)
    devices.work(watch)
    with watch.time("input"):
        clock.go(1)
        devices.finish(watch)  # the first of two
        clock.go(5)
    seconds = watch.lap()  # in the middle of the second
    assert seconds["input"] == 0 and seconds["step"] == 6
    with watch.time("checkpoint"):
        clock.go(1)
        devices.finish(watch)
        clock.go(2)
    seconds = watch.lap()
    assert seconds["step"] == 1 and seconds["checkpoint"] == 2


def test_parts_add_up_whatever_happens(clock, devices):
    rng = np.random.default_rng(0)
    watch, total, begun = Stopwatch(clock), 0.0, clock.now
    for _ in range(200):
        act = rng.choice(["work", "finish", "read", *PARTS])
        if act == "work":
            devices.work(watch)
        elif act == "finish" and devices.pending:
            devices.finish(watch)
        elif act == "read":
            total += sum(watch.lap().values())
        elif act in PARTS:
            with watch.time(act):
                clock.go(rng.exponential())
        clock.go(rng.exponential())
    while devices.pending:
        devices.finish(watch)
    total += sum(watch.lap().values())
    assert total == pytest.approx(clock.now - begun)


class Rates:
    """Rates that show the step time that they are computed of."""

    def rates(self, step, seconds):
        return {"a/examples_per_second": 8 / seconds, "mfu": step}


def test_step_time_is_that_of_training_alone(
    clock, devices, tmp_path, caplog, monkeypatch
):
    """Neither of compilation, nor of checkpoints and evaluation between steps."""
    reporter = reporting.Reporter(tmp_path, 0, 10, True, utilization=Rates())
    reporter._watch.close()
    watch = reporter._watch = Stopwatch(clock)

    def step(seconds):
        devices.pending.append(threading.Event())
        reporter.dispatched(devices.pending[-1])
        clock.go(seconds)
        devices.finish(watch)

    step(100)
    reporter.exclude_compilation()
    for _ in range(2):
        with reporter.time("input"):
            clock.go(0.25)
        step(1.75)
        for part in ("checkpoint", "evaluation"):
            with reporter.time(part):
                clock.go(30)
    with caplog.at_level(logging.INFO, "sparse_tube_vit"):
        reporter.report_step(3, {"loss": 1.0})
    (line,) = read_metrics(tmp_path)
    assert line["train/step_seconds"] == 2
    assert line["train/a/examples_per_second"] == 4 and line["train/mfu"] == 3
    assert line["train/waiting_share"] == pytest.approx(0.125)
    assert "loss 1.000; 2 s a step, 4.0 a/s, MFU 300.0%, 12% waiting" in caplog.text
    assert caplog.text.count("Steps wait for data. More CPU cores help") == 1
    with reporter.time("input"):
        clock.go(1)
    step(1)
    with caplog.at_level(logging.INFO, "sparse_tube_vit"):
        reporter.report_step(4, {"loss": 1.0})
    assert "50% waiting" in caplog.text  # but the advice comes once
    assert caplog.text.count("Steps wait for data") == 1
    assert ("train/a/examples_per_second", 4.0) in {e[1:] for e in events(tmp_path)}
    # The step waits for the slowest of three hosts.
    monkeypatch.setattr(reporting.hosts, "gather", lambda *_: ["0.5", "1.5", "1.0"])
    step(2)
    with caplog.at_level(logging.INFO, "sparse_tube_vit"):
        reporter.report_step(5, {"loss": 1.0})
    assert read_metrics(tmp_path)[-1]["train/waiting_share"] == pytest.approx(0.75)
    assert "75% waiting for data (on host 1)" in caplog.text
    reporter.close()


def test_shares_and_times_as_the_log_tells_them():
    assert reporting._shares({"step": 3.0, "input": 0.99, "logging": 0.01}) == (
        "75% step, 25% input"
    )
    assert reporting.clock_time(3 * 24 * 3600 + 61) == "3 d 00:01:01"


def test_a_line_that_a_killed_run_left_is_left_out(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    whole = [{"step": 1, "train/loss": 2.5}, {"step": 2, "train/loss": 2.25}]
    text = '{"step": 1, "train/loss": 2.5}\n{"step": 2, "train/loss": 2.25}\n'
    for end in range(len(text) + 1):  # wherever it was killed
        path.write_text(text[:end])
        caplog.clear()
        with caplog.at_level(logging.WARNING, "sparse_tube_vit"):
            found = read_metrics(tmp_path)
        # A line that lacks no more than its end is whole.
        assert found == whole[: text[: end + 1].count("\n")]
        cut = bool(end) and "\n" not in (text[end - 1], text[end : end + 1])
        assert bool(caplog.records) == cut
    path.write_text(text[:50])
    read_metrics(tmp_path)
    assert f"{path}:2 is ignored" in caplog.text


@pytest.mark.parametrize("broken", ['{"step": 2, "tra\n', "7\n", "\n", "\udcff\n"])
def test_a_broken_line_is_named(tmp_path, broken):
    path = tmp_path / "metrics.jsonl"
    lines = '{"step": 1}\n' + broken + '{"step": 3}\n'
    path.write_bytes(lines.encode(errors="surrogateescape"))
    with pytest.raises(DamagedMetrics, match=r"metrics.jsonl:2 is no line"):
        read_metrics(tmp_path)


def events(workdir):
    """(step, name, value) of all files of TensorBoard, read by TensorBoard itself."""
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.util import tensor_util

    points = []
    for file in sorted(workdir.glob("events.out.tfevents.*")):
        accumulator = event_accumulator.EventAccumulator(
            str(file), size_guidance={"tensors": 0}
        ).Reload()
        for tag in accumulator.Tags()["tensors"]:
            for event in accumulator.Tensors(tag):
                value = tensor_util.make_ndarray(event.tensor_proto)
                points.append((event.step, tag, float(value)))
    return sorted(points)


def test_a_resumed_run_repeats_no_point(tmp_path):
    """Killed after step 3 and its evaluation, resumed from the checkpoint of step 2."""

    def report(reporter, steps, value):
        for step in steps:
            reporter.write(step, {"train/loss": value})
            reporter.write(step, {"evaluation/video/top1": value})
            reporter.write(step, {"evaluation/other/top1": value})

    first = reporting.Reporter(tmp_path, 0, 4, True)
    report(first, [1, 2, 3], 1.0)
    # Killed: the file ends within a record.
    (file,) = tmp_path.glob("events.out.tfevents.*")
    file.write_bytes(file.read_bytes() + b"cut short")

    second = reporting.Reporter(tmp_path, 2, 4, True, again=["video"])
    report(second, [3, 4], 2.0)
    second.close()
    expected = [(1, 1.0), (3, 2.0), (4, 2.0)]
    expected = [(s, "evaluation/video/top1", x) for s, x in expected]
    for name in ("train/loss", "evaluation/other/top1"):
        expected += [(s, name, x) for s, x in [(1, 1), (2, 1), (3, 2), (4, 2)]]
    assert events(tmp_path) == sorted(expected)
    lines = [
        (x["step"], name, x[name])
        for x in read_metrics(tmp_path)
        for name in x.keys() - {"step"}
    ]
    assert sorted(lines) == sorted(expected)
