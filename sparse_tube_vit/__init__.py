"""TubeViT in JAX and Flax: one ViT for images and videos by sparse video tubes."""

import importlib

# Looked up on first use: input workers import this package and need no jax.
_PUBLIC = {
    "Tube": "sparse_tube_vit.models.tubes",
    "TubeViT": "sparse_tube_vit.models.tubevit",
    "load": "sparse_tube_vit.inference.loaded",
    "read_clip": "sparse_tube_vit.inference.clips",
    "read_image": "sparse_tube_vit.inference.clips",
}
__all__ = [*_PUBLIC]
__version__ = "0.1.0"


def __getattr__(name):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
