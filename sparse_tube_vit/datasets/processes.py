"""Worker processes that end together with the process that they work for."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait

from sparse_tube_vit.errors import DatasetError

try:
    import resource
except ModuleNotFoundError:  # on Windows
    resource = None

#: Signals that ask a run to stop.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Worker(multiprocessing.context.SpawnProcess):
    def terminate(self):
        """Ends it where another died: by SIGKILL, since it ignores SIGTERM."""
        self.kill()


class _Spawn(multiprocessing.context.SpawnContext):
    Process = _Worker


class WorkerDied(DatasetError):
    """A worker process ended without an error of its own."""


def run(
    function: Callable,
    tasks: Sequence,
    workers: int,
    progress: Callable[[int], None] = lambda more: None,
) -> Iterator:
    """Yields `function(task, count)` for each task, in the order of the tasks.

    Args:
        function: Function of a module, which calls `count()` after every example.
        tasks: Arguments that can be pickled.
        workers: Number of processes at most; 0 runs the function in this one.
        progress: Called with the number of examples done since its last call.

    Raises:
        WorkerDied: A process was killed.
        Exception: The first error of any task; the other tasks are given up.
    """
    workers = min(workers, len(tasks))
    if not workers:
        for task in tasks:
            yield function(task, lambda: progress(1))
        return
    counter, reported = multiprocessing.get_context("spawn").Value("q", 0), 0
    failed = []

    def note_failure(future):
        if not future.cancelled() and future.exception():
            failed.append(future)

    with pool(workers, counter) as executor:
        futures = [executor.submit(_call, function, task) for task in tasks]
        for future in futures:
            future.add_done_callback(note_failure)
        for future in futures:
            done = ()
            while not done and not failed:
                done, _ = concurrent.futures.wait([future], 0.5)
                now = counter.get_obj().value  # a killed worker may hold the lock
                progress(now - reported)
                reported = now
            yield (failed[0] if failed else future).result()


def _call(function, task):
    return function(task, _count)


def _count() -> None:
    with _counter.get_lock():
        _counter.value += 1


def raise_limit_of_open_files() -> None:
    """Raises the soft limit of open files to the hard one, or to 65,536.

    The usual 1,024 are passed by a hundred worker processes, and by the shards of one
    large data set, of which each is open once it was read.
    """
    if resource:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = 2**16 if hard == resource.RLIM_INFINITY else min(hard, 2**16)
        if soft != resource.RLIM_INFINITY and soft < most:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


@contextlib.contextmanager
def pool(
    workers: int, counter=None
) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """Yields a pool of worker processes.

    They end at once if the block fails or this process is killed.

    Args:
        workers: Number of processes.
        counter: Shared number of finished examples, for the `count` of `run`.

    Raises:
        WorkerDied: A process was killed.
    """
    # Spawned, not forked: a fork of a process with threads may hang.
    spawn = _Spawn()
    needed, stop = spawn.Pipe(duplex=False)
    executor = concurrent.futures.ProcessPoolExecutor(
        workers,
        mp_context=spawn,
        initializer=_start,
        initargs=(needed, counter),
    )
    try:
        with signals_blocked():
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
def signals_blocked() -> Iterator[None]:
    """Blocks SIGINT and SIGTERM in this thread, and for good in what it starts.

    A terminal, systemd and Slurm send them to all processes of a run, of which only the
    first is to react. Workers that are still importing have not reached
    `end_with_parent`: each would print a stack trace.
    """
    resource_tracker.ensure_running()  # its start would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent(*needed: Connection) -> None:
    """Lets this worker process end when its parent does, and by no signal to stop.

    Otherwise a worker whose parent was killed would wait for it for ever.

    Args:
        needed: Connections; the process also ends when one of them is closed.
    """
    for number in STOP_SIGNALS:  # not blocked in a worker that starts later
        signal.signal(number, signal.SIG_IGN)
    ends = [multiprocessing.parent_process().sentinel, *needed]
    threading.Thread(target=_end_after, args=(ends,), daemon=True).start()


def _end_after(ends) -> None:
    wait(ends)
    os._exit(1)


def _start(needed, counter) -> None:
    global _counter
    _counter = counter
    end_with_parent(needed)
