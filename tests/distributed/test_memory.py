"""Memory that a process keeps: what it holds after it has freed an array."""

import os
import subprocess
import sys
import types

import pytest

from sparse_tube_vit.distributed import memory

FREED = """
import sys
from pathlib import Path
import numpy as np
from sparse_tube_vit.distributed import memory

def held():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 // 2**20

if sys.argv[1] == "keep":
    memory.keep()
before = held()
array = np.ones(2**27, np.uint8)
del array
print(held() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
@pytest.mark.parametrize("asked, kept", [("keep", True), ("leave", False)])
def test_freed_memory_is_kept(asked, kept):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    environment.pop("LD_PRELOAD", None)  # another allocator
    command = [sys.executable, "-c", FREED, asked]
    printed = subprocess.check_output(command, env=environment, text=True)
    assert (int(printed) > 100) == kept


def test_accelerators_are_left_alone(monkeypatch):
    config = types.SimpleNamespace(jax_platforms=None)
    monkeypatch.setattr(memory, "jax", types.SimpleNamespace(config=config))
    for plugins, found in (([], None), (["cuda13"], None), ([], "libtpu")):
        monkeypatch.setattr(memory.metadata, "entry_points", lambda group, p=plugins: p)
        monkeypatch.setattr(
            memory.importlib.util, "find_spec", lambda name, found=found: found
        )
        assert memory._on_cpus() == (not plugins and found is None)
