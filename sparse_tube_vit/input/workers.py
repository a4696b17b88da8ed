"""Number of worker processes of every stream and evaluation.

Streams share the cores that the main process leaves in proportion to the cost of their
examples, measured on a few. Which examples a step has does not depend on it.
"""

import math
import os
import time
from collections.abc import Iterator, Mapping

from sparse_tube_vit.config import ConfigDict, input_size, worker_shares
from sparse_tube_vit.datasets.reading import Split
from sparse_tube_vit.distributed.share import ALL, Share
from sparse_tube_vit.input import pipeline
from sparse_tube_vit.input.examples import EvaluationExample
from sparse_tube_vit.log import log

#: Examples that are timed after a first one, and seconds after which no more are.
TIMED_EXAMPLES, TIMED_SECONDS = 8, 2.0

#: Seconds of decoding in one process from which an evaluation starts processes: each
#: takes a few to import what it needs.
LONG_EVALUATION = 30.0

_SHARED_MEMORY = "/dev/shm"  # batches travel through it


def training_loaders(
    config: ConfigDict,
    splits: Mapping[str, Split],
    cores: int,
    share: Share = ALL,
) -> dict[str, ConfigDict]:
    """Returns `config.loader` for every stream, with its number of worker processes.

    Args:
        config: The config of a run.
        splits: The split that each stream reads, by the stream's name.
        cores: Number of cores for worker processes.
        share: This host's share of every batch.
    """
    loader, streams = config.loader, config.streams
    if loader.workers is not None:
        return dict.fromkeys(streams, loader)
    counts = dict.fromkeys(streams, 0)
    # With fewer, the costliest stream would have fewer processes than threads now.
    least = len(streams) - 1 + loader.threads
    if cores >= least:
        costs, words = _costs(config, splits, share)
        sizes = {}
        for name, stream in streams.items():
            size = share.part_size(stream.batch_size, f"streams.{name}")
            sizes[name] = _batch_bytes(stream.kind, size, config.clip)
        counts = _fitting(cores, costs, sizes, loader.prefetch * share.parts)
        if max(counts.values()) < loader.threads:
            counts = dict.fromkeys(streams, 0)
        log.info(
            "Worker processes that decode, of %d cores for them: %s",
            cores,
            ", ".join(f"{n} {name}{words.get(name, '')}" for name, n in counts.items()),
        )
    return {name: _with(loader, count) for name, count in counts.items()}


