"""One optimizer step on a batch of every stream."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.distributed.mesh import BATCH, constrain
from sparse_tube_vit.distributed.sharding import constrain_parameters
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.models.losses import (
    cross_entropy,
    mean_weights,
    multi_hot,
    precision_at_1,
    smooth,
)
from sparse_tube_vit.models.tubes import normalize
from sparse_tube_vit.models.tubevit import TubeViT
from sparse_tube_vit.training.freezing import (
    frozen_parts,
    join,
    partition,
    waiting_parts,
)
from sparse_tube_vit.training.optimizer import learning_rate
from sparse_tube_vit.training.state import TrainState


def mix_pairs(key, alpha, examples):
    """Mixes each example with its neighbour (mixup), by lambda from Beta(alpha, alpha).

    Its label, for the accuracy, is that of the example with the larger weight. A pair
    counts if both of its examples could be decoded. The clips themselves are
    mixed by `model_clips`, as late as possible: until then they stay uint8.
    """
    neighbours = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), examples)
    lam = jax.random.beta(key, alpha, alpha)
    target = lam * examples["target"] + (1 - lam) * neighbours["target"]
    return examples | {
        "label": jnp.where(lam >= 0.5, examples["label"], neighbours["label"]),
        "target": target,
        "weight": examples["weight"] * neighbours["weight"],
        "neighbour": neighbours["video"],
        "lambda": jnp.full_like(examples["weight"], lam),
    }


def model_clips(examples):
    """Returns clips (B, T, H, W, 3) for the model: uint8, or floats if mixed."""
    if "neighbour" not in examples:
        return examples["video"]
    lam = examples["lambda"].reshape(-1, 1, 1, 1, 1)
    one, other = (normalize(examples[key]) for key in ("video", "neighbour"))
    return lam * one + (1 - lam) * other


def step_keys(config: ConfigDict, step) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the keys of dropout, and of each stream's mixup, after `step` steps."""
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    dropout, *mixup = jax.random.split(key, 1 + len(config.streams))
    return dropout, dict(zip(config.streams, mixup, strict=True))


def model_input(key, stream, batch, classes: int):
    """Applies label smoothing and mixup to a stream's batch.

    Returns:
        "video", "label" (B, C), "target" (B, C), "weight" (B,), and what `mix_pairs`
        adds; `model_clips` makes the model's input of them.
    """
    label = multi_hot(batch["label"], classes)
    target = smooth(label, stream["label_smoothing"], stream["loss"])
    examples = {name: batch[name] for name in ("video", "weight")}
    examples |= {"label": label, "target": target}
    return mix_pairs(key, stream["mixup"], examples) if stream["mixup"] else examples


