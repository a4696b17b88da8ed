"""Softmax and sigmoid heads: losses, targets and probabilities of their logits."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from sparse_tube_vit.errors import TubeViTError


class LossDoesNotFit(TubeViTError, ValueError):
    """A head with one label an example meets examples with several labels."""


@dataclasses.dataclass(frozen=True)
class Loss:
    """The meaning of a head's logits.

    Attributes:
        cross_entropy: Maps logits and targets in 0..1, both (B, C), to losses (B,).
        smoothing_target: Maps the number of classes C to the target that label
            smoothing mixes in, the same for every class.
        probabilities: Maps logits (B, C) to probabilities (B, C).
        multi_label: Whether an example may have any number of labels; labels then are
            multi-hot (B, C), else class numbers (B,).
    """

    cross_entropy: Callable
    smoothing_target: Callable[[int], float]
    probabilities: Callable
    multi_label: bool


def _binary_cross_entropy(logits, targets):
    """Returns the mean of the binary cross entropies over classes, (B,).

    Adam makes the learning rate independent of a loss's scale, but clipping the
    gradient and the balance with other streams depend on it. A sum over Charades' 157
    classes begins at 109: every gradient would be clipped, an image stream drowned.
    """
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(axis=-1)


#: By name, `loss` of a config's streams.
LOSSES = {
    # Exactly one class is correct; smoothing is uniform over classes.
    "softmax": Loss(
        cross_entropy=optax.softmax_cross_entropy,
        smoothing_target=lambda classes: 1 / classes,
        probabilities=jax.nn.softmax,
        multi_label=False,
    ),
    # Each class is present or not, independently (Charades, paper A); smoothing is
    # uniform over present and absent.
    "sigmoid": Loss(
        cross_entropy=_binary_cross_entropy,
        smoothing_target=lambda classes: 1 / 2,
        probabilities=jax.nn.sigmoid,
        multi_label=True,
    ),
}


def check_loss(where: str, loss: str, dataset: str, multi_label: bool) -> None:
    """Checks that a data set's labels fit a loss.

    A sigmoid loss fits one label an example too: that one is present, others are not.

    Args:
        where: Name of the stream or evaluation, for the message.
        loss: One of `LOSSES`.
        dataset: Name of the data set.
        multi_label: Whether its examples have any number of labels.

    Raises:
        LossDoesNotFit: The examples have several labels, the loss takes one.
    """
    if multi_label and not LOSSES[loss].multi_label:
        fits = [repr(name) for name, other in LOSSES.items() if other.multi_label]
        raise LossDoesNotFit(
            f"{where} reads {dataset}, whose examples have any number of labels, but "
            f"its head is trained with loss {loss!r}. Set loss to {' or '.join(fits)} "
            "in every stream of that head."
        )


def multi_hot(labels, classes: int):
    """Returns labels as float32 (B, C), of class numbers (B,) or multi-hot labels."""
    one_label = labels.ndim == 1
    return jax.nn.one_hot(labels, classes) if one_label else labels.astype(jnp.float32)


def smooth(targets, amount: float, loss: str):
    """Returns targets (B, C) with label smoothing: mixed with `smoothing_target`."""
    smoothing_target = LOSSES[loss].smoothing_target(targets.shape[-1])
    return (1 - amount) * targets + amount * smoothing_target


def mean_weights(weights):
    """Returns float32 weights (B,) of a mean: they sum to 1, or to 0 if all are 0.

    Args:
        weights: (B,), 0 for examples that are excluded.
    """
    return weights / jnp.maximum(jnp.sum(weights), 1.0)


def cross_entropy(logits, targets, weights, loss: str = "softmax"):
    """Returns the weighted sum of the examples' losses, in float32.

    Args:
        logits: (B, C).
        targets: (B, C), probabilities of the classes.
        weights: (B,), `mean_weights` for a mean.
        loss: One of `LOSSES`.
    """
    losses = LOSSES[loss].cross_entropy(logits.astype(jnp.float32), targets)
    return jnp.sum(losses * weights)


def precision_at_1(logits, labels, weights):
    """Returns the weighted fraction of examples whose top class is one of their labels.

    With one label an example this is the Top-1 accuracy.

    Args:
        logits: (B, C).
        labels: (B, C), multi-hot.
        weights: (B,), `mean_weights` for a mean.
    """
    top = jnp.argmax(logits, axis=-1, keepdims=True)
    correct = jnp.take_along_axis(labels, top, axis=-1)[:, 0]
    return jnp.sum(correct * weights)
