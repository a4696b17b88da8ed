"""grain pipelines of training and evaluation batches.

The step number is the data position. Example i of a stream, which record and which
random numbers, is a pure function of (seed, stream, i); step k takes examples
kB .. kB + B - 1, and share s of n is the s-th of n equal, contiguous ranges of them.
A share is made and yielded in parts, one for each of a host's devices: a part is what a
worker makes at a time, and what travels through shared memory.
"""

import atexit
import contextlib
import errno
import gc
import re
import signal
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grain
import numpy as np
from absl import flags

from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.datasets import processes
from sparse_tube_vit.datasets.reading import Split, UnsupportedDataset
from sparse_tube_vit.distributed.share import ALL, Share
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.input.examples import EvaluationExample, TrainingExample
from sparse_tube_vit.storage import is_remote


def training_records(split: Split, name: str, seed: int) -> grain.MapDataset:
    """Returns the records of a split in the order of the stream `name`, without end."""
    state = np.random.SeedSequence([seed, zlib.crc32(name.encode())])
    records = grain.MapDataset.source(split).seed(int(state.generate_state(1)[0]))
    return records.shuffle().repeat()


def training_examples(
    split: Split,
    name: str,
    stream: ConfigDict,
    clip: ConfigDict,
    loader: ConfigDict,
    seed: int,
) -> grain.MapDataset:
    """Returns the examples of the stream `name` in its order, without end."""
    example = TrainingExample.of(clip, loader, stream)
    return training_records(split, name, seed).random_map(example)


def training_batches(
    split: Split,
    name: str,
    stream: ConfigDict,
    clip: ConfigDict,
    loader: ConfigDict,
    seed: int,
    start_step: int = 0,
    share: Share = ALL,
) -> Iterator[dict]:
    """Returns a host's share of a stream's batches from `start_step` on, without end.

    Its parts follow one another, `share.parts` a step. Each has "video" uint8 (b, T, H,
    W, 3), "label" int32 (b,) or (b, C), "weight" float32, "id" and "problem" (b,).

    Raises:
        IndivisibleBatch: The batch has no equal parts of whole examples.
        UnsupportedDataset: Labels are to be of the clip, but no times are stored.
    """
    if stream.labels == "clip" and not split.timed:
        raise UnsupportedDataset(
            f"streams.{name}.labels is 'clip', but {split.name} in {split.directory}"
            " stores no times of its labels. Set it to 'video'; or, if it is Charades,"
            " delete the data set and prepare it again"
        )
    where = f"streams.{name}"
    size = share.part_size(stream.batch_size, where)
    examples = training_examples(split, name, stream, clip, loader, seed)
    threads = threads_of_a_part(split, size)
    ours = _of_share(examples, size, share, threads)
    return iterate(ours[start_step * share.parts :], loader, where, share.parts)


def threads_of_a_part(split: Split, size: int) -> int:
    """Returns the number of threads in which a process makes the `size` examples.

    Each record in a bucket is a request, of tens of milliseconds: threads wait for
    theirs at the same time. Each also holds what its decoder does.
    """
    return max(1, min(4, size)) if is_remote(split.directory) else 1


