"""Runs with checkpoints, written for tests."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparse_tube_vit.checkpoints import run as checkpoints
from sparse_tube_vit.checkpoints import stored
from sparse_tube_vit.checkpoints.run import describe_run
from sparse_tube_vit.models.tubevit import init_params, make_model
from sparse_tube_vit.training.state import TrainState
from tests.tiny import tiny_config

CLASSES = {"motions": ("left", "right", "up"), "shapes": ("ring", "star")}
MODEL = make_model(
    tiny_config("nowhere"), {head: len(names) for head, names in CLASSES.items()}
)


def write_run(workdir, steps=(3, 5)):
    """Checkpoints of random parameters, and of twice these as their average.

    Those of a step are the returned ones, of the last step, times its share of this.
    """
    config = tiny_config("nowhere")
    params = jax.device_get(init_params(MODEL, jax.random.key(0), MODEL.clip))
    run = describe_run(config, CLASSES)
    writer = checkpoints.Checkpoints(workdir, 2, run)
    for step in steps:
        here = scaled(params, step / steps[-1])
        optimizer = {"count": jnp.int32(step)}
        writer.save(TrainState(jnp.int32(step), here, optimizer, scaled(here, 2)))
    writer.close()
    return params


def scaled(params, by):
    return jax.tree.map(lambda x: by * x, params)


def rewrite(step, change):
    """Changes a step's description, as of before it had a checksum."""
    file = step / "run" / "metadata"
    described = json.loads(file.read_text())
    del described["checksum"]
    change(described)
    file.write_text(json.dumps(described))


def make_older(described):
    del described["config"]["optimizer"]["first_moment_dtype"]


def describe(path, step=None):
    source = stored.locate(path, step)
    return source.name, source.read_description()


def assert_equal(a, b, times=1):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, times * y), a, b)


def small_state(step):
    x = jnp.asarray(np.random.default_rng(step).normal(size=(64, 64)), jnp.float32)
    moments = (optax.ScaleByAdamState(jnp.int32(step), {"x": 2 * x}, {"x": 3 * x}),)
    return TrainState(jnp.int32(step), {"x": x}, moments, {"x": 4 * x})
