"""From views to probabilities: what evaluation measures and `predict` tells."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sparse_tube_vit.model import TubeViT

#: What logits (B, C) mean, by the loss that a head is trained with: one class is right,
#: or each is there or not, whatever the others are.
PROBABILITIES = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}


def make_scores(model: TubeViT, head: str, loss: str = "softmax") -> Callable:
    """Returns scores(params, views) -> probabilities (B, C), averaged over views.

    `views` is uint8 (B, V, T, H, W, 3). One view at a time goes through the model: more
    views take no more memory. `loss` is what the head was trained with.
    """

    def scores(params, views):
        def add(total, view):
            logits = model.apply({"params": params}, view, head)
            return total + PROBABILITIES[loss](logits), None

        b, v = views.shape[:2]
        total = jnp.zeros((b, model.classes[head]))
        total, _ = jax.lax.scan(add, total, views.swapaxes(0, 1))
        return total / v

    return scores