def make_train_step(
    model: TubeViT,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    heads_alone: bool = False,
) -> Callable:
    """Returns train_step(state, batches) -> (state, metrics).

    `batches` maps a stream's name to {"video": uint8 (B, T, H, W, 3), "label": (B,) or
    multi-hot (B, C), "weight": (B,)}. The loss is the weighted sum of the streams' mean
    losses; one gradient is taken of it, with respect to the trained parameters.
    `metrics` has "loss", "gradient_norm", "learning_rate", and of each stream
    "STREAM/loss" and "STREAM/accuracy", or "STREAM/precision_at_1" where examples have
    several labels.

    With `heads_alone`, the step of the first `optimizer.head_steps`, no gradient is
    computed below the pooling, or the fresh blocks on top.

    With `optimizer.accumulate_steps` k, gradients of k parts of each batch accumulate.
    Mixup pairs and means are those of the whole batch, so that only the random numbers
    of dropout differ.

    Args:
        model: The model, with a head for every stream.
        optimizer: Of `make_optimizer`, or one whose `update` heeds `heads_alone` where
            it is set. The logged learning rate is the config's.
        config: As `config.validate` accepts it.
        heads_alone: As above.
    """
    update = optimizer.update
    if heads_alone:
        update = functools.partial(update, heads_alone=True)
    rates = learning_rate(config)
    streams = {name: stream.to_dict() for name, stream in config.streams.items()}

    def examples_of(stream, key, batch):
        examples = model_input(key, stream, batch, model.classes[stream["head"]])
        return examples | {"weight": mean_weights(examples["weight"])}

    def train_step(state: TrainState, batches):
        dropout, mixup = step_keys(config, state.step)
        trained, frozen = partition(state.params, frozen_parts(config))
        active, waiting = partition(
            trained, waiting_parts(config) if heads_alone else ()
        )
        examples = {
            name: examples_of(stream, mixup[name], batches[name])
            for name, stream in streams.items()
        }

        def loss_fn(active, examples, part):
            logits = model.apply(
                {"params": join(join(frozen, waiting), active)},
                {name: model_clips(examples[name]) for name in streams},
                {name: stream["head"] for name, stream in streams.items()},
                train=True,
                rngs={"dropout": jax.random.fold_in(dropout, part)},
            )
            total, metrics = 0.0, {}
            for name, stream in streams.items():
                batch, weight = examples[name], examples[name]["weight"]
                loss = cross_entropy(
                    logits[name], batch["target"], weight, stream["loss"]
                )
                total += stream["loss_weight"] * loss
                one_label = batches[name]["label"].ndim == 1
                metric = "accuracy" if one_label else "precision_at_1"
                value = precision_at_1(logits[name], batch["label"], weight)
                metrics |= {f"{name}/loss": loss, f"{name}/{metric}": value}
            return total, metrics | {"loss": total}

        def gradient(examples, part):
            gradient, metrics = jax.grad(loss_fn, has_aux=True)(active, examples, part)
            return constrain_parameters(gradient), metrics

        gradients, metrics = sum_of_parts(
            gradient, examples, config.optimizer.accumulate_steps
        )
        gradients = join(jax.tree.map(jnp.zeros_like, waiting), gradients)
        updates, optimizer_state = update(gradients, state.optimizer, trained)
        trained = optax.apply_updates(trained, updates)
        ema = state.ema
        if ema is not None:
            # Ramp the EMA decay up, so that early averages are not dominated by the
            # initial values.
            decay = jnp.minimum(
                config.optimizer.ema_decay, (1.0 + state.step) / (10.0 + state.step)
            )
            ema = optax.incremental_update(trained, ema, 1 - decay)
        metrics |= {
            "gradient_norm": optax.global_norm(gradients),
            "learning_rate": rates(state.step),
        }
        params = join(frozen, trained)
        return TrainState(state.step + 1, params, optimizer_state, ema), metrics

    return train_step


def sum_of_parts(function: Callable, examples, parts: int):
    """Sums function(part i of the examples, i) over parts, one in memory at a time.

    Example e belongs to part e % parts, so that each device holds some of every part.
    """
    if parts == 1:
        return function(examples, 0)

    def part(i):
        def take(x):
            x = x.reshape(-1, parts, *x.shape[1:])
            x = jax.lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False)
            return constrain(x, BATCH)

        return function(jax.tree.map(take, examples), i)

    def add(total, i):
        return jax.tree.map(jnp.add, total, part(i)), None

    nothing = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(part, 0)
    )
    return jax.lax.scan(add, nothing, jnp.arange(parts))[0]


class NonFiniteLoss(TubeViTError, FloatingPointError):
    """The loss or its gradient became infinite or not a number."""


def check_finite(metrics, step: int) -> None:
    """Raises NonFiniteLoss unless the loss of `step` and its gradient are finite."""
    for name in ("loss", "gradient_norm"):
        if not np.isfinite(value := float(metrics[name])):
            raise NonFiniteLoss(
                f"The {name} is {value} at step {step}; nothing was saved since the "
                "last checkpoint, from which the same command meets this again. In "
                "another --workdir, lower optimizer.learning_rate, raise "
                "optimizer.warmup_steps, or set optimizer.clip_norm; "
                "--config.init.weights starts from the parameters of this one."
            )
