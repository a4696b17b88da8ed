"""The state of a run, which checkpoints hold."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.training.freezing import frozen_parts, join, split


@flax.struct.dataclass
class TrainState:
    """All a checkpoint holds of a run; random numbers follow from seed and step.

    Attributes:
      step: optimizer steps taken.
      params: all parameters.
      optimizer: the optimizer's state, of those parameters that are trained.
      ema: an average of those parameters, or None.
    """

    step: jax.Array
    params: Any
    optimizer: Any
    ema: Any

    @classmethod
    def create(cls, params, optimizer, config: ConfigDict):
        """The state before the first step of a run of `config`."""
        trained, _ = split(params, frozen_parts(config))
        ema = jax.tree.map(jnp.copy, trained) if config.optimizer.ema_decay else None
        return cls(jnp.zeros((), jnp.int32), params, optimizer.init(trained), ema)

    @property
    def eval_params(self):
        """The averaged parameters where there are any."""
        return self.params if self.ema is None else join(self.params, self.ema)
