"""The state of a run, as checkpoints hold it."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.training.freezing import frozen_parts, join, partition


@flax.struct.dataclass
class TrainState:
    """The state of a run; random numbers follow from seed and step.

    Attributes:
        step: Number of optimizer steps taken.
        params: All parameters.
        optimizer: The optimizer's state for the trained parameters.
        ema: Exponential moving average of the trained parameters, or None.
    """

    step: jax.Array
    params: Any
    optimizer: Any
    ema: Any

    @classmethod
    def create(cls, params, optimizer, config: ConfigDict):
        """Returns the state before the first step."""
        trained, _ = partition(params, frozen_parts(config))
        ema = jax.tree.map(jnp.copy, trained) if config.optimizer.ema_decay else None
        return cls(jnp.zeros((), jnp.int32), params, optimizer.init(trained), ema)

    @property
    def eval_params(self):
        """The averaged parameters, or the parameters if no average is kept."""
        return self.params if self.ema is None else join(self.params, self.ema)
