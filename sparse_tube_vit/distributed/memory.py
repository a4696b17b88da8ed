"""Memory of a process that computes on CPUs."""

import ctypes
import importlib.util
import sys
from importlib import metadata

import jax

# Options of glibc's mallopt, as malloc.h numbers them.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep() -> None:
    """Has this process keep the memory that it frees, if it will compute on CPUs.

    XLA on CPUs allocates the buffers of every step anew, and Linux clears pages that it
    was given back: up to a third of a training step's time. To be called before jax
    starts its devices, whose threads stay with the heaps that they begin with. Where
    accelerators may be used, on other systems, and with other allocators than glibc's,
    nothing is changed.
    """
    if sys.platform != "linux" or not _on_cpus():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return
    mallopt(_MMAP_MAX, 0)  # large buffers come from the heap, too,
    mallopt(_TRIM_THRESHOLD, -1)  # which never shrinks,
    mallopt(_ARENA_MAX, 1)  # and is the only one: heaps of threads are of 64 MiB


def _on_cpus():
    """Whether jax was told to use CPUs, or has no package of other devices."""
    plugins = metadata.entry_points(group="jax_plugins")
    others = bool(plugins) or importlib.util.find_spec("libtpu") is not None
    return jax.config.jax_platforms == "cpu" or not others
