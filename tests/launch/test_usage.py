"""Exit codes of the launch scripts: 0 where help is asked for, 2 of wrong usage."""

import os
import subprocess

import pytest

from tests.launch.conftest import ROOT

SCRIPTS = ("simulate_pod.sh", "tpu_vm.sh", "gke/xpk.sh")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_wrong_usage(script):
    def call(*arguments):
        path = ROOT / "launch" / script
        command = [f"./{path.name}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=path.parent)

    for asked in ("-h", "--help"):
        help_ = call(asked)
        assert (help_.returncode, help_.stderr) == (0, "")
    assert f"\n  ./launch/{script} " in help_.stdout and "set -e" not in help_.stdout
    nothing = call()
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert nothing.stderr == help_.stdout
    assert call("nonsense").returncode == 2


@pytest.mark.parametrize("script", ["local.sh", "test.sh", "gpu_benchmark.sh"])
def test_help_sets_nothing_up(script):
    command = [ROOT / "launch" / script, "--help"]
    without_python = {"PATH": os.environ["PATH"], "PYTHON": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=without_python)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout and "set -e" not in done.stdout
