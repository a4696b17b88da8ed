"""Cross entropies of a head's logits: of one class in many, or of every class alone."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from sparse_tube_vit.models.tubevit import TubeViT


@dataclasses.dataclass(frozen=True)
class Loss:
    """What a head's logits are compared with, see also `scoring.PROBABILITIES`.

    Attributes:
      cross_entropy: logits and targets in 0..1, both (B, C), to losses (B,).
      uninformed: the target of every class, of C, that says nothing at all.
    """

    cross_entropy: Callable
    uninformed: Callable[[int], float]


def _binary_cross_entropy(logits, targets):
    """Mean over classes.

    Adam makes the learning rate independent of a loss's scale, but clipping the
    gradient and the balance with other streams depend on it. A sum over Charades' 157
    classes begins at 109: every gradient would be clipped, an image stream drowned.
    """
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(axis=-1)


LOSSES = {
    # One class of C is right.
    "softmax": Loss(optax.softmax_cross_entropy, lambda c: 1 / c),
    # Each class is there or not, whatever the others are (Charades, paper A).
    "sigmoid": Loss(_binary_cross_entropy, lambda c: 1 / 2),
}


def multi_hot(labels, classes: int):
    """float32 (B, C) of class numbers (B,); of labels that are multi-hot themselves."""
    one_label = labels.ndim == 1
    return jax.nn.one_hot(labels, classes) if one_label else labels.astype(jnp.float32)


def smooth(targets, share: float, loss: str):
    """Label smoothing: a share of what the targets (B, C) say is uninformed.

    That is a uniform distribution over classes (softmax), or over there and not there
    for every class (sigmoid).
    """
    uninformed = LOSSES[loss].uninformed(targets.shape[-1])
    return (1 - share) * targets + share * uninformed


def mean_weights(weights):
    """What every example counts for in a mean over those of weight > 0: float32 (B,).

    Args:
      weights: (B,), 0 for examples to leave out. They sum to 1 afterwards, or to 0
        where all are left out.
    """
    return weights / jnp.maximum(jnp.sum(weights), 1.0)


def cross_entropy(logits, targets, weights, loss: str = "softmax"):
    """Weighted sum over examples, in float32.

    Args:
      logits: (B, C).
      targets: (B, C), the probability of every class.
      weights: (B,), `mean_weights` for a mean.
      loss: one of `LOSSES`.
    """
    losses = LOSSES[loss].cross_entropy(logits.astype(jnp.float32), targets)
    return jnp.sum(losses * weights)


def hits(logits, labels, weights):
    """Weighted share of the examples whose highest-scored class is a label of theirs.

    Args:
      logits, weights: as for `cross_entropy`.
      labels: (B, C), multi-hot.
    """
    best = jnp.argmax(logits, axis=-1, keepdims=True)
    hit = jnp.take_along_axis(labels, best, axis=-1)[:, 0]
    return jnp.sum(hit * weights)


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
