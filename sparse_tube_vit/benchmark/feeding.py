"""Host CPU time of a config's input, by stage.

Three measurements of each stream: training's pipeline in this process, where reading,
decoding (with cropping and resizing) and augmenting are timed, and the rest is
batching; the handing over of ready batches from a worker process to the device; and all
of it together, the total that the sum of the stages is compared with.
"""

import collections
import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Iterator

import grain
import jax
import numpy as np

from sparse_tube_vit.config import ConfigDict, input_size, validate
from sparse_tube_vit.datasets.preparing.embedded import prepare_embedded
from sparse_tube_vit.datasets.reading import Split
from sparse_tube_vit.input import pipeline
from sparse_tube_vit.input.examples import TrainingExample
from sparse_tube_vit.training.batches import open_streams

BATCH_BYTES = 2**26  # at most; a clip takes as long in larger batches


@dataclasses.dataclass(frozen=True)
class TimedSource:
    """A source for grain that adds its CPU seconds to `seconds["reading"]`."""

    source: grain.sources.RandomAccessDataSource
    seconds: collections.Counter

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        with _added(self.seconds, "reading"):
            return self.source[index]


@dataclasses.dataclass(frozen=True)
class TimedExample(TrainingExample):
    """Training's map to examples, which adds the CPU seconds of its parts to `seconds`.

    "decoding" includes cropping and resizing.
    """

    seconds: collections.Counter = dataclasses.field(
        default_factory=collections.Counter
    )

    def sample(self, encoded, rng, span=None):
        with _added(self.seconds, "decoding"):
            return super().sample(encoded, rng, span)

    def augment(self, clip, rng):
        with _added(self.seconds, "augmenting"):
            return super().augment(clip, rng)


@contextlib.contextmanager
def _added(seconds, stage):
    start = time.process_time()
    try:
        yield
    finally:
        seconds[stage] += time.process_time() - start


@dataclasses.dataclass(frozen=True)
class ClockedSource:
    """A source for grain whose ids are the CPU seconds of the process that reads it."""

    source: grain.sources.RandomAccessDataSource

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return self.source[index] | {"id": repr(time.process_time())}


@dataclasses.dataclass(frozen=True)
class ReadyBatches:
    """A source of batches that take no time to make."""

    shape: tuple[int, ...]

    def __len__(self):
        return 2**31

    def __getitem__(self, index):
        del index
        return {"video": _ready(self.shape)}


@functools.cache
def _ready(shape):
    return np.ones(shape, np.uint8)


class InProcessInput:
    """Takes a stream's batches in this process, and times their stages.

    Attributes:
        batches: Batches as of training.
        problems: Reason by id for examples that do not decode.
    """

    def __init__(self, config: ConfigDict, name: str, stream: ConfigDict, split: Split):
        self._seconds, self._taken, self.problems = collections.Counter(), 0, {}
        example = TimedExample.of(
            config.clip, config.loader, stream, seconds=self._seconds
        )
        source = TimedSource(split, self._seconds)
        records = pipeline.training_records(source, name, config.seed)
        examples = records.random_map(example)
        self.batches = examples.batch(stream.batch_size, drop_remainder=True)

    def take(self) -> None:
        """Takes one batch."""
        with _added(self._seconds, "all"):
            batch = self.batches[self._taken]
        if self._taken == 0:
            self._seconds.clear()
        self._taken += 1
        pairs = zip(batch["id"], batch["problem"], strict=True)
        self.problems |= {str(i): str(problem) for i, problem in pairs if problem}

    @property
    def seconds(self) -> dict[str, float]:
        """CPU seconds by stage of all batches but the first."""
        stages = {s: self._seconds[s] for s in ("reading", "decoding", "augmenting")}
        # The rest is grain's: shuffling, random numbers, stacking.
        return stages | {"batching": self._seconds["all"] - sum(stages.values())}


