"""Processes that tests look at from outside."""

import subprocess
from pathlib import Path


def alive(pid) -> bool:
    """Whether a process has not ended; one that nobody has reaped has."""
    try:
        stat = Path(f"/proc/{int(pid)}/stat").read_text()
        return stat.rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def group(pid) -> set[int]:
    """The processes of a group that have not ended."""
    command = ["pgrep", "-g", str(int(pid)), "-r", "D,R,S,T"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode in (0, 1), found.stderr
    return {*map(int, found.stdout.split())}
