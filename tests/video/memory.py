"""Peak memory of a function, in a process of its own."""

import concurrent.futures
import multiprocessing
import re
from collections.abc import Callable
from pathlib import Path


def in_process(function: Callable, *arguments):
    """Returns what a function returns in a new process."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as executor:
        return executor.submit(function, *arguments).result()


def peak(function: Callable, *arguments) -> int:
    """Returns by how many bytes this process has grown at most during a call."""
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = _bytes("VmRSS")
    function(*arguments)
    return _bytes("VmHWM") - before


def _bytes(field):
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status).group(1)) * 1024
