"""Worker processes: order, counting, signals and deaths."""

import os
import signal

import pytest

from sparse_tube_vit.datasets import processes


def double(task, count):
    for _ in range(task):
        count()
    if task == 4:
        raise ValueError("four")
    return 2 * task


@pytest.mark.parametrize("workers", [0, 2])
def test_results_have_the_order_of_the_tasks_and_all_is_counted(workers):
    progress = []
    tasks = [3, 0, 1, 2]
    assert [*processes.run(double, tasks, workers, progress.append)] == [6, 0, 2, 4]
    assert sum(progress) == 6
    with pytest.raises(ValueError, match="four"):
        list(processes.run(double, [1, 4], workers))


def exit_at_once(task, count):
    os._exit(task)


def test_a_worker_that_is_killed_is_a_named_error():
    with pytest.raises(processes.WorkerDied, match="was killed.*fewer --workers"):
        list(processes.run(exit_at_once, [1], 1))


def test_interrupts_are_the_parents_to_heed_from_a_workers_first_moment_on():
    with processes.pool(1) as pool:
        masks = [signal.pthread_sigmask(signal.SIG_BLOCK, [])]
        masks += [pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, []).result()]
        later = pool.submit(signal.getsignal, signal.SIGINT).result()
    # What is blocked when a process starts is so while it imports what it runs.
    assert [signal.SIGINT in mask for mask in masks] == [False, True]
    assert later == signal.SIG_IGN  # those too that start when nothing is blocked


def test_without_tasks_no_process_is_started():
    """As where nothing of a data set decodes, and there is nothing to show."""
    assert list(processes.run(len, [], workers=2, progress=None)) == []
