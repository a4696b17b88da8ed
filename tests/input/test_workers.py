import dataclasses
import itertools
import logging
import math
import time

import numpy as np
import pytest

from sparse_tube_vit.config import default_config, evaluation, stream
from sparse_tube_vit.distributed.share import Share
from sparse_tube_vit.input import pipeline, workers
from sparse_tube_vit.input.workers import (
    divide,
    evaluation_loader,
    seconds_per_example,
    training_loaders,
)

SOURCE = {"dataset": "d", "head": "h"}


@dataclasses.dataclass(frozen=True)
class Slow:
    """A split of files that do not decode, which take a while to read."""

    kind: str
    seconds: float = 0.0
    length: int = 20
    timed: bool = False
    directory: str = "/data"

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        time.sleep(self.seconds)
        return {"id": str(index), "label": 0, self.kind: b"damaged"}


class Unread(Slow):
    def __getitem__(self, index):
        raise AssertionError("it takes time to start")


@pytest.fixture
def config():
    config = default_config()
    config.clip.update(frames=4, size=8)
    config.streams.video = stream(kind="video", batch_size=16, **SOURCE)
    config.streams.image = stream(kind="image", batch_size=32, **SOURCE)
    return config


def loaders(config, cores, video=None, image=None, hosts=1):
    splits = {
        "video": video or Unread("video"),
        "image": image or Unread("image"),
    }
    splits = {name: splits[name] for name in config.streams}
    return training_loaders(config, splits, cores, Share(0, hosts))


def counts(*args, **options):
    return {name: x.workers for name, x in loaders(*args, **options).items()}


def test_the_slowest_stream_is_as_fast_as_it_can_be():
    rng = np.random.default_rng(0)
    for _ in range(20):
        costs = dict(zip("abc", rng.exponential(size=3) ** 2, strict=True))
        n = rng.integers(3, 12)
        divided = divide(n, costs)
        assert sum(divided.values()) == n and min(divided.values()) >= 1
        best = min(
            max(cost / x for cost, x in zip(costs.values(), parts, strict=True))
            for parts in itertools.product(range(1, n), repeat=3)
            if sum(parts) == n
        )
        assert max(costs[s] / divided[s] for s in costs) == pytest.approx(best)
    assert divide(10, {"video": 256 * 34.5, "image": 256 * 2.3}) == {
        "video": 9,
        "image": 1,
    }


def test_small_machines_keep_threads_and_measure_nothing(config):
    for cores in (0, 1, 2):
        assert counts(config, cores) == {"video": 0, "image": 0}
    del config.streams.image
    assert counts(config, 1) == {"video": 0}
    assert counts(config, 2) == {"video": 2}  # alone, it gets all


def test_cores_are_divided_by_the_measured_cost(config, caplog, monkeypatch):
    assert 0.05 <= workers.stream_seconds(config, "video", Slow("video", 0.05), 1) < 2
    seconds = {"video": 0.0345, "image": 0.0045}
    monkeypatch.setattr(workers, "stream_seconds", lambda c, name, *_: seconds[name])
    caplog.set_level(logging.INFO, "sparse_tube_vit")
    divided = {"video": 6, "image": 2}  # 16 x 34.5 ms and 32 x 4.5 ms a step
    assert counts(config, 8) == divided
    assert "of 8 cores for them: " in caplog.text
    assert "6 video (34.5 ms an example)" in caplog.text
    # On any number of hosts alike: they share every batch.
    assert counts(config, 8, hosts=4) == divided


def test_keys_override_what_is_measured(config):
    config.loader.shares = "video=1, image=3"
    assert counts(config, 8) == {"video": 2, "image": 6}
    config.loader.update(shares="", workers=5)
    assert counts(config, 2) == counts(config, 64) == {"video": 5, "image": 5}
    config.loader.workers = 0
    assert counts(config, 64) == {"video": 0, "image": 0}


