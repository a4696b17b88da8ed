"""Worker processes that end when what they work for does."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator

from sparse_tube_vit.datasets import DatasetError


class WorkerDied(DatasetError):
    """A worker process ended without an error of its own."""


@contextlib.contextmanager
def pool(
    workers: int, initializer: Callable | None = None, *arguments
) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """Gives a pool of worker processes, each of which first calls `initializer`.

    They end at once if the block fails or this process is killed.

    Raises:
        WorkerDied: One of them was killed.
    """
    # Spawned, not forked: a fork of a process with threads may hang.
    spawn = multiprocessing.get_context("spawn")
    needed, stop = spawn.Pipe(duplex=False)
    executor = concurrent.futures.ProcessPoolExecutor(
        workers,
        mp_context=spawn,
        initializer=_start,
        initargs=(needed, initializer, arguments),
    )
    try:
        yield executor
    except concurrent.futures.BrokenExecutor:
        raise WorkerDied(
            "A worker process was killed: by FFmpeg, or as memory ran out. Run the same"
            " command again with fewer --workers; with --workers 0 this process does"
            " their work, one file after the other."
        ) from None
    except BaseException:
        stop.close()
        raise
    finally:
        executor.shutdown(cancel_futures=True)
        stop.close()


def _start(needed, initializer, arguments) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the parent to heed
    threading.Thread(target=_end_when_unneeded, args=(needed,), daemon=True).start()
    if initializer:
        initializer(*arguments)


def _end_when_unneeded(needed) -> None:
    # Else it would wait forever for work from a process that was killed.
    try:
        needed.recv()
    except EOFError:
        os._exit(1)
