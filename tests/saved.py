"""Models of random parameters, saved as the checkpoint that other runs start from."""

import jax

from sparse_tube_vit.checkpoints.run import describe_run, save_params
from sparse_tube_vit.models.tubevit import init_params, make_model


def save_model(directory, config, classes):
    """Saves a config's model with random parameters; returns its work directory."""
    model = make_model(config, {head: len(names) for head, names in classes.items()})
    params = init_params(model, jax.random.key(0), model.clip)
    save_params(directory, jax.device_get(params), describe_run(config, classes))
    return directory
