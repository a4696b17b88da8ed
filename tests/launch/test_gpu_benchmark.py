"""What launch/gpu_benchmark.sh installs, and where, and what it runs.

The interpreter is a script that writes down how it is called.
"""

import os
import shutil
import subprocess
import sys

import pytest

from tests.launch.conftest import ROOT

INTERPRETER = f"""#!/bin/sh
[ "$1" = - ] && exec "{sys.executable}" "$@"
case "$*" in
    "-c import jax") exit "$without_jax" ;;
    "-c import sys"*) echo 3.12 ;;
    "-c import etils"*) [ -e installed ] ;;
    *" list "*) echo jax==0.9.1 ;;
    *)
        echo "$@" >>calls
        while [ $# -gt 1 ] && [ "$1" != --report ]; do shift; done
        [ "$1" != --report ] || cp report.json "$2" ;;
esac
"""
REPORT = """{"install": [
    {"metadata": {"name": "flax", "version": "0.12.8"}},
    {"metadata": {"name": "optax", "version": "0.2.8"}}
]}"""
PIP = "-m pip --disable-pip-version-check install --quiet"


@pytest.fixture
def run(tmp_path):
    root = tmp_path / "repository"
    shutil.copytree(ROOT / "launch", root / "launch")
    (root / "report.json").write_text(REPORT)
    python = tmp_path / "python3.12"
    python.write_text(INTERPRETER)
    python.chmod(0o755)

    def run(*arguments, without_jax=0, **env):
        (root / "calls").unlink(missing_ok=True)
        done = subprocess.run(
            [root / "launch" / "gpu_benchmark.sh", *arguments],
            env=os.environ
            | {"PYTHON": "../python3.12", "without_jax": str(without_jax)}
            | env,
            cwd=root,
            capture_output=True,
            text=True,
        )
        calls = root / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return done.returncode, done.stderr, lines

    run.root = root
    return run


def test_only_what_the_interpreter_lacks_is_installed_beside_it(run):
    wheels = run.root.parent / "wheels"
    wheels.mkdir()
    code, stderr, (asked, installed, timed) = run(
        "--minutes", "7", "--variants", "B", WHEELS="../wheels"
    )
    assert (code, stderr) == (0, "")
    packages = run.root / "build" / "gpu_packages" / "3.12"
    offline = f"--no-index --find-links {wheels}"
    assert asked.startswith(f"{PIP} --dry-run --report {packages}/report.json")
    assert f"--constraint {packages}/installed.txt {offline} flax>=" in asked
    assert (packages / "installed.txt").read_text() == "jax==0.9.1\n"
    assert installed == (
        f"{PIP} --no-deps --upgrade --target {packages} {offline} "
        f"--requirement {packages}/added.txt"
    )
    assert (packages / "added.txt").read_text() == "flax==0.12.8\noptax==0.2.8\n"
    assert timed.startswith("-m sparse_tube_vit.benchmark gpu --since ")
    assert timed.endswith(" --minutes 7 --variants B")

    _, _, (asked, installed, _) = run()
    assert "--no-index" not in asked + installed


def test_nothing_is_installed_where_all_is_there(run):
    (run.root / "installed").touch()
    code, _, (timed,) = run()
    assert code == 0 and timed.startswith("-m sparse_tube_vit.benchmark gpu --since ")


def test_an_interpreter_without_jax_is_refused(run):
    code, stderr, calls = run(without_jax=1)
    assert (code, calls) == (1, []) and "has no jax" in stderr
