"""CPU cores that this process may use; without jax, which data sets do not need."""

import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS, _MOUNTS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Returns the number of cores that this process may use, at least 1.

    Its CPU affinity limits them, and so do the quotas of its control groups, as those
    of containers.
    """
    return max(1, int(min([_affine_cores(), *_quotas()])))


def _affine_cores():
    if hasattr(os, "process_cpu_count"):  # from Python 3.13 on
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas() -> Iterator[float]:
    """Yields the quotas of this process's control groups, in cores."""
    if not _GROUPS.exists():
        return
    for line in _GROUPS.read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        mount = _MOUNTS  # version 2
        if number != "0" or controllers:
            if "cpu" not in controllers.split(","):
                continue
            mount = _MOUNTS / "cpu"  # version 1
        # A container may see its own group alone, as the root.
        group = mount / path.lstrip("/")
        for directory in [group, *group.parents]:
            yield from _quota(directory)
            if directory == mount:
                break


def _quota(directory):
    try:
        if (limits := directory / "cpu.max").exists():
            quota, period = limits.read_text().split()
        else:
            quota = (directory / "cpu.cfs_quota_us").read_text()
            period = (directory / "cpu.cfs_period_us").read_text()
        if quota != "max" and int(quota) > 0:
            yield int(quota) / int(period)
    except OSError:  # no limit is set here
        pass
