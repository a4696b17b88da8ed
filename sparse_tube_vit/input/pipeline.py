"""grain pipelines of training and evaluation batches.

The step number is the data position. Example i of a stream, which record and which
random numbers, is a pure function of (seed, stream, i); step k takes examples
kB .. kB + B - 1, and host h of n takes the h-th of n equal, contiguous parts of them.
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


def training_records(split: Split, name: str, seed: int) -> grain.MapDataset:
    """Returns the records of a split in the order of the stream `name`, without end."""
    state = np.random.SeedSequence([seed, zlib.crc32(name.encode())])
    records = grain.MapDataset.source(split).seed(int(state.generate_state(1)[0]))
    return records.shuffle().repeat()


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
    """Yields this host's part of a stream's batches from `start_step` on, without end.

    Raises:
        IndivisibleBatch: The hosts do not divide the batch.
    """
    size = _host_batch_size(stream.batch_size, hosts, f"streams.{name}")
    example = TrainingExample.of(
        clip, stream, timeout_seconds=loader.decode_timeout_seconds
    )
    examples = training_records(split, name, seed).random_map(example)
    # An endless data set has no remainder; to look for one, grain counts in floats,
    # which overflow in batches of one.
    batches = examples.batch(size, drop_remainder=True)
    yield from iterate(batches[start_step * hosts + host :: hosts], loader)


def evaluation_batches(
    split: Split,
    evaluation: ConfigDict,
    clip: ConfigDict,
    loader: ConfigDict,
    host: int = 0,
    hosts: int = 1,
) -> Iterator[dict]:
    """Yields this host's part of an evaluation's batches, every example once, in order.

    Batches are those of training with V views of each example, and its "index". The
    last is padded with black examples of index -1, so that all hosts have equally many.

    Raises:
        IndivisibleBatch: The hosts do not divide the batch.
    """
    size = _host_batch_size(evaluation.batch_size, hosts, "the evaluation")
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
    yield from iterate(examples.batch(size)[host::hosts], loader)


def _host_batch_size(batch_size, hosts, where):
    if batch_size % hosts:
        raise IndivisibleBatch(
            f"{where}.batch_size {batch_size} is not a multiple of the {hosts} hosts."
        )
    return batch_size // hosts


def iterate(batches: grain.MapDataset, loader: ConfigDict) -> Iterator[dict]:
    """Yields batches made by worker processes, or by threads if there are 0 workers."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's workers need it, outside absl.app too
    options = grain.ReadOptions(
        num_threads=1 if loader.workers else loader.threads,
        prefetch_buffer_size=loader.prefetch,
    )
    batches = batches.to_iter_dataset(options)
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
