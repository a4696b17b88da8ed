"""Probabilities of a head's classes, over the views of a clip."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.models.losses import LOSSES
from sparse_tube_vit.models.tubevit import TubeViT


class NonFiniteScores(TubeViTError, FloatingPointError):
    """Scores or features that are infinite or not a number."""


#: The likely cause, for messages of NonFiniteScores.
DIVERGED = "Training diverged: take an earlier checkpoint."


def make_scores(
    model: TubeViT, head: str, loss: str = "softmax", combine: str = "mean"
) -> Callable:
    """Returns scores(params, views) -> probabilities (B, C), combined over views.

    `views` is uint8 (B, V, T, H, W, 3). One view at a time goes through the model: more
    views take no more memory.

    Args:
        model: The model.
        head: Name of the head.
        loss: Loss that the head was trained with, one of `LOSSES`.
        combine: "mean" or "max" of the views' probabilities.
    """

    def scores(params, views):
        def add(total, view):
            logits = model.apply({"params": params}, view, head)
            probabilities = LOSSES[loss].probabilities(logits)
            if combine == "max":
                return jnp.maximum(total, probabilities), None
            return total + probabilities, None

        b, v = views.shape[:2]
        total = jnp.zeros((b, model.classes[head]))
        total, _ = jax.lax.scan(add, total, views.swapaxes(0, 1))
        return total if combine == "max" else total / v

    return scores
