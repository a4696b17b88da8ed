"""Worker processes that end when what they work for does."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker

from sparse_tube_vit.errors import DatasetError


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
        with _interrupts_held():
            for _ in range(workers):
                executor.submit(int)  # starts one, unless one is idle by now
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


@contextlib.contextmanager
def _interrupts_held():
    """Keeps Ctrl-C from processes that start here, and from this one until the end.

    It is for the parent to heed. They would end in a stack trace each, as long as they
    are not at `_start` yet but import what they run.
    """
    resource_tracker.ensure_running()  # its start ends what is held
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(needed, initializer, arguments) -> None:
    # One that starts later, as others were idle when it was asked for, holds none.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_when_unneeded, args=(needed,), daemon=True).start()
    if initializer:
        initializer(*arguments)


def _end_when_unneeded(needed) -> None:
    # Else it would wait forever for work from a process that was killed.
    try:
        needed.recv()
    except EOFError:
        os._exit(1)
