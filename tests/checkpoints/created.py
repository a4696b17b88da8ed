"""Small and large models with random parameters, to scale up."""

from sparse_tube_vit.checkpoints import stored
from sparse_tube_vit.checkpoints.run import (
    describe_run,
    save_params,
)
from sparse_tube_vit.config import from_json
from sparse_tube_vit.models.tubevit import make_model, param_shapes
from tests.saved import random_like
from tests.tiny import tiny_config

CLASSES = {"motions": ("up", "down"), "shapes": ("circle", "square", "star")}
# The large model: its width is no multiple of the small one's 24.
BIG = {"depth": 3, "width": 40, "mlp_dim": 48, "heads": 4}
PATCHES = ({"kernel": (1, 4, 4), "stride": (1, 4, 4)},)


def model_and_params(config, classes=CLASSES):
    model = make_model(config, {head: len(names) for head, names in classes.items()})
    return model, random_like(param_shapes(model), config.seed)


def write(workdir, config, kept=None):
    """A checkpoint of random parameters, as training them would leave one."""
    _, params = model_and_params(config)
    save_params(workdir, params, describe_run(config, CLASSES | (kept or {})))
    return params


def read(workdir):
    found = stored.read(workdir)
    return from_json(found.description["config"]), found.description, found.params


def small_config(data_dir="data"):
    return tiny_config(data_dir)


def big_config(data_dir="data", **model):
    config = tiny_config(data_dir)
    config.seed = 1
    config.model.update(**BIG, **model)
    config.model.tubes = PATCHES
    del config.streams.video, config.evaluations.video
    return config