def test_shared_memory_limits_the_processes(config, monkeypatch, caplog):
    clip, image = 4 * 8 * 8 * 3 * 16, 8 * 8 * 3 * 32
    config.loader.update(shares="video=1,image=1", prefetch=2)
    # A process holds five batches if it is alone with a stream, else three.
    needed = {4: 6 * (clip + image), 3: 6 * clip + 5 * image, 2: 5 * (clip + image)}

    def found(room):
        monkeypatch.setattr(workers, "_free_shared_memory", lambda: 2 * room)
        caplog.clear()
        return counts(config, 4)

    assert found(needed[4]) == {"video": 2, "image": 2}
    assert "room for" not in caplog.text
    assert found(needed[4] - 1) == {"video": 2, "image": 1}
    assert "room for 3 worker processes that decode, while there are cores" in (
        caplog.text
    )
    # One process each would be less than the threads.
    assert found(needed[3] - 1) == {"video": 0, "image": 0}
    assert found(0) == {"video": 0, "image": 0}
    assert "/dev/shm has 0.0 GiB free" in caplog.text


def test_smaller_parts_leave_room_for_more_processes(config, monkeypatch):
    """Of 8 devices; two batches ahead are 16 parts, of which each holds some."""
    del config.streams.image
    config.loader.prefetch = 2
    whole = 4 * 8 * 8 * 3 * 16
    monkeypatch.setattr(workers, "_free_shared_memory", lambda: 2 * 9 * whole)
    splits = {"video": Slow("video")}

    def found(parts):
        return training_loaders(config, splits, 30, Share(parts=parts))["video"].workers

    # Three batches each, or three parts of an eighth.
    assert found(1) == 3 and found(8) == 24


def test_batches_read_ahead_are_those_of_all_processes():
    assert [pipeline.batches_ahead(4, n) for n in (1, 2, 3, 4, 9)] == [4, 2, 2, 1, 1]


def test_long_evaluations_alone_start_processes(config, monkeypatch):
    views = {"temporal_views": 2, "spatial_views": 3}
    source = evaluation(kind="video", batch_size=4, **views, **SOURCE)

    monkeypatch.setattr(workers, "_free_shared_memory", lambda: math.inf)

    def found(split, cores, hosts=1):
        args = (split, source, config.clip, config.loader, cores, Share(0, hosts))
        return evaluation_loader(*args).workers

    assert found(Unread("video"), 1) == 0
    assert found(Slow("video", 0.001), 8) == 0
    long = Slow("video", 0.02, length=2000)
    assert found(long, 8) == 8
    assert found(long, 8, hosts=64) == 0  # each has 0.6 s of it
    assert found(Slow("video", 0.01, length=4000), 1000) == 1000  # batches
    monkeypatch.setattr(workers, "LONG_EVALUATION", 0.1)
    assert found(Slow("video", 0.01, length=20), 8) == 5
    config.loader.prefetch = 1
    batch = 2 * 3 * 4 * 8 * 8 * 3 * 4
    monkeypatch.setattr(workers, "_free_shared_memory", lambda: 2 * 9 * batch)
    assert found(long, 8) == 3
    config.loader.workers = 1
    assert found(Unread("video"), 8) == 1


def test_the_first_example_is_not_timed():
    made = []

    def examples():
        for i in range(100):
            time.sleep(0.01 if i else 1)
            yield made.append(i)

    assert 0.01 <= seconds_per_example(examples()) < 0.1
    assert made == [*range(1 + workers.TIMED_EXAMPLES)]
    assert seconds_per_example(iter([1])) < 0.1


def test_threads_wait_at_the_same_time_and_share_a_core(config):
    def busy():
        while True:
            end = time.thread_time() + 0.02
            while time.thread_time() < end:
                pass
            yield

    assert seconds_per_example(busy(), threads=8) >= 0.02
    remote = Slow("video", 0.1, directory="gs://bucket/data")
    assert 0.025 <= workers.stream_seconds(config, "video", remote, 4) < 0.1
    assert workers.stream_seconds(config, "video", remote, 16) >= 0.1  # parts of one
