"""Adam with warm-up and cosine decay (paper 5, table 10)."""

import functools

import jax
import optax

from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.models.tubes import tubes_for
from sparse_tube_vit.models.variants import make_tubes


def learning_rate(config: ConfigDict) -> optax.Schedule:
    """Returns linear warm-up from 0, then cosine decay to 0 at the last step."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.optimizer.learning_rate,
        warmup_steps=config.optimizer.warmup_steps,
        decay_steps=config.total_steps,
    )


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Returns clipping by global norm, Adam, decoupled weight decay on kernels.

    Biases, norms and the pooling's probe are not decayed, nor are the kernels of tubes
    that no stream trains: nothing would hold them against the decay.
    """
    o = config.optimizer
    decayed = functools.partial(_decayed, _untrained_tubes(config))
    return optax.chain(
        optax.clip_by_global_norm(o.clip_norm) if o.clip_norm else optax.identity(),
        optax.scale_by_adam(b1=o.beta1, b2=o.beta2, mu_dtype=o.first_moment_dtype),
        optax.add_decayed_weights(o.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(learning_rate(config)),
    )


def _untrained_tubes(config) -> set[str]:
    """Returns the names of the tubes that no stream trains: images go through few."""
    tubes, streams = make_tubes(config.model.tubes), config.streams.values()
    frames = [config.clip.frames if s.kind == "video" else 1 for s in streams]
    trained = {i for t in frames for i in tubes_for(tubes, t)}
    return {f"tube_{i}" for i in range(len(tubes)) if i not in trained}


def _decayed(untrained, params):
    """Returns a tree of bools: whether each parameter is decayed."""

    def decayed(path, _):
        names = [key.key for key in path]
        return names[-1] == "kernel" and not untrained.intersection(names)

    return jax.tree_util.tree_map_with_path(decayed, params)