def evaluation_loader(
    split: Split,
    source: ConfigDict,
    clip: ConfigDict,
    loader: ConfigDict,
    cores: int,
    share: Share = ALL,
) -> ConfigDict:
    """Returns `loader` for an evaluation, with its number of worker processes.

    Args:
        split: The split that it reads.
        source: The evaluation in a config.
        clip: `clip` of the config.
        loader: `loader` of the config.
        cores: Number of cores for worker processes.
        share: This host's share of every batch.
    """
    if loader.workers is not None:
        return loader
    count = 0
    if cores >= loader.threads:
        example = EvaluationExample.of(clip, loader, source)
        records = (split[i % len(split)] for i in range(1 + TIMED_EXAMPLES))
        examples = (example(record, None) for record in records)
        size = source.batch_size // (share.count * share.parts)
        threads = pipeline.threads_of_a_part(split, size)
        seconds = seconds_per_example(examples, threads)
        if seconds * len(split) / share.count > LONG_EVALUATION:
            batches = -(-len(split) // source.batch_size)
            views = math.prod(example.shape[:-4])
            sizes = {"": views * _batch_bytes(source.kind, size, clip)}
            limit = min(cores, batches * share.parts)
            ahead = loader.prefetch * share.parts
            count = _fitting(limit, {"": seconds}, sizes, ahead)[""]
    return _with(loader, count if count >= loader.threads else 0)


def seconds_per_example(examples: Iterator, threads: int = 1) -> float:
    """Returns the mean time of an example in a worker, without the first.

    The first one imports decoders and opens files. They are made one after the other
    here: a worker's threads wait for storage at the same time, but share its core.

    Args:
        examples: Makes one at a time.
        threads: Number of threads in which a worker makes them.
    """
    next(examples)
    start, busy, count = time.perf_counter(), time.thread_time(), 0
    for count, _ in enumerate(examples, start=1):
        if time.perf_counter() - start > TIMED_SECONDS or count == TIMED_EXAMPLES:
            break
    seconds = time.perf_counter() - start
    return max(seconds / threads, time.thread_time() - busy) / max(count, 1)


def stream_seconds(config: ConfigDict, name: str, split: Split, parts: int) -> float:
    """Returns the time that an example of the stream `name` takes, as measured here.

    Args:
        config: The config of a run.
        name: Name of the stream.
        split: The split that it reads.
        parts: Number of parts of a batch, of which a worker makes one at a time.
    """
    stream = config.streams[name]
    examples = pipeline.training_examples(
        split, name, stream, config.clip, config.loader, config.seed
    )
    # Iterating over them would start threads.
    first = (examples[i] for i in range(1 + TIMED_EXAMPLES))
    threads = pipeline.threads_of_a_part(split, stream.batch_size // parts)
    return seconds_per_example(first, threads)


def divide(workers: int, costs: Mapping[str, float]) -> dict[str, int]:
    """Divides workers among streams so that the slowest stream is as fast as can be.

    Args:
        workers: Number of workers, at least one a stream.
        costs: Cost of a step's examples by stream, in any unit.
    """
    counts = dict.fromkeys(costs, 1)
    for _ in range(workers - len(counts)):
        slowest = max(costs, key=lambda name: costs[name] / counts[name])
        counts[slowest] += 1
    return counts


def _costs(config, splits, share):
    """Returns the cost of a step's examples by stream, and what to log of each."""
    if shares := config.loader.shares and worker_shares(config):
        return shares, {name: " (loader.shares)" for name in shares}
    if len(splits) == 1:
        return dict.fromkeys(splits, 1.0), {}
    seconds = {
        name: stream_seconds(config, name, split, share.count * share.parts)
        for name, split in splits.items()
    }
    words = {name: f" ({1e3 * x:.1f} ms an example)" for name, x in seconds.items()}
    streams = config.streams
    sizes = {name: stream.batch_size / share.count for name, stream in streams.items()}
    return {name: x * sizes[name] for name, x in seconds.items()}, words


def _fitting(workers, costs, sizes, prefetch):
    """Divides as many workers as fit in shared memory; 0 each if not one a stream.

    They make parts of batches of `sizes` bytes, of which `prefetch` are read ahead.
    """
    room = _free_shared_memory() / 2
    for count in range(workers, len(costs) - 1, -1):
        counts = divide(count, costs)
        # A process puts parts into a queue and holds the next; grain takes as many
        # out of the queue.
        held = {
            name: n * (2 * pipeline.batches_ahead(prefetch, n) + 1)
            for name, n in counts.items()
        }
        if sum(held[name] * sizes[name] for name in costs) <= room:
            break
    else:
        count, counts = 0, dict.fromkeys(costs, 0)
    if count < workers:
        log.warning(
            "%s has %.1f GiB free, of which batches may take half: that is room for %d "
            "worker processes that decode, while there are cores for %d. Enlarge it "
            "(docker run --shm-size).",
            *(_SHARED_MEMORY, 2 * room / 2**30, count, workers),
        )
    return counts


def _free_shared_memory():
    try:
        found = os.statvfs(_SHARED_MEMORY)
    except OSError:  # elsewhere than on Linux
        return math.inf
    return found.f_bavail * found.f_frsize


def _batch_bytes(kind, examples, clip):
    return examples * math.prod(input_size(clip, kind)) * 3


def _with(loader, workers):
    return ConfigDict(dict(loader, workers=workers))
