import re

import numpy as np
import pytest

from sparse_tube_vit.benchmark import __main__ as command
from sparse_tube_vit.benchmark import feeding
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.datasets.preparing.embedded import prepare_embedded
from sparse_tube_vit.input import examples, pipeline, randaugment
from tests import tiny


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        tiny.shrink_moving_shapes(patch)
        config = tiny.tiny_config(tmp_path_factory.mktemp("data"))
        names = [stream.dataset for stream in config.streams.values()]
        prepare_embedded(names, config.data_dir)
    config.streams.video.flip = True
    return config


STAGES = ["reading", "decoding", "augmenting", "batching"]


class Clock:
    """A clock that stands still but for those who take time."""

    def __init__(self):
        self.now = 0

    def process_time(self):
        return self.now

    def slow(self, function, seconds):
        def slowed(*arguments, **options):
            self.now += seconds
            return function(*arguments, **options)

        return slowed


@pytest.fixture(scope="module")
def split(config):
    return reading.open_split("moving_shapes/videos", "train", config.data_dir)


def here(config, split, **changes):
    """Takes a first batch and two of the video stream."""
    stream = config.streams.video.copy_and_resolve_references()
    stream.update(batch_size=8, **changes)
    timed = feeding.InProcessInput(config, "video", stream, split)
    for _ in range(3):
        timed.take()
    assert not timed.problems
    return timed


def test_time_goes_to_the_stage_that_takes_it(config, split, monkeypatch):
    clock = Clock()

    def training_records(*arguments, records=pipeline.training_records):
        return records(*arguments).map(clock.slow(lambda record: record, 13))

    monkeypatch.setattr(feeding, "time", clock)
    getitem = clock.slow(reading.Split.__getitem__, 5)
    monkeypatch.setattr(reading.Split, "__getitem__", getitem)
    monkeypatch.setattr(examples, "decode", clock.slow(examples.decode, 7))
    augment = clock.slow(randaugment.rand_augment, 11)
    monkeypatch.setattr(randaugment, "rand_augment", augment)
    monkeypatch.setattr(pipeline, "training_records", training_records)
    each = {"reading": 5, "decoding": 7, "augmenting": 11, "batching": 13}
    seconds = here(config, split).seconds
    assert seconds == {stage: 16 * second for stage, second in each.items()}


def test_every_stage_takes_time(config, split):
    seconds = here(config, split).seconds
    assert [*seconds] == STAGES and min(seconds.values()) > 0


def test_with_nothing_to_augment_augmenting_takes_next_to_nothing(config, split):
    changes = {"flip": False, "color_jitter": 0.0, "randaugment_layers": 0}
    seconds = here(config, split, **changes).seconds
    assert seconds["augmenting"] < 0.2 * seconds["decoding"]


def test_timed_examples_are_those_of_training(config, split):
    """What is timed is what training does: the same batches come out."""
    stream, loader = config.streams.video, config.loader.copy_and_resolve_references()
    loader.update(workers=0, threads=0)
    timed = feeding.InProcessInput(config, "video", stream, split)
    batches = pipeline.training_batches(
        split, "video", stream, config.clip, loader, config.seed
    )
    for k, batch in zip(range(2), batches, strict=False):
        np.testing.assert_array_equal(timed.batches[k]["video"], batch["video"])
        assert timed.batches[k]["id"].tolist() == batch["id"].tolist()
    batches.close()


def test_examples_that_do_not_decode_are_told(config, split, monkeypatch):
    stream = config.streams.video
    getitem = reading.Split.__getitem__
    damaged = {"video": b"damaged"}
    monkeypatch.setattr(
        reading.Split, "__getitem__", lambda *index: getitem(*index) | damaged
    )
    timed = feeding.InProcessInput(config, "video", stream, split)
    timed.take()
    assert len(timed.problems) == stream.batch_size
    cost = feeding.Cost({"reading": 1.0}, 1.1, 2, timed.problems)
    first = next(iter(timed.problems))
    assert f"8 do not decode; {first}: FFmpeg cannot decode it" in str(cost)


@pytest.mark.slow
def test_the_command_line(config, tmp_path, capsys):
    file = tmp_path / "config.py"
    file.write_text(
        "from tests.tiny import tiny_config\n"
        f"def get_config(): return tiny_config({config.data_dir!r})\n"
    )
    arguments = f"input --config {file} --examples 24 --clips_per_second 32"
    command.main(arguments.split())
    out = capsys.readouterr().out
    rows = re.findall(r"^  (\D+?) +([\d.]+) ms", out, re.MULTILINE)
    stages = [*STAGES, "handing over"]
    assert [name for name, _ in rows] == 2 * [*stages, "sum", "total"]
    step = 0.0
    for stream in (rows[:7], rows[7:]):
        *parts, both, total = (float(value) for _, value in stream)
        assert sum(parts) == pytest.approx(both, abs=0.05)
        assert both == pytest.approx(total, rel=0.7)
        step += 8e-3 * total
    # 16 clips a step, two steps a second.
    (printed,) = re.findall(r"takes ([\d.]+) core seconds", out)
    assert float(printed) == pytest.approx(step, abs=0.01)
    (cores,) = re.findall(r"every 0.5 s keeps ([\d.]+) cores", out)
    assert float(cores) == pytest.approx(2 * step, abs=0.1)
