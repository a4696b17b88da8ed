"""Times the input of a config: what a core of the host gives, stage by stage.

Three measurements of each stream, all in CPU time: the pipeline of training in this
process alone, with a stopwatch around the functions of each stage; batches that are
ready, from a worker process to the device; and all of it together, the total that the
sum of the stages is compared with.
"""

import collections
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator

import grain
import jax
import numpy as np

from sparse_tube_vit.config import ConfigDict, validate
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.datasets.preparing.embedded import prepare_embedded
from sparse_tube_vit.input import augment, examples, pipeline, randaugment
from sparse_tube_vit.video import decode

#: Stage -> functions as (module or class, name): what is timed, less what they call of
#: other stages.
STAGES = {
    "reading": [(reading.Split, "__getitem__")],
    "decoding": [(examples, "decode")],
    "resizing": [(decode._ToRgb, "__call__")],
    "augmenting": [
        (augment, "flip"),
        (augment, "jitter_color"),
        (randaugment, "rand_augment"),
    ],
}
BATCH_BYTES = 2**26  # at most; a clip takes as long as in larger batches


class Stopwatch:
    """Seconds spent in each stage, without those spent in stages that it calls."""

    def __init__(self, clock: Callable[[], float] = time.process_time):
        self.clock, self.seconds = clock, collections.Counter()
        self._running, self._since = [], 0.0

    @contextlib.contextmanager
    def stage(self, name: str):
        self._lap()
        self._running.append(name)
        try:
            yield
        finally:
            self._lap()
            self._running.pop()

    def _lap(self):
        now = self.clock()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def around(self, stages: dict):
        """Times functions, given as `STAGES`, wherever they are called in the block."""
        with contextlib.ExitStack() as stack:
            for name, functions in stages.items():
                for owner, attribute in functions:
                    function = getattr(owner, attribute)
                    stack.callback(setattr, owner, attribute, function)
                    setattr(owner, attribute, self._timed(name, function))
            yield

    def _timed(self, name, function):
        @functools.wraps(function)
        def timed(*args, **kwargs):
            with self.stage(name):
                return function(*args, **kwargs)

        return timed


@dataclasses.dataclass(frozen=True)
class Clocked:
    """A source for grain whose ids are the CPU seconds of the process that reads it."""

    source: grain.sources.RandomAccessDataSource

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return self.source[index] | {"id": repr(time.process_time())}


@dataclasses.dataclass(frozen=True)
class Ready:
    """A source of examples that take no time to make."""

    shape: tuple[int, ...]

    def __len__(self):
        return 2**31

    def __getitem__(self, index):
        del index
        return {"video": _ready(self.shape)}


@functools.cache
def _ready(shape):
    return np.ones(shape, np.uint8)


@dataclasses.dataclass
class Cost:
    """What a clip of a stream takes of the host.

    Attributes:
      stages: CPU seconds a clip by stage.
      total: CPU seconds a clip, measured apart from the stages.
      clips: how many were timed.
      problems: id -> why it does not decode, of the examples that were timed.
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


def measure(config: ConfigDict, name: str, examples: int) -> Cost:
    """Times the stream `name` on about so many of its examples, as training takes them.

    Raises: the named errors of datasets.
    """
    stream = config.streams[name].copy_and_resolve_references()
    frames = config.clip.frames if stream.kind == "video" else 1
    size = config.clip.size
    room = BATCH_BYTES // (frames * size * size * 3)
    stream.batch_size = max(1, min(stream.batch_size, room, examples // 8))
    split = reading.open_split(
        stream.dataset, stream.split, config.data_dir, stream.kind
    )

    def of_training(source, **options):
        loader = ConfigDict(dict(config.loader, **options))
        return pipeline.training_batches(
            source, name, stream, config.clip, loader, config.seed
        )

    ready = Clocked(Ready((stream.batch_size, frames, size, size, 3)))
    loader = ConfigDict(dict(config.loader, workers=1))
    alone = Alone(of_training(split, workers=0, threads=0))
    handed_over = Delivery(pipeline.read(grain.MapDataset.source(ready), loader))
    whole = Delivery(of_training(Clocked(split), workers=1))
    count = -(-examples // stream.batch_size)
    with contextlib.ExitStack() as stack:
        for each in (alone, handed_over, whole):
            stack.callback(each.batches.close)
        # In turns, so that a change of the machine's speed meets all three. The first
        # batch warms up.
        for _ in range(1 + count):
            for each in (alone, handed_over, whole):
                each.take()
    clips = count * stream.batch_size
    stages = alone.seconds | {"handing over": handed_over.seconds}
    return Cost(
        {stage: seconds / clips for stage, seconds in stages.items()},
        whole.seconds / clips,
        clips,
        alone.problems,
    )


class Alone:
    """Takes batches of a pipeline without workers, and times the stages of all but one.

    Attributes:
      batches: what `pipeline.training_batches` gives.
      problems: id -> why it does not decode.
    """

    def __init__(self, batches: Iterator[dict]):
        self.batches, self.problems = batches, {}
        self._stopwatches = []

    def take(self) -> None:
        stopwatch = Stopwatch()
        self._stopwatches.append(stopwatch)
        # What is left to batching is grain's: shuffling, random numbers, stacking.
        with stopwatch.around(STAGES), stopwatch.stage("batching"):
            batch = next(self.batches)
        pairs = zip(batch["id"], batch["problem"], strict=True)
        self.problems |= {str(i): str(problem) for i, problem in pairs if problem}

    @property
    def seconds(self) -> dict[str, float]:
        """CPU seconds by stage of all batches taken but the first."""
        stages = (*STAGES, "batching")
        return {s: sum(w.seconds[s] for w in self._stopwatches[1:]) for s in stages}


class Delivery:
    """Takes batches of a `Clocked` source from its one worker process to the device."""

    def __init__(self, batches: Iterator[dict]):
        self.batches, self._worker, self._here = batches, [], []

    def take(self) -> None:
        started = time.process_time()
        batch = next(self.batches)
        jax.block_until_ready(jax.device_put(batch["video"]))
        self._here.append(time.process_time() - started)
        self._worker.append(float(np.ravel(batch["id"])[0]))

    @property
    def seconds(self) -> float:
        """CPU seconds of both processes for all batches taken but the first."""
        return sum(self._here[1:]) + self._worker[-1] - self._worker[0]


def time_input(args) -> None:
    """Prints what each stream of a config takes, and the cores for a step rate."""
    config = args.config
    if args.data_dir is not None:
        config.data_dir = args.data_dir
    validate(config)
    prepare_embedded(config)
    step = 0.0  # core seconds
    for name, stream in config.streams.items():
        cost = measure(config, name, args.examples)
        frames = config.clip.frames if stream.kind == "video" else 1
        print(
            f"{name}: {stream.dataset} {stream.split}, {frames}x{config.clip.size}x"
            f"{config.clip.size}; CPU time of one of {cost.clips} examples\n{cost}"
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
