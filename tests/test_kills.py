"""Runs that are killed at random moments end bit-identical to one that is not."""

import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from sparse_tube_vit.checkpoints.stored import locate
from sparse_tube_vit.datasets.processes import STOP_SIGNALS
from sparse_tube_vit.training.reporting import read_metrics
from tests.processes import group

KILLS = 50
CONFIG = """
from tests.tiny import tiny_config

def get_config():
    config = tiny_config({data_dir!r})
    config.total_steps = 60
    config.checkpoint.update(every_steps=7, keep=2)
    config.evaluate_every_steps = 20
    return config
"""


class Run:
    """A run as a user starts it, in a process group of its own."""

    def __init__(self, config, workdir, workers):
        command = [sys.executable, "-m", "sparse_tube_vit.train"]
        command += [f"--config={config}", f"--workdir={workdir}"]
        command += [f"--config.loader.workers={workers}"]
        self.log = workdir.with_suffix(".log")
        # A kill might leave half a program in the tests' folder, and every run should
        # take as long as the first.
        env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stderr=log, env=env, start_new_session=True
            )

    def ends_within(self, seconds):
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def others(self):
        """The processes of the group that are alive, beside the first."""
        return group(self.process.pid) - {self.process.pid}


def state(workdir):
    """The parameters of a finished run, and its metrics but for times.

    A run that is asked to stop also reports the step after which it does.
    """
    stored, lines = locate(workdir, 60), read_metrics(workdir)
    assert len({(x["step"], *sorted(x)) for x in lines}) == len(lines)
    metrics = [
        {k: v for k, v in x.items() if "second" not in k and "waiting" not in k}
        for x in lines
        if x["step"] % 2 == 0
    ]
    return stored.read().params, metrics


@pytest.mark.slow
def test_kills_at_random_moments(data_dir, tmp_path):
    config = tmp_path / "tiny.py"
    config.write_text(CONFIG.format(data_dir=str(data_dir)))
    began, whole = time.monotonic(), Run(config, tmp_path / "whole", workers=0)
    assert whole.ends_within(600) and whole.process.returncode == 0
    seconds = time.monotonic() - began
    expected, lines = state(tmp_path / "whole")

    chance, kills, finished = random.Random(0), 0, 0
    while kills < KILLS:
        workdir = tmp_path / f"run_{finished}"
        run = Run(config, workdir, chance.choice((0, 2)))
        # Not in the first second, in which Python itself starts.
        if run.ends_within(chance.uniform(1, 1.2 * seconds)):
            assert run.process.returncode == 0, run.log.read_text()
            ours, our_lines = state(workdir)
            jax.tree.map(np.testing.assert_array_equal, ours, expected)
            assert our_lines == lines
            finished += 1
            continue
        kills += 1
        number = chance.choice((signal.SIGKILL, *STOP_SIGNALS))
        if number == signal.SIGKILL:
            run.process.kill()
        else:
            os.killpg(run.process.pid, number)
        # A run that was asked to stop finishes its step and its checkpoint.
        assert run.ends_within(120), run.log.read_text()
        assert "Traceback" not in run.log.read_text(), run.log.read_text()
        deadline = time.monotonic() + 30
        while others := run.others():
            assert time.monotonic() < deadline, others
            time.sleep(0.1)
    run = Run(config, workdir, workers=0)
    assert run.ends_within(600) and run.process.returncode == 0, run.log.read_text()
    ours, our_lines = state(workdir)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
    assert our_lines == lines
    assert not list(workdir.rglob(".*"))  # nothing half-written stays
