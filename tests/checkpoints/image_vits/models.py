"""Image ViTs: changed copies, and models with one tube, all of them loaded."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from sparse_tube_vit.checkpoints import image_vits, pretrained
from sparse_tube_vit.config import default_config
from sparse_tube_vit.models.tubevit import init_params, make_model

GOLDEN = Path(__file__).parents[2] / "golden" / "image_vits"


def copy(name, folder, rename=lambda name: name, **config):
    """A folder with other names, and changes of its config.json."""
    shutil.copytree(GOLDEN / name, folder)
    arrays = load_file(folder / "model.safetensors")
    arrays = {rename(k): x for k, x in arrays.items()}
    save_file(arrays, folder / "model.safetensors")
    content = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def config_of(path, frames=1, size=24, **model):
    """The config of an image ViT: sizes and options as its files tell."""
    vit = image_vits.read(path)
    config = default_config()
    config.clip.update(frames=frames, size=size)
    config.model.update(vit.model | {"positions": "learned"} | model)
    config.model.tubes = ({"kernel": vit.patch, "stride": vit.patch},)
    config.init.update({"weights": str(path), "positions": "keep"})
    return config


def load(config):
    """(model, all parameters, report): new ones of seed 0."""
    model = make_model(config, {"h": 2})
    fresh = jax.jit(lambda: init_params(model, jax.random.key(0), model.clip))()
    params, report = pretrained.initial_params(config, model, fresh, {"h": ("a", "b")})
    both = flatten_dict(jax.device_get(fresh)) | flatten_dict(params)
    return model, unflatten_dict(both), report


def features(config, x):
    """Pooled features (B, D) and tokens (B, N, D)."""
    model, params, _ = load(config)
    apply = jax.jit(lambda p, x: model.apply({"params": p}, x, method="features"))
    out = apply(params, x)
    return np.asarray(out["pooled"]), np.asarray(out["tokens"])