class WorkerDelivery:
    """Takes batches of a `ClockedSource` from one worker process to the device.

    Attributes:
        batches: Iterator of `pipeline`, with one worker.
    """

    def __init__(self, batches: Iterator[dict]):
        self.batches, self._worker, self._here = batches, [], []

    def take(self) -> None:
        """Takes one batch."""
        start = time.process_time()
        batch = next(self.batches)
        jax.block_until_ready(jax.device_put(batch["video"]))
        self._here.append(time.process_time() - start)
        self._worker.append(float(np.ravel(batch["id"])[0]))

    @property
    def seconds(self) -> float:
        """CPU seconds of both processes for all batches but the first."""
        return sum(self._here[1:]) + self._worker[-1] - self._worker[0]


@dataclasses.dataclass
class Cost:
    """Host CPU time of a stream.

    Attributes:
        stages: CPU seconds a clip by stage.
        total: CPU seconds a clip, measured apart from the stages.
        clips: Number of clips that were timed.
        problems: Reason by id for timed examples that do not decode.
    """

    stages: dict[str, float]
    total: float
    clips: int
    problems: dict[str, str]

    def __str__(self):
        both = sum(self.stages.values())
        rows = [*self.stages.items(), ("sum", both), ("total", self.total)]
        lines = [f"  {name:14}{1e3 * seconds:8.2f} ms" for name, seconds in rows]
        lines[-1] += f", measured apart: {self.total / both - 1:+.1%}"
        lines.append(f"  {1 / self.total:.1f} clips per second per core")
        if self.problems:
            i, problem = next(iter(self.problems.items()))
            lines.append(f"  {len(self.problems)} do not decode; {i}: {problem}")
        return "\n".join(lines)


def measure(config: ConfigDict, name: str, split: Split, examples: int) -> Cost:
    """Times about `examples` examples of the stream `name`, as training takes them.

    Args:
        config: Config of a run.
        name: Name of one of its streams.
        split: Split that the stream reads.
        examples: Number of examples.
    """
    stream = config.streams[name].copy_and_resolve_references()
    example = (*input_size(config.clip, stream.kind), 3)
    room = BATCH_BYTES // math.prod(example)
    stream.batch_size = max(1, min(stream.batch_size, room, examples // 8))
    loader = ConfigDict(dict(config.loader, workers=1))
    ready = ClockedSource(ReadyBatches((stream.batch_size, *example)))
    here = InProcessInput(config, name, stream, split)
    batches = pipeline.iterate(grain.MapDataset.source(ready), loader, "handing over")
    handing_over = WorkerDelivery(batches)
    whole = WorkerDelivery(
        pipeline.training_batches(
            ClockedSource(split), name, stream, config.clip, loader, config.seed
        )
    )
    count = -(-examples // stream.batch_size)
    with contextlib.closing(handing_over.batches), contextlib.closing(whole.batches):
        # In turns, so that a change of the machine's speed affects all alike. The first
        # batch warms up.
        for _ in range(1 + count):
            for each in (here, handing_over, whole):
                each.take()
    clips = count * stream.batch_size
    stages = here.seconds | {"handing over": handing_over.seconds}
    return Cost(
        {stage: seconds / clips for stage, seconds in stages.items()},
        whole.seconds / clips,
        clips,
        here.problems,
    )


def time_input(args) -> None:
    """Prints the cost of each stream of a config, and the cores for a step rate.

    Raises:
        TubeViTError: As `open_streams`.
    """
    config = args.config
    if args.data_dir is not None:
        config.data_dir = args.data_dir
    validate(config)
    prepare_embedded((s.dataset for s in config.streams.values()), config.data_dir)
    step = 0.0  # core seconds
    for name, split in open_streams(config).items():
        stream = config.streams[name]
        cost = measure(config, name, split, args.examples)
        size = "x".join(map(str, input_size(config.clip, stream.kind)))
        print(
            f"{name}: {stream.dataset} {stream.split}, {size}; CPU time of one of "
            f"{cost.clips} examples\n{cost}"
        )
        step += stream.batch_size * cost.total
    sizes = [stream.batch_size for stream in config.streams.values()]
    print(f"A step of {' + '.join(map(str, sizes))} takes {step:.2f} core seconds.")
    seconds = args.step_seconds
    if args.clips_per_second:
        seconds = sum(sizes) / args.clips_per_second
    if seconds:
        print(
            f"A step every {seconds:.3g} s keeps {step / seconds:.1f} cores busy, over "
            "all hosts."
        )
