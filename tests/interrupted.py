"""Runs that are cut short, and what they are compared by."""

import jax
import numpy as np

from sparse_tube_vit import train
from sparse_tube_vit.training import step as steps


class PowerCut(Exception):
    pass


def cut_power_in(step, monkeypatch):
    """The run dies when it looks at the loss of the step before this one."""
    check_finite = steps.check_finite

    def die(metrics, at):
        check_finite(metrics, at)
        if at == step - 1:
            raise PowerCut

    monkeypatch.setattr(train, "check_finite", die)


def assert_bit_identical(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def without_times(lines):
    timed = ("second", "waiting_share")
    return [
        {k: v for k, v in x.items() if not any(t in k for t in timed)} for x in lines
    ]
