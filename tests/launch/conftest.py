"""A copy of the repository, and a cloud to launch it on, in a directory of the test."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.launch.cloud import Cloud

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("launch") / "repository"
    for name in ("launch", "configs"):
        shutil.copytree(ROOT / name, root / name)
    for name in ("requirements.txt", "requirements-tpu.txt", "setup.py", ".gitignore"):
        shutil.copy(ROOT / name, root)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    subprocess.run(["git", "add", "."], cwd=root, check=True)
    commit(root)
    # launch/setup.sh finds its environment as it wants it.
    (root / ".venv/bin").mkdir(parents=True)
    (root / ".venv/bin/activate").write_text('PATH="$PWD/.venv/bin:$PATH"\n')
    wanted = "cat requirements.txt setup.py | cksum >.venv/installed"
    subprocess.run(wanted, shell=True, cwd=root, check=True)
    return root


def commit(root):
    who = ["-c", "user.name=Me", "-c", "user.email=me@example.org"]
    commit = ["commit", "--quiet", "--all", "--message=A change"]
    subprocess.run(["git", *who, *commit], cwd=root, check=True)


@pytest.fixture
def cloud(tmp_path, repository):
    own = tmp_path / "repository"
    shutil.copytree(repository, own, symlinks=True)
    cloud = Cloud(tmp_path / "cloud", own)
    yield cloud
    cloud.close()
