"""Environments of launch/setup.sh: what is installed, when, and for which Python.

The interpreters are scripts that write down how they are called.
"""

import os
import shutil
import subprocess

import pytest

from tests.launch.conftest import ROOT

INTERPRETER = """#!/bin/sh
echo "{name}" "$@" >>calls
case "$*" in
    --version) echo "Python {version}" ;;
    "-c import sys"*) [ {version} != 3.10.1 ] ;;
    "-m pip install "*) [ ! -e no_network ] ;;
    "-m venv --clear "*)
        rm -rf "$4" && mkdir -p "$4/bin"
        sed 's/^echo "[^ "]*"/echo "'"$4"'"/' "$0" >"$4/bin/python"
        cp "$4/bin/python" "$4/bin/pip"
        chmod +x "$4"/bin/*
        echo 'PATH="$PWD/'"$4"'/bin:$PATH"' >"$4/bin/activate"
        for name in ruff lint-imports shellcheck; do
            printf '#!/bin/sh\\necho %s >>calls\\n' "$name" >"$4/bin/$name"
            chmod +x "$4/bin/$name"
        done ;;
esac
"""
FLAGS = "-m pip install --quiet --disable-pip-version-check"
PINNED = [f".venv {FLAGS} -r requirements.txt", f".venv {FLAGS} --no-deps --editable ."]
NEWEST = (
    f".venv-newest {FLAGS} --upgrade --upgrade-strategy eager --editable"
    " .[dev,gcs,hub,probe,train]"
)


@pytest.fixture
def run(tmp_path):
    """Calls launch/test.sh in a copy; returns the lines of all that it calls."""
    root = tmp_path / "repository"
    shutil.copytree(ROOT / "launch", root / "launch")
    for name in ("requirements.txt", "setup.py"):
        shutil.copy(ROOT / name, root)
    for version in ("3.10.1", "3.11.7", "3.13.0"):
        path = tmp_path / f"python{version.rpartition('.')[0]}"
        path.write_text(INTERPRETER.format(name=path.name, version=version))
        path.chmod(0o755)
    (tmp_path / "python3").symlink_to("python3.11")

    def run(*arguments, python=None, fails=False):
        (root / "calls").unlink(missing_ok=True)
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        env |= {"PYTHON": python} if python else {}
        command = ["launch/test.sh", *arguments]
        done = subprocess.run(
            command, cwd=root, env=env, capture_output=True, text=True
        )
        assert (done.returncode != 0) == fails, done.stderr
        calls = (root / "calls").read_text().splitlines()
        return [x for x in calls if "--version" not in x and "-c import" not in x]

    run.root = root
    return run


def pytest_in(environment, *options):
    return " ".join([environment, "-m pytest -n auto --dist loadfile tests", *options])


LINTERS = ["ruff", "ruff", "lint-imports", "shellcheck"]


def test_pinned_versions_are_installed_when_they_change(run):
    made = "python3.11 -m venv --clear .venv"
    tested = [*LINTERS, pytest_in(".venv", "--slow")]
    assert run("--slow") == [made, *PINNED, *tested]
    assert run("--slow") == tested
    with (run.root / "setup.py").open("a") as file:
        file.write("# another\n")
    assert run("--slow") == [*PINNED, *tested]


def test_the_newest_versions_are_looked_for_every_time_and_lint_nothing(run):
    made = "python3.11 -m venv --clear .venv-newest"
    freeze = ".venv-newest -m pip freeze --exclude-editable"
    tested = [NEWEST, freeze, pytest_in(".venv-newest", "-m smoke")]
    assert run("--newest", "-m", "smoke") == [made, *tested]
    assert run("--newest", "-m", "smoke") == tested
    assert not (run.root / ".venv").exists()


@pytest.mark.parametrize("newest", [(), ("--newest",)])
def test_another_python_makes_the_environment_anew(run, newest):
    environment = ".venv-newest" if newest else ".venv"
    run(*newest)
    first = run(*newest, python="python3.13")[0]
    assert first == f"python3.13 -m venv --clear {environment}"
    assert "venv --clear" not in run(*newest, python="python3.13")[0]
    assert "venv --clear" not in run(*newest)[0]  # it is kept where none is named


def test_an_old_python_makes_nothing(run):
    assert run(python="python3.10", fails=True) == []


@pytest.mark.parametrize("newest", [(), ("--newest",)])
def test_a_failed_installation_is_tried_again(run, newest):
    (run.root / "no_network").touch()
    first = PINNED[0] if not newest else NEWEST
    assert run(*newest, fails=True)[-1] == first
    # Where the shell does not end by itself.
    script = (
        f"newest={''.join(newest)}; (source launch/setup.sh && echo on) || echo off"
    )
    env = {"PATH": f"{run.root.parent}:{os.environ['PATH']}"}
    told = subprocess.check_output(["bash", "-c", script], cwd=run.root, env=env)
    assert told == b"off\n"
    (run.root / "no_network").unlink()
    assert first in run(*newest)
