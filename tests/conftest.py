"""Options, and what several tests share: tiny models and tiny data sets."""

import os
import tempfile
from pathlib import Path

# Eight devices on one CPU, for the tests of meshes. Tests compile more than they run.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import pytest

# The tiny run is trained many times over: each of its programs is compiled once.
_COMPILED = tempfile.TemporaryDirectory()
jax.config.update("jax_compilation_cache_dir", _COMPILED.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

REAL_DATA = Path(__file__).parents[1] / ".." / "shared" / "data"


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the slow tests too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.fixture(scope="session")
def real_data():
    """Folder of real clips and images that lies beside some checkouts."""
    if not REAL_DATA.exists():
        pytest.skip(f"no real clips: {REAL_DATA} is absent")
    return REAL_DATA
