"""Models of random parameters, saved as the checkpoint that other runs start from."""

import jax
import numpy as np

from sparse_tube_vit.checkpoints.run import describe_run, save_params
from sparse_tube_vit.models.tubevit import make_model, param_shapes


def random_like(params, seed=0):
    """Parameters none of which is zero or one, so that each of them shows."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return tree.unflatten([np.float32(0.3 * rng.normal(size=x.shape)) for x in leaves])


def save_model(directory, config, classes):
    """Saves a config's model with random parameters; returns its work directory."""
    model = make_model(config, {head: len(names) for head, names in classes.items()})
    shapes = param_shapes(model)
    save_params(directory, random_like(shapes), describe_run(config, classes))
    return directory
