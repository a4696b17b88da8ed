"""Runs and a release, written once for all tests of checkpoints."""

import shutil

import pytest

from sparse_tube_vit.checkpoints import release
from sparse_tube_vit.checkpoints import run as checkpoints
from sparse_tube_vit.checkpoints.run import describe_run
from tests.checkpoints.written import CLASSES, small_state, write_run
from tests.tiny import tiny_config


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """(work directory, parameters) of a run with steps 3 and 5."""
    workdir = tmp_path_factory.mktemp("saved") / "run"
    return workdir, write_run(workdir)


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the work directory, to be damaged, and of its last step."""
    workdir = shutil.copytree(run[0], tmp_path / "run")
    return workdir, workdir / "checkpoints" / "5"


@pytest.fixture(scope="session")
def released(run, tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "release"
    release.release(run[0], directory)
    return directory


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Work directory of three checkpoints, and the description of its run."""
    workdir = tmp_path_factory.mktemp("small") / "run"
    run = describe_run(tiny_config("nowhere"), CLASSES)
    writer = checkpoints.Checkpoints(workdir, 3, run)
    for step in (3, 5, 7):
        writer.save(small_state(step))
    writer.close()
    return workdir, run