def _of_share(examples, size, share, threads):
    """Returns the parts of a host's share of every batch, each of `size` examples."""

    def part(i):
        step, j = divmod(i, share.parts)
        start = ((step * share.count + share.index) * share.parts + j) * size
        with ThreadPoolExecutor(threads) as pool:
            made = [*pool.map(examples.__getitem__, range(start, start + size))]
        return {key: np.stack([example[key] for example in made]) for key in made[0]}

    return grain.MapDataset.range(len(examples) // size // share.count).map(part)


def evaluation_batches(
    split: Split,
    name: str,
    evaluation: ConfigDict,
    clip: ConfigDict,
    loader: ConfigDict,
    share: Share = ALL,
) -> Iterator[dict]:
    """Yields a host's share of an evaluation's batches, every example once, in order.

    Batches are those of training with V views of each example, and its "index", in
    parts as there. The last is padded with black examples of index -1, so that all
    hosts have equally many.

    Raises:
        IndivisibleBatch: The batch has no equal parts of whole examples.
    """
    where = f"evaluations.{name}"
    size = share.part_size(evaluation.batch_size, where)
    example = EvaluationExample.of(clip, loader, evaluation)
    padded = -(-len(split) // evaluation.batch_size) * evaluation.batch_size

    def indexed(i):
        if i >= len(split):
            label = np.zeros(split.label_shape, np.int32)
            return example.blank | {"label": label, "index": np.int32(-1)}
        return example(split[i], None) | {"index": np.int32(i)}

    examples = grain.MapDataset.range(padded).map(indexed)
    threads = threads_of_a_part(split, size)
    ours = _of_share(examples, size, share, threads)
    yield from iterate(ours, loader, where, share.parts)


class LoaderDied(TubeViTError, RuntimeError):
    """A worker process that decodes was killed, or memory or open files ran out."""


def batches_ahead(prefetch: int, workers: int) -> int:
    """Returns the number of batches that each of several processes reads ahead."""
    return max(1, -(-prefetch // workers))


def iterate(
    batches: grain.MapDataset, loader: ConfigDict, where: str, parts: int = 1
) -> Iterator[dict]:
    """Yields batches made by worker processes, or by threads if there are none.

    Args:
        batches: The batches, or parts of them.
        loader: `loader` of a config; None for `workers` is 0 here.
        where: The stream or evaluation, for errors.
        parts: Parts of a batch; `loader.prefetch` counts whole ones.

    Raises:
        LoaderDied: A worker process was killed, or memory or open files ran out.
    """
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's workers need it, outside absl.app too
    threads, ahead = loader.threads, loader.prefetch * parts
    if loader.workers:
        threads, ahead = 1, batches_ahead(ahead, loader.workers)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    batches = batches.to_iter_dataset(options)
    if not loader.workers:
        with contextlib.closing(iter(batches)) as iterator:
            yield from iterator
        return
    atexit.unregister(_wait_for_freed_batches)  # once
    atexit.register(_wait_for_freed_batches)
    shared = grain.experimental.DatasetOptions(min_shm_size=_LEAST_SHARED)
    batches = grain.experimental.WithOptionsIterDataset(batches, shared)
    processes.raise_limit_of_open_files()
    iterator = iter(
        batches.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=loader.workers, per_worker_buffer_size=ahead
            ),
            worker_init_fn=_start_worker,
        )
    )
    try:
        with _naming_deaths(where):
            # The first batch starts grain's threads, and these the processes.
            with ThreadPoolExecutor(1) as starter:
                batch = starter.submit(_next_unsignalled, iterator).result()
            while batch is not None:
                yield batch
                batch = next(iterator, None)
    finally:
        _close(iterator)
        # The end of the batches is an exception in grain, whose frames hold each
        # worker's last batch: without this it stays in shared memory.
        del iterator
        gc.collect()


def _close(iterator):
    """Closes an iterator of worker processes, all of them at the same time."""
    # grain has no public name for them, and waits for each before it tells the next.
    workers = [x for x in getattr(iterator, "_iterators_in_use", []) if x is not None]
    with ThreadPoolExecutor(len(workers) or 1) as pool:
        list(pool.map(lambda worker: worker.close(), workers))
    iterator.close()


# Bytes of an array from which it travels through shared memory, where each takes two
# open files; smaller ones go through the pipe of a process.
_LEAST_SHARED = 2**16


def _wait_for_freed_batches():
    """Waits for grain's thread that frees batches, which would end before its work."""
    # grain has no public name for it.
    from grain._src.python.ipc.shared_memory_array import SharedMemoryArray

    if thread := SharedMemoryArray._del_thread_pool:
        thread.apply(int)


def _start_worker(index, count):
    del index, count
    processes.end_with_parent()


def _next_unsignalled(iterator):
    with processes.signals_blocked():
        return next(iterator, None)


@contextlib.contextmanager
def _naming_deaths(where):
    """Turns what grain raises for a lost worker into LoaderDied."""
    try:
        yield
    except RuntimeError as error:
        died = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
        if not died:
            raise
        code = int(died[1])
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        cause = _CAUSES.get(-code, "Its own words, if any, are above.")
        raise LoaderDied(
            f"{where}: a worker process that decodes ended by {name} ({code}). {cause}"
        ) from None
    except OSError as error:
        if error.errno not in _LACKS:
            raise
        raise LoaderDied(f"{where}: {error}. {_LACKS[error.errno]}") from error


_CAUSES = {
    signal.SIGKILL: "If nobody killed it, memory ran out: set loader.workers or "
    "loader.prefetch lower, or the batch smaller.",
    signal.SIGBUS: "Batches travel through /dev/shm, which is full: enlarge it (docker "
    "run --shm-size), or set loader.workers or loader.prefetch lower; with "
    "loader.workers 0 nothing goes through it.",
    signal.SIGSEGV: "A file made the decoder crash: `sparse-tube-vit verify` finds it.",
}
_LACKS = {
    errno.ENOSPC: _CAUSES[signal.SIGBUS],
    errno.EMFILE: "Raise the limit of open files (ulimit -n), or set loader.workers or "
    "loader.prefetch lower.",
}
