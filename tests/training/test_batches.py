"""Batches of a run beside its steps: whether the devices wait for them."""

import dataclasses
import io
import time

import numpy as np
import pytest
from PIL import Image

from sparse_tube_vit.distributed import cores, sharding
from sparse_tube_vit.training.batches import TrainingBatches
from sparse_tube_vit.training.reporting import Reporter, read_metrics
from sparse_tube_vit.training.signals import StopSignals
from tests.tiny import tiny_config

STEP_SECONDS = 0.3
EXAMPLE_SECONDS = {"video": 0.1, "image": 0.01}


@dataclasses.dataclass(frozen=True)
class Slow:
    """A split of one small file, each example of which occupies its worker a while."""

    kind: str
    file: bytes
    seconds: float
    timed: bool = False

    def __len__(self):
        return 50

    def __getitem__(self, index):
        time.sleep(self.seconds)
        return {"id": str(index), "label": index, self.kind: self.file}


class Device:
    """A device that takes `STEP_SECONDS` for a step, one after the other."""

    free = 0.0

    def step(self):
        self.free = max(self.free, time.perf_counter()) + STEP_SECONDS
        return Result(self.free)


@dataclasses.dataclass
class Result:
    done: float

    def block_until_ready(self):
        time.sleep(max(0.0, self.done - time.perf_counter()))


def feed(config, workdir, first_step, steps):
    """Takes steps as training does; returns ids by step, and the share of waiting."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "PNG")
    splits = {
        kind: Slow(kind, file.getvalue(), seconds)
        for kind, seconds in EXAMPLE_SECONDS.items()
    }
    last = first_step + steps
    reporter = Reporter(workdir, first_step, last, first_host=True)
    device, taken, before = Device(), [], Result(0)
    mesh = sharding.make_mesh(config)
    signals = StopSignals()
    with TrainingBatches(
        config, splits, mesh, workdir, first_step, signals, reporter
    ) as batches:
        for step in range(first_step + 1, last + 1):
            taken.append({name: b["label"] for name, b in batches.take().items()})
            result = device.step()
            reporter.dispatched(result)
            if step < last:
                batches.prefetch()
            if step == first_step + 8:
                reporter.exclude_compilation()  # what came before is the start
            before.block_until_ready()
            before = result
            batches.receive()
        reporter.report_step(last, {"loss": 0.0})
    signals.restore()
    reporter.close()
    return taken, read_metrics(workdir)[-1]["train/waiting_share"]


@pytest.mark.slow
def test_devices_wait_no_more_where_there_are_cores(tmp_path, monkeypatch):
    """From one process a stream to as many as there are cores, by what each costs."""
    monkeypatch.setattr(cores, "worker_cores", lambda: 6)

    def batches(workers, first_step, steps):
        config = tiny_config(tmp_path)
        for stream in config.streams.values():
            stream.update(color_jitter=0.0, randaugment_layers=0)
        config.loader.workers = workers
        return feed(config, tmp_path, first_step, steps)

    # A step's videos take 0.8 s of a core, its images 0.08 s.
    few, waiting = batches(1, 0, 14)
    assert waiting > 0.4
    enough, waiting = batches(None, 14, 24)
    assert waiting < 0.05
    # The same batches come from both, and from threads.
    threads, _ = batches(0, 8, 12)
    for ours, theirs in zip(few[8:] + enough[:6], threads, strict=True):
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name])
