"""grain pipelines: the batches of a step, and the views of an evaluation.

The step number is the data position. Example i of a stream, which record and which
random numbers, is a pure function of (seed, stream, i); step k takes examples
kB .. kB + B - 1, and host h of n takes the h-th of n equal shares of them.
"""

import dataclasses
import zlib
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.datasets import Split
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.input import augment, sampling
from sparse_tube_vit.input.decode import decode
from sparse_tube_vit.input.randaugment import rand_augment
from sparse_tube_vit.input.views import EvaluationExample, Example


class TooManyUndecodable(TubeViTError, RuntimeError):
    """More of a data set than allowed does not decode."""


class IndivisibleBatch(TubeViTError, ValueError):
    """A batch cannot be shared out evenly among hosts or devices."""


@dataclasses.dataclass(frozen=True)
class TrainingExample(Example):
    """A random clip, randomly cropped, perhaps flipped, recoloured and distorted."""

    crop_area: tuple[float, float] = (0.3, 1.0)
    flip: bool = True
    color_jitter: float = 0.0
    randaugment_layers: int = 0
    randaugment_magnitude: float = 10.0

    @classmethod
    def of(cls, clip: ConfigDict, stream: ConfigDict, **options):
        """With the clip of the config and the augmentation of one of its streams."""
        return super().of(
            clip,
            stream,
            crop_area=tuple(stream.crop_area),
            flip=stream.flip,
            color_jitter=stream.color_jitter,
            randaugment_layers=stream.randaugment_layers,
            randaugment_magnitude=stream.randaugment_magnitude,
            **options,
        )

    def read(self, encoded, rng):
        clip, _ = self.sample(encoded, rng)
        if self.flip:
            clip = augment.flip(rng, clip)
        if self.color_jitter:
            clip = augment.jitter_color(rng, clip, self.color_jitter)
        layers, magnitude = self.randaugment_layers, self.randaugment_magnitude
        clip = rand_augment(rng, clip, layers, magnitude)
        return {"video": np.ascontiguousarray(clip)}

    def sample(self, encoded: bytes, rng: np.random.Generator):
        """Decodes a random clip at a random crop, as `decode.decode` returns it."""

        def times(duration):
            start = sampling.random_start(rng, self.frames, self.fps, duration)
            return sampling.clip_times(start, self.frames, self.fps, duration)

        def crop(height, width):
            return sampling.random_crop(rng, height, width, self.size, self.crop_area)

        return decode(encoded, times, crop, self.timeout_seconds)


def training_batches(
    split: Split,
    name: str,
    stream: ConfigDict,
    clip: ConfigDict,
    loader: ConfigDict,
    seed: int,
    start_step: int = 0,
    host: int = 0,
    hosts: int = 1,
) -> Iterator[dict]:
    """This host's share of a stream's batches, from step `start_step` on, without end.

    Raises:
      IndivisibleBatch: the hosts do not divide the batch.
    """
    share = _share(stream.batch_size, hosts, f"streams.{name}")
    example = TrainingExample.of(
        clip, stream, timeout_seconds=loader.decode_timeout_seconds
    )
    state = np.random.SeedSequence([seed, zlib.crc32(name.encode())])
    examples = (
        grain.MapDataset.source(split)
        .seed(int(state.generate_state(1)[0]))
        .shuffle()
        .repeat()
        .random_map(example)
    )
    # Without end there is no remainder; to look for one, grain counts in floats, which
    # overflow in batches of one.
    batches = examples.batch(share, drop_remainder=True)
    shares = batches[start_step * hosts + host :: hosts]
    yield from read(shares, loader)


def evaluation_batches(
    split: Split,
    evaluation: ConfigDict,
    clip: ConfigDict,
    loader: ConfigDict,
    host: int = 0,
    hosts: int = 1,
) -> Iterator[dict]:
    """This host's share of an evaluation's batches, every example once, in order.

    Batches are those of training with videos of V views each, and an "index" of every
    example. The last is padded with black examples of index -1, so that all hosts see
    equally many.

    Raises:
      IndivisibleBatch: the hosts do not divide the batch.
    """
    share = _share(evaluation.batch_size, hosts, "the evaluation")
    example = EvaluationExample.of(
        clip, evaluation, timeout_seconds=loader.decode_timeout_seconds
    )
    padded = -(-len(split) // evaluation.batch_size) * evaluation.batch_size

    def indexed(i, record_index):
        if record_index >= len(split):
            label = np.zeros(split.label_shape, np.int32)
            return example.blank | {"label": label, "index": np.int32(-1)}
        return example(split[record_index], None) | {"index": np.int32(record_index)}

    examples = grain.MapDataset.range(padded).map_with_index(indexed)
    yield from read(examples.batch(share)[host::hosts], loader)


def _share(batch_size, hosts, where):
    if batch_size % hosts:
        raise IndivisibleBatch(
            f"{where}.batch_size {batch_size} is not a multiple of the {hosts} hosts."
        )
    return batch_size // hosts


def read(batches, loader):
    """Iterates in worker processes, or in threads of this one where workers is 0."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's workers insist, outside absl.app too
    reading = grain.ReadOptions(
        num_threads=1 if loader.workers else loader.threads,
        prefetch_buffer_size=loader.prefetch,
    )
    batches = batches.to_iter_dataset(reading)
    if loader.workers:
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=loader.workers, per_worker_buffer_size=loader.prefetch
            )
        )
    iterator = iter(batches)
    try:
        yield from iterator
    finally:
        iterator.close()


class Undecodable:
    """Counts and names what does not decode in one data set, and stops past a share."""

    def __init__(self, split: Split, max_share: float):
        self.split, self.max_share = split, max_share
        self.problems = {}  # id -> what is wrong

    def find(self, batch: dict) -> dict[str, str]:
        """id -> what is wrong, of the examples of a batch that are not noted yet."""
        return {
            str(i): str(problem)
            for i, problem in zip(batch["id"], batch["problem"], strict=True)
            if problem and str(i) not in self.problems
        }

    def note(self, found: dict[str, str]) -> list[str]:
        """Takes note of what any host found; returns a line for every example.

        Raises:
          TooManyUndecodable: more than `max_share` of the data set; lists them.
        """
        new = {i: p for i, p in found.items() if i not in self.problems}
        self.problems |= new
        if len(self.problems) > self.max_share * len(self.split):
            listed = "\n".join(f"  {i}: {p}" for i, p in self.problems.items())
            raise TooManyUndecodable(
                f"{len(self.problems)} of the {len(self.split)} examples of "
                f"{self.split.name} {self.split.split} do not decode, more than the "
                f"{self.max_share:.1%} that loader.max_undecodable allows:\n{listed}\n"
                "Mend or remove them and prepare the data set again, or allow more."
            )
        return [f"{self.split.name}: {i} does not decode: {p}" for i, p in new.items()]
