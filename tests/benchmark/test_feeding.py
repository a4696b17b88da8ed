import dataclasses
import re
import time

import numpy as np
import pytest

from sparse_tube_vit.benchmark import __main__ as command
from sparse_tube_vit.benchmark import feeding
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.datasets.builders import moving_shapes
from sparse_tube_vit.datasets.preparing.embedded import prepare_embedded
from sparse_tube_vit.input import pipeline, randaugment
from sparse_tube_vit.input.examples import TrainingExample
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


def burn(milliseconds):
    until = time.process_time() + milliseconds / 1e3
    while time.process_time() < until:
        pass


@dataclasses.dataclass(frozen=True)
class Slowed:
    """A split that takes longer to read, of other files where some are given."""

    split: reading.Split
    milliseconds: float = 0
    encoded: bytes | None = None

    def __len__(self):
        return len(self.split)

    def __getitem__(self, index):
        burn(self.milliseconds)
        record = self.split[index]
        return record | {"video": self.encoded or record["video"]}


STAGES = ["reading", "decoding", "augmenting", "batching"]
EXAMPLES = 16


def here(config, split, **options):
    """Milliseconds by stage of 16 examples of the video stream."""
    stream = config.streams.video.copy_and_resolve_references()
    stream.update(batch_size=8, **options)
    timed = feeding.Here(config, "video", stream, split)
    for _ in range(3):
        timed.take()
    assert list(timed.seconds) == STAGES
    assert not timed.problems
    return {stage: 1e3 * seconds for stage, seconds in timed.seconds.items()}


@pytest.fixture(scope="module")
def split(config):
    return reading.open_split("moving_shapes/videos", "train", config.data_dir)


def milliseconds(function, runs=3):
    """The median CPU time of a call."""
    times = []
    for _ in range(runs):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return 1e3 * np.median(times)


def test_time_goes_to_the_stage_that_takes_it(config, split):
    big = moving_shapes.encode_mp4(
        np.random.default_rng(0).integers(0, 256, (40, 256, 256, 3), np.uint8)
    )
    map_ = TrainingExample.of(config.clip, config.streams.video)
    rng = np.random.default_rng(0)
    clip, _ = map_.sample(split[0]["video"], rng)
    layers = 200
    as_is, plain = here(config, split), {"randaugment_layers": 0}
    changed = {
        "reading": (here(config, Slowed(split, 5)), 5),
        "decoding": (
            here(config, Slowed(split, encoded=big)),
            milliseconds(lambda: map_.sample(big, rng)),
        ),
        "augmenting": (
            here(config, split, randaugment_layers=layers),
            milliseconds(lambda: randaugment.rand_augment(rng, clip, layers, 10.0)),
        ),
    }
    for stage, (times, each) in changed.items():
        more = {other: times[other] - as_is[other] for other in STAGES}
        expected = EXAMPLES * each
        assert expected > 40, stage  # far from what differs by chance
        assert 0.5 * expected < more[stage] < 1.7 * expected, (stage, more)
        for other in {*STAGES} - {stage}:
            assert more[other] < 0.3 * expected, (stage, more)
    # With nothing to augment, this stage takes next to nothing.
    plain = here(config, split, flip=False, color_jitter=0.0, **plain)
    assert plain["augmenting"] < 0.2 * plain["decoding"]
    assert min(as_is.values()) > 0


def test_timed_examples_are_those_of_training(config, split):
    """What is timed is what training does: the same batches come out."""
    stream, loader = config.streams.video, config.loader.copy_and_resolve_references()
    loader.update(workers=0, threads=0)
    timed = feeding.Here(config, "video", stream, split)
    batches = pipeline.training_batches(
        split, "video", stream, config.clip, loader, config.seed
    )
    for k, batch in zip(range(2), batches, strict=False):
        np.testing.assert_array_equal(timed.batches[k]["video"], batch["video"])
        assert timed.batches[k]["id"].tolist() == batch["id"].tolist()
    batches.close()


def test_examples_that_do_not_decode_are_told(config, split):
    stream = config.streams.video
    timed = feeding.Here(config, "video", stream, Slowed(split, encoded=b"damaged"))
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
