"""The compiled program of a config: training runs it, `preflight` measures it."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sparse_tube_vit.config import ConfigDict, input_size
from sparse_tube_vit.distributed.mesh import BATCH
from sparse_tube_vit.distributed.sharding import (
    check_mesh,
    state_shardings,
)
from sparse_tube_vit.models.losses import LOSSES
from sparse_tube_vit.models.tubevit import init_params, make_model
from sparse_tube_vit.training.freezing import join
from sparse_tube_vit.training.optimizer import make_optimizer
from sparse_tube_vit.training.state import TrainState
from sparse_tube_vit.training.step import make_train_step


class Program:
    """Model, optimizer and train step of a config, sharded over a mesh.

    Nothing is computed or compiled before `init` or `train_step` is called, so the mesh
    may be one of devices that are not attached: `program.lower().compile()`.

    Args:
        config: As `config.validate` accepts it.
        classes: Number of classes of every head.
        mesh: The mesh, of axes `mesh.AXES`.

    Attributes:
        mesh: As given.
        model: A `TubeViT` with a head for every name in `classes`.
        optimizer: An optax transformation.
        state: `TrainState` of shapes, dtypes and shardings.
        batches: The same for the batches of a step: for every stream "video" uint8
            (B, T, H, W, 3), "label" int32 (B,), or (B, C) with a sigmoid loss, and
            "weight" float32 (B,).

    Raises:
        IndivisibleBatch: The mesh does not divide the batch of a stream or evaluation.
        MeshDoesNotFit: The mesh does not divide the encoder's layers.
        TubeViTError: The named errors of `make_model`.
    """

    def __init__(self, config: ConfigDict, classes: Mapping[str, int], mesh: Mesh):
        check_mesh(config, mesh)
        self.mesh = mesh
        model = self.model = make_model(config, classes)
        optimizer = self.optimizer = make_optimizer(config)

        def init(given):
            params = init_params(model, jax.random.key(config.seed), model.clip)
            return TrainState.create(join(params, given), optimizer, config)

        shapes = jax.eval_shape(init, {})
        shardings = state_shardings(shapes, mesh)
        batched = NamedSharding(mesh, P(BATCH))
        self.state = jax.tree.map(_shaped, shapes, shardings)
        self.batches = jax.tree.map(
            lambda x: _shaped(x, batched), _batch_shapes(config, model)
        )
        self._init = jax.jit(init, out_shardings=shardings)
        self._train_step, self._head_step = (
            jax.jit(
                make_train_step(model, optimizer, config, heads_alone),
                in_shardings=(shardings, batched),
                out_shardings=(shardings, NamedSharding(mesh, P())),
                donate_argnums=0,
            )
            for heads_alone in (False, True)
        )

    def init(self, given: Mapping) -> TrainState:
        """Returns the state before the first step, drawn from the config's seed.

        Args:
            given: A part of the parameter tree as numpy arrays, used in place of drawn
                parameters. Each device gets its shard.
        """
        params = flatten_dict(self.state.params)

        def shard(name, x):
            sharding = params[name].sharding
            return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)

        given = {name: shard(name, x) for name, x in flatten_dict(given).items()}
        return self._init(unflatten_dict(given))

    def train_step(
        self, state: TrainState, batches, heads_alone: bool = False
    ) -> tuple[TrainState, dict]:
        """Returns (state, metrics) after a step, see `step.make_train_step`.

        The memory of `state` is donated.
        """
        step = self._head_step if heads_alone else self._train_step
        with jax.set_mesh(self.mesh):
            return step(state, batches)

    def lower(self) -> jax.stages.Lowered:
        """Lowers the train step for its shapes, to be compiled."""
        with jax.set_mesh(self.mesh):
            return self._train_step.lower(self.state, self.batches)


def _batch_shapes(config, model):
    """Shapes and dtypes of one batch per stream.

    With a sigmoid loss they are of several labels, of which a data set may have one.
    """
    shapes = {}
    for name, stream in config.streams.items():
        b = stream.batch_size
        clip = (*input_size(config.clip, stream.kind), 3)
        label = (model.classes[stream.head],) if LOSSES[stream.loss].multi_label else ()
        shapes[name] = {
            "video": jax.ShapeDtypeStruct((b, *clip), jnp.uint8),
            "label": jax.ShapeDtypeStruct((b, *label), jnp.int32),
            "weight": jax.ShapeDtypeStruct((b,), jnp.float32),
        }
    return shapes


def _shaped(x, sharding):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
