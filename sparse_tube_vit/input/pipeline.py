"""grain pipelines: the batches of a step, and the views of an evaluation.

The step number is the data position. Example i of a stream, which record and which
random numbers, is a pure function of (seed, stream, i); step k takes examples
kB .. kB + B - 1, and host h of n takes the h-th of n equal shares of them.
"""

import zlib
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.datasets.reading import Split
from sparse_tube_vit.errors import IndivisibleBatch
from sparse_tube_vit.input.examples import EvaluationExample, TrainingExample


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
