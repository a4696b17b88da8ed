"""Processes that tests look at from outside."""

import subprocess
from pathlib import Path


def alive(pid) -> bool:
    """Whether a process has not ended; one that nobody has reaped has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def group_alive(pid) -> bool:
    """Whether any process of a group has not ended."""
    found = subprocess.run(
        ["pgrep", "-g", str(pid), "-r", "D,R,S,T"], capture_output=True
    )
    return found.returncode == 0
