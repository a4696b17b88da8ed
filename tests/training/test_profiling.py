"""Traces, read back by jax's own reader."""

import contextlib
import types

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from sparse_tube_vit.config import InvalidConfig, validate
from sparse_tube_vit.training.profiling import traced_steps
from sparse_tube_vit.training.reporting import Stopwatch
from tests.tiny import tiny_config


def run(config, workdir, first=1, last=6, first_host=True):
    """Steps that compute a little; returns the numbers of those that were traced."""
    reporter = types.SimpleNamespace(first_host=first_host, time=Stopwatch().time)
    compute = jax.jit(lambda x: jnp.sin(x @ x).sum())
    steps = []
    running = traced_steps(config, epath.Path(workdir), first, reporter)
    with contextlib.closing(running):
        for step in running:
            compute(jnp.ones((64, 64))).block_until_ready()
            steps.append(step)
            if step == last:
                break
    assert steps == list(range(first, last + 1))
    files = list(workdir.rglob("plugins/profile/*/*.xplane.pb"))
    assert len(files) <= 1
    return [
        dict(event.stats)["step_num"]
        for file in files
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    ]


@pytest.fixture
def config(tmp_path):
    config = tiny_config(tmp_path)
    config.profile_steps = "2:4"
    return config


def test_a_trace_holds_the_steps_asked_for(config, tmp_path):
    # And the next, during which the devices finish the last of them.
    assert run(config, tmp_path) == [2, 3, 4, 5]


def test_a_resumed_run_traces_what_is_left(config, tmp_path, caplog):
    assert run(config, tmp_path / "a", first=4) == [4, 5]
    assert "are done" not in caplog.text
    assert run(config, tmp_path / "b", first=5) == []
    assert "profile_steps 2:4 are done: the run goes on from step 5" in caplog.text


def test_a_run_that_is_stopped_keeps_what_was_traced(config, tmp_path):
    assert run(config, tmp_path, last=3) == [2, 3]


def test_the_last_step_of_a_run_is_traced_to_its_end(config, tmp_path):
    config.profile_steps = "6:6"
    assert run(config, tmp_path) == [6]


def test_other_hosts_write_no_trace(config, tmp_path):
    assert run(config, tmp_path, first_host=False) == []


@pytest.mark.parametrize("steps", ["4:2", "0:3", "5:7", "3", "a:b"])
def test_steps_that_cannot_be_traced(steps, config):
    config.profile_steps = steps
    with pytest.raises(InvalidConfig, match=f"profile_steps is '{steps}'"):
        validate(config)
