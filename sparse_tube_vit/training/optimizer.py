"""Adam with warm-up and cosine decay (paper 5, table 10), at a rate by layer."""

import functools
import re
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import optax

from sparse_tube_vit.config import ConfigDict, input_size
from sparse_tube_vit.models.tubes import tubes_for
from sparse_tube_vit.models.variants import make_tubes
from sparse_tube_vit.training.freezing import (
    BELOW_BLOCKS,
    inside,
    waiting_parts,
)


def learning_rate(config: ConfigDict, first_step: int = 0) -> optax.Schedule:
    """Returns linear warm-up from 0, then cosine decay to 0 at the last step.

    Args:
        config: The config of a run.
        first_step: The step from which the schedule counts.
    """
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.optimizer.learning_rate,
        warmup_steps=config.optimizer.warmup_steps,
        decay_steps=config.total_steps - first_step,
    )


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Returns clipping by global norm, Adam, decoupled weight decay on kernels.

    Biases, norms and the pooling's probe are not decayed, nor are the kernels of tubes
    and heads that no stream trains: nothing would hold them against the decay. Each
    parameter's rate, and with it its weight decay, is scaled by `rate_scale`. With
    `optimizer.head_steps`, `update(..., heads_alone=True)` updates pooling, heads
    and fresh blocks alone; the warm-up of the rest begins after such steps.
    """
    o = config.optimizer
    clip = optax.clip_by_global_norm(o.clip_norm) if o.clip_norm else optax.identity()
    if not o.head_steps:
        return optax.chain(clip, *_adam(config))
    transforms = {
        "heads": optax.chain(*_adam(config)),
        "rest": _waiting(optax.chain(*_adam(config, o.head_steps))),
    }
    return optax.chain(clip, optax.partition(transforms, _heads_and_rest(config)))


def _adam(config, first_step=0):
    """Returns Adam's transformations; the schedule counts from `first_step`."""
    o = config.optimizer
    decayed = functools.partial(_decayed, _trained_by_streams(config))
    by_layer = [_scale_rates(config)] if has_rates_by_layer(config) else []
    return (
        optax.scale_by_adam(b1=o.beta1, b2=o.beta2, mu_dtype=o.first_moment_dtype),
        optax.add_decayed_weights(o.weight_decay, mask=decayed),
        *by_layer,
        optax.scale_by_learning_rate(learning_rate(config, first_step)),
    )


def _waiting(inner):
    """Leaves parameters and state as they are while pooling and heads train alone."""

    def update(updates, state, params=None, *, heads_alone=False):
        if heads_alone:
            return jax.tree.map(jnp.zeros_like, updates), state
        return inner.update(updates, state, params)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _heads_and_rest(config):
    """Returns the function that labels parameters as "heads" or "rest"."""
    waiting = waiting_parts(config)

    def label(path, _):
        return "rest" if inside(_name(path), waiting) else "heads"

    return lambda params: jax.tree.map_with_path(label, params)


def _name(path):
    """Returns a parameter's path as a/b/c."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def has_rates_by_layer(config: ConfigDict) -> bool:
    """Returns whether some parameters have another rate than `learning_rate`."""
    o = config.optimizer
    rates = (o.layer_decay, o.trunk_rate, o.video_tubes_rate)
    return any(rate not in (1, None) for rate in rates)


def rate_scale(config: ConfigDict, name: str) -> float:
    """Returns the fraction of the learning rate that a parameter trains at.

    With `optimizer.layer_decay` d and L pretrained blocks it is d^(L - i) in block i,
    counted from 0, d^(L + 1) below the blocks, and 1 in the encoder's norm, as in the
    fine-tuning of BEiT and MAE; times `optimizer.trunk_rate`. Fresh blocks on top, the
    gate, pooling and heads have 1. Tubes that image ViTs lack, those of several frames,
    and the gain of the positions have `optimizer.video_tubes_rate`, where it is set.

    Args:
        config: The config of a run.
        name: The parameter's path a/b/c.
    """
    o, depth = config.optimizer, config.model.depth
    if block := re.match(r"encoder/block_(\d+)/", name):
        return o.trunk_rate * o.layer_decay ** (depth - int(block[1]))
    if name.startswith("encoder/norm/"):
        return o.trunk_rate
    if not inside(name, BELOW_BLOCKS):
        return 1.0
    if o.video_tubes_rate is not None and name.startswith(_video_tubes(config)):
        return o.video_tubes_rate
    return o.trunk_rate * o.layer_decay ** (depth + 1)


def _video_tubes(config):
    """Returns the paths of tubes of several frames, and of the positions' gain."""
    tubes = make_tubes(config.model.tubes)
    several = [f"stem/tube_{i}/" for i, tube in enumerate(tubes) if tube.kernel[0] > 1]
    return ("stem/shared/", "positions/gain", *several)


def _scale_rates(config):
    """Returns the transformation that multiplies updates by their `rate_scale`."""

    def scale(path, update):
        return update * rate_scale(config, _name(path))

    return optax.stateless(lambda updates, _: jax.tree.map_with_path(scale, updates))


def describe_rates(config: ConfigDict, names: Iterable[str]) -> str:
    """Returns text on the peak learning rates of parameters a/b/c, the highest first.

    Args:
        config: The config of the run.
        names: Paths of the trained parameters.
    """
    groups = {}
    for name in names:
        layer = re.match(r"(encoder|stem|positions)/[^/]*|[^/]*", name)[0]
        groups.setdefault(rate_scale(config, name), {})[layer] = None
    peak = config.optimizer.learning_rate
    return "Peak learning rates by layer:" + "".join(
        f"\n  {peak * scale:<8.3g} {', '.join(groups[scale])}"
        for scale in sorted(groups, reverse=True)
    )


def _trained_by_streams(config) -> set[str]:
    """Returns the names of tubes and heads that a stream trains: images use few."""
    tubes = make_tubes(config.model.tubes)
    streams = [s for s in config.streams.values() if s.loss_weight]
    frames = [input_size(config.clip, s.kind)[0] for s in streams]
    used = {f"tube_{i}" for t in frames for i in tubes_for(tubes, t)}
    return used | {f"head_{s.head}" for s in streams}


def _decayed(trained, params):
    """Returns a tree of bools: whether each parameter is decayed."""

    def decayed(path, _):
        names = _name(path).split("/")
        of_streams = {name for name in names if name.startswith(("tube_", "head_"))}
        return names[-1] == "kernel" and of_streams <= trained

    return jax.tree.map_with_path(decayed, params)
