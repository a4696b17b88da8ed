"""The state of a run, which checkpoints hold."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class TrainState:
    """All a checkpoint holds of a run; random numbers follow from seed and step."""

    step: jax.Array
    params: Any
    optimizer: Any
    ema: Any  # averaged parameters, or None

    @classmethod
    def create(cls, params, optimizer, ema: bool):
        average = jax.tree.map(jnp.copy, params) if ema else None
        return cls(jnp.zeros((), jnp.int32), params, optimizer.init(params), average)

    @property
    def eval_params(self):
        """The averaged parameters where there are any."""
        return self.params if self.ema is None else self.ema
