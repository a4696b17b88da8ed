"""CPU cores of this host for the worker processes of the input."""

import functools
import os
import socket

import jax

from sparse_tube_vit.distributed import hosts
from sparse_tube_vit.distributed.cpu import usable_cores

#: Cores that the main process keeps: one dispatches steps and takes batches, one
#: receives them from the worker processes and transfers them to the devices.
MAIN_PROCESS = 2


def worker_cores() -> int:
    """Returns the number of cores for worker processes of this process.

    They are those that it may use, divided among the processes of the run that use the
    same ones, less `MAIN_PROCESS`. Where the model computes on the CPU there are none.
    On several hosts, all have to call it.
    """
    if jax.default_backend() == "cpu":
        return 0
    return max(0, usable_cores() // _processes_on_them() - MAIN_PROCESS)


@functools.cache
def _processes_on_them():
    """Returns how many processes of the run use the cores that this one uses."""
    affinity = getattr(os, "sched_getaffinity", lambda process: ())(0)
    ours = f"{socket.gethostname()} {sorted(affinity)}"
    return hosts.gather("cores", ours).count(ours)
