"""One optimizer step on a batch of every stream, and the scoring of views."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.model import TubeViT
from sparse_tube_vit.training.freezing import frozen_parts, join, split
from sparse_tube_vit.training.losses import (
    LOSSES,
    cross_entropy,
    hits,
    multi_hot,
    smooth,
)
from sparse_tube_vit.training.optimizer import learning_rate
from sparse_tube_vit.training.state import TrainState
from sparse_tube_vit.tubes import normalize


def mix_pairs(key, alpha, videos, targets, weights):
    """Mixup: every example with its neighbour, by a share from Beta(alpha, alpha).

    A pair counts where both of it could be decoded.
    """
    share = jax.random.beta(key, alpha, alpha)
    videos, targets = (
        share * x + (1 - share) * jnp.roll(x, 1, axis=0) for x in (videos, targets)
    )
    return videos, targets, weights * jnp.roll(weights, 1)


def stream_keys(config: ConfigDict, step) -> dict[str, jax.Array]:
    """Keys of each stream's mixup and dropout, (2,), in the step after `step` steps."""
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    keys = jax.random.split(key, len(config.streams))
    return {
        name: jax.random.split(key)
        for name, key in zip(config.streams, keys, strict=True)
    }


def model_input(key, stream, batch, classes: int):
    """What a stream's batch is to the model and the loss, after smoothing and mixup.

    Returns:
      videos, uint8 as they came or normalized floats, targets (B, C), weights (B,).
    """
    videos, weights = batch["video"], batch["weight"]
    targets = multi_hot(batch["label"], classes)
    targets = smooth(targets, stream["label_smoothing"], stream["loss"])
    if stream["mixup"]:
        return mix_pairs(key, stream["mixup"], normalize(videos), targets, weights)
    return videos, targets, weights


def make_train_step(
    model: TubeViT, optimizer: optax.GradientTransformation, config: ConfigDict
) -> Callable:
    """Returns train_step(state, batches) -> (state, metrics).

    `batches` maps a stream's name to {"video": uint8 (B, T, H, W, 3), "label": (B,) or
    multi-hot (B, C), "weight": (B,)}. The loss is the weighted sum of the streams' mean
    losses; the gradient of all of them is taken at once, of those parameters that are
    trained. The share of `hits` is called accuracy, and precision_at_1 where examples
    have several labels.
    """
    parts = frozen_parts(config)
    rates = learning_rate(config)
    streams = {name: stream.to_dict() for name, stream in config.streams.items()}

    def stream_loss(params, keys, stream, batch):
        key_mixup, key_dropout = keys
        classes = model.classes[stream["head"]]
        videos, targets, weights = model_input(key_mixup, stream, batch, classes)
        logits = model.apply(
            {"params": params},
            videos,
            stream["head"],
            train=True,
            rngs={"dropout": key_dropout},
        )
        loss = cross_entropy(logits, targets, weights, stream["loss"])
        labels = multi_hot(batch["label"], classes)
        share = "accuracy" if batch["label"].ndim == 1 else "precision_at_1"
        return loss, {"loss": loss, share: hits(logits, labels, weights)}

    def train_step(state: TrainState, batches):
        keys = stream_keys(config, state.step)
        trained, frozen = split(state.params, parts)

        def loss_fn(trained):
            params = join(frozen, trained)
            total, metrics = 0.0, {}
            for name, stream in streams.items():
                loss, seen = stream_loss(params, keys[name], stream, batches[name])
                total += stream["loss_weight"] * loss
                metrics |= {f"{name}/{key}": value for key, value in seen.items()}
            return total, metrics

        (loss, metrics), gradients = jax.value_and_grad(loss_fn, has_aux=True)(trained)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, trained)
        trained = optax.apply_updates(trained, updates)
        ema = state.ema
        if ema is not None:
            # The average of few steps is that of few parameters: grow into the decay.
            decay = jnp.minimum(
                config.optimizer.ema_decay, (1.0 + state.step) / (10.0 + state.step)
            )
            ema = optax.incremental_update(trained, ema, 1 - decay)
        metrics |= {
            "loss": loss,
            "gradient_norm": optax.global_norm(gradients),
            "learning_rate": rates(state.step),
        }
        params = join(frozen, trained)
        return TrainState(state.step + 1, params, optimizer_state, ema), metrics

    return train_step


def make_scores(model: TubeViT, head: str, loss: str = "softmax") -> Callable:
    """Returns scores(params, views) -> probabilities (B, C), averaged over views.

    `views` is uint8 (B, V, T, H, W, 3). One view at a time goes through the model: more
    views take no more memory. `loss` is what the head was trained with.
    """

    def scores(params, views):
        def add(total, view):
            logits = model.apply({"params": params}, view, head)
            return total + LOSSES[loss].probabilities(logits), None

        b, v = views.shape[:2]
        total = jnp.zeros((b, model.classes[head]))
        total, _ = jax.lax.scan(add, total, views.swapaxes(0, 1))
        return total / v

    return scores
