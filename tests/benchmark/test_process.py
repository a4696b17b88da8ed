"""Rows of a job: batch sizes, seconds, memory."""

import numpy as np
import pytest

from sparse_tube_vit.benchmark import process
from sparse_tube_vit.benchmark.process import (
    PeakMemory,
    Step,
    measure_step,
    rows,
    sizes_to_try,
)
from tests.benchmark.jobs import make_job


class Clock:
    """A clock that stands still but in `sleep`."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(process, "time", clock)
    return clock


class FakeSteps:
    """Steps of a device that more than `fits` clips do not fit into."""

    def __init__(self, clock, fits, limit=100):
        self.clock, self.fits, self.tried, self.ran = clock, fits, [], {}
        self.fixed_bytes, self.limit_bytes = 20, limit

    def prepare(self, batch):
        self.tried.append(batch)
        if batch > self.fits:
            raise MemoryError("too large\nof many words")

        def run(steps):
            self.ran[batch] = self.ran.get(batch, 0) + steps
            self.clock.sleep(0.01 * steps)

        return Step(run, lambda: self.fixed_bytes + batch)

    def release(self):
        pass


def test_the_largest_batch_is_what_fits(clock):
    # 1 byte a clip, 20 for the state: 92 of 100 bytes leave 72, a multiple of 8.
    assert [*sizes_to_try(8, 28, 20, 100)] == [72, 56, 40, 32]
    assert [*sizes_to_try(72, 92, 20, 100)] == []
    assert [*sizes_to_try(8, None, 20, 100)] == []
    steps = FakeSteps(clock, fits=60)
    small, largest = rows(make_job(small=8, largest=None, seconds=0.1), steps)
    assert steps.tried == [8, 72, 56]
    assert (small["batch"], small["which"], small["memory_bytes"]) == (8, "small", 28)
    assert (largest["batch"], largest["which"]) == (56, "largest")
    assert largest["notes"] == ["72 clips: MemoryError: too large"]
    assert small["least_seconds"] == pytest.approx(0.01)
    assert small["step_seconds"] == pytest.approx(0.01)
    assert small["steps"] + 2 == steps.ran[8] and small["steps"] == 12
    steps = FakeSteps(clock, fits=60, limit=None)
    *_, unknown = rows(make_job(small=8, largest=None), steps)
    assert "give --largest" in unknown["failed"] and steps.tried == [8]
    steps = FakeSteps(clock, fits=60)  # as another implementation has, or less
    *_, given = rows(make_job(small=8, largest=66), steps)
    assert given["batch"] == 56 and steps.tried == [8, 66, 56]
    assert len([*rows(make_job(small=8, largest=0), FakeSteps(clock, 60))]) == 1


@pytest.mark.skipif(PeakMemory().read() is None, reason="only Linux tells")
def test_memory_is_the_most_that_the_process_held_beside_its_libraries():
    """Also what is free again when it is read."""

    def run(steps):
        np.ones(2**27, np.uint8).sum()

    held = PeakMemory().read()
    measured = measure_step(Step(run), 0.01, held)["memory_bytes"]
    assert 0.9 * 2**27 < measured < 1.5 * 2**27
    assert PeakMemory().read() < held + 2**26
    assert measure_step(Step(run), 0.01, None)["memory_bytes"] is None


def test_the_second_run_of_a_long_step_counts(clock):
    ran, takes = [], iter([0.2, 0.06, 0.02])
    step = Step(lambda steps: (ran.append(steps), clock.sleep(next(takes))))
    measured = measure_step(step, 0.01, None)
    assert ran == [1, 1, 1] and measured["steps"] == 2
    assert measured["least_seconds"] == pytest.approx(0.02)
    assert measured["step_seconds"] == pytest.approx((0.02 + 0.06) / 2)
    assert measured["greatest_seconds"] == pytest.approx(0.06)
    assert measured["first_step_seconds"] == pytest.approx(0.2)
