"""What a run's config compiles to: training runs it, `preflight` measures it."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.distributed.mesh import BATCH
from sparse_tube_vit.distributed.sharding import (
    check_batch,
    check_model,
    state_shardings,
)
from sparse_tube_vit.models.losses import LOSSES
from sparse_tube_vit.models.tubevit import init_params, make_model
from sparse_tube_vit.training.freezing import join
from sparse_tube_vit.training.optimizer import make_optimizer
from sparse_tube_vit.training.state import TrainState
from sparse_tube_vit.training.step import make_train_step


class Program:
    """Model, optimizer and train step of a config, split over a mesh.

    Nothing is computed or compiled before `init` or `train_step` is called, so that the
    mesh may be one of devices that are not there: `program.lower().compile()`.

    Attributes:
      mesh: of axes `mesh.AXES`.
      model: a `TubeViT` with a head for every name in `classes`.
      optimizer: an optax transformation.
      state: `TrainState` of shapes, dtypes and shardings.
      batches: the same of what a step takes: for every stream uint8 (B, T, H, W, 3)
        "video", int32 "label" (B,), or (B, C) with a sigmoid loss, and float32 "weight"
        (B,).

    Raises:
      IndivisibleBatch: the mesh does not divide a stream's or an evaluation's batch.
      MeshDoesNotFit: it does not divide the encoder's layers.
      And as `make_model`.
    """

    def __init__(self, config: ConfigDict, classes: Mapping[str, int], mesh: Mesh):
        check_model(config, mesh)
        parts = config.optimizer.accumulate_steps
        for name, stream in config.streams.items():
            check_batch(stream.batch_size, mesh, f"streams.{name}", parts)
        for name, source in config.evaluations.items():
            check_batch(source.batch_size, mesh, f"evaluations.{name}")
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
        self._train_step = jax.jit(
            make_train_step(model, optimizer, config),
            in_shardings=(shardings, batched),
            out_shardings=(shardings, NamedSharding(mesh, P())),
            donate_argnums=0,
        )

    def init(self, given: Mapping) -> TrainState:
        """The state before the first step: fresh parameters from the config's seed.

        Args:
          given: a part of the parameters' tree, to take their place: numpy arrays, of
            which every device gets its share.
        """
        params = flatten_dict(self.state.params)

        def split(name, x):
            sharding = params[name].sharding
            return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)

        given = {name: split(name, x) for name, x in flatten_dict(given).items()}
        return self._init(unflatten_dict(given))

    def train_step(self, state: TrainState, batches) -> tuple[TrainState, dict]:
        """(state, metrics) after a step; takes the memory of the `state` it is given.

        `training.step.make_train_step` says what it computes.
        """
        with jax.set_mesh(self.mesh):
            return self._train_step(state, batches)

    def lower(self) -> jax.stages.Lowered:
        """The train step, for its shapes, ready to be compiled."""
        with jax.set_mesh(self.mesh):
            return self._train_step.lower(self.state, self.batches)


def _batch_shapes(config, model):
    """Shapes and dtypes of a batch of every stream."""
    frames, *size = model.clip
    shapes = {}
    for name, stream in config.streams.items():
        b = stream.batch_size
        clip = (frames if stream.kind == "video" else 1, *size, 3)
        label = (model.classes[stream.head],) if LOSSES[stream.loss].multi_label else ()
        shapes[name] = {
            "video": jax.ShapeDtypeStruct((b, *clip), jnp.uint8),
            "label": jax.ShapeDtypeStruct((b, *label), jnp.int32),
            "weight": jax.ShapeDtypeStruct((b,), jnp.float32),
        }
    return shapes


def _shaped(x, sharding):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
