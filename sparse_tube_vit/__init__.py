"""TubeViT in JAX and Flax: one ViT for images and videos by sparse video tubes."""

import importlib
import sys

from sparse_tube_vit import errors

# Imported on first use: input workers import this package and must not import jax.
_MODULES = {
    "EncoderOptions": "sparse_tube_vit.config",
    "Tube": "sparse_tube_vit.models.tubes",
    "TubeViT": "sparse_tube_vit.models.tubevit",
    "example_clips": "sparse_tube_vit.inference.clips",
    "load": "sparse_tube_vit.inference.loaded",
    "read_clip": "sparse_tube_vit.inference.clips",
    "read_image": "sparse_tube_vit.inference.clips",
}
__all__ = [*_MODULES]
__version__ = "0.1.0"


def __getattr__(name):
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return [*__all__, "__version__"]


if sys.argv[:1] == ["-m"]:  # so it is while Python looks for the command to run
    sys.excepthook = errors.report_uncaught
