"""Adam with warm-up and cosine decay (paper 5, table 10)."""

import jax
import optax

from sparse_tube_vit.config import ConfigDict


def learning_rate(config: ConfigDict) -> optax.Schedule:
    """Returns linear warm-up from 0, then cosine decay to 0 at the last step."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.optimizer.learning_rate,
        warmup_steps=config.optimizer.warmup_steps,
        decay_steps=config.total_steps,
    )


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Returns clipping by global norm, Adam, decoupled weight decay on kernels."""
    o = config.optimizer
    return optax.chain(
        optax.clip_by_global_norm(o.clip_norm) if o.clip_norm else optax.identity(),
        optax.scale_by_adam(b1=o.beta1, b2=o.beta2, mu_dtype=o.first_moment_dtype),
        optax.add_decayed_weights(o.weight_decay, mask=_kernels),
        optax.scale_by_learning_rate(learning_rate(config)),
    )


def _kernels(params):
    """True for kernels: biases, norms and the pooling's probe are not decayed."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key == "kernel", params
    )
