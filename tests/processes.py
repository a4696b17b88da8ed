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


def group_alive(pid) -> bool:
    """Whether any process of a group has not ended."""
    command = ["pgrep", "-g", str(int(pid)), "-r", "D,R,S,T"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode in (0, 1), found.stderr
    return found.returncode == 0
