"""Options, and what several tests share: tiny models and tiny data sets."""

import os
import tempfile
from pathlib import Path

# Eight devices on one CPU, for the tests of meshes. Tests compile more than they run:
# the fusion emitters take half of the time to compile, and modules that are split for
# more threads than there are cores a fifth of the rest.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["EPATH_USE_TF"] = "0"  # gs:// by gcsfs, also where tensorflow is there

# What is set where tests run: programs that they start would write or do other things.
for name in [name for name in os.environ if name.startswith("GIT_")]:
    del os.environ[name]
os.environ.pop("FORCE_COLOR", None)
os.environ |= {
    "LC_ALL": "C.UTF-8",
    "PYTHON_COLORS": "0",
    # gcsfs looks for credentials, and where there are none waits for a cloud's machine.
    "NO_GCE_CHECK": "true",
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    "GIT_CONFIG_COUNT": "4",
    "GIT_CONFIG_KEY_0": "commit.gpgsign",
    "GIT_CONFIG_VALUE_0": "false",
    "GIT_CONFIG_KEY_1": "core.hooksPath",
    "GIT_CONFIG_VALUE_1": os.devnull,
    "GIT_CONFIG_KEY_2": "core.excludesFile",
    "GIT_CONFIG_VALUE_2": os.devnull,
    "GIT_CONFIG_KEY_3": "safe.directory",
    "GIT_CONFIG_VALUE_3": "*",
}

# Many tests train the tiny run: each of its programs is compiled once, by the first of
# pytest's processes that needs it: they have the folder of the one that starts them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _COMPILED = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import pytest

from sparse_tube_vit.config import default_config
from sparse_tube_vit.datasets.preparing.embedded import prepare_embedded
from sparse_tube_vit.log import log
from tests.tiny import COUNTS, shrink_moving_shapes, tiny_config

REAL_DATA = Path(__file__).parents[1] / ".." / "shared" / "data"


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the slow tests too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.fixture(scope="session", autouse=True)
def _no_data_of_the_repository():
    """The embedded data is tiny in tests: launch/local.sh would train on it there."""
    data = Path(default_config().data_dir).absolute()
    before = data.exists()
    yield
    assert before or not data.exists(), f"a test has no data_dir of its own: {data}"


@pytest.fixture(autouse=True)
def _log_as_it_was():
    """Commands that run in this process show the package's log, for good."""
    handlers, level, propagate = [*log.handlers], log.level, log.propagate
    yield
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)


@pytest.fixture(scope="session")
def real_data():
    """Folder of real clips and images that lies beside some checkouts."""
    if not REAL_DATA.exists():
        pytest.skip(f"no real clips: {REAL_DATA} is absent")
    return REAL_DATA


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """The embedded data sets, tiny."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        shrink_moving_shapes(monkeypatch)
        directory = tmp_path_factory.mktemp("data")
        # The first run prepares the data: the counts must still be small then.
        prepare_embedded((f"moving_shapes/{kind}" for kind in COUNTS), directory)
    return directory


@pytest.fixture(scope="session")
def finished(data_dir, tmp_path_factory):
    """(workdir, last state) of a run that nothing interrupted."""
    from sparse_tube_vit import train

    workdir = tmp_path_factory.mktemp("finished")
    return workdir, train.train(tiny_config(data_dir), workdir)
