"""What a run's config compiles to: training runs it, `preflight` measures it."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.model import init_params
from sparse_tube_vit.training import sharding
from sparse_tube_vit.training.freezing import join
from sparse_tube_vit.training.optimizer import make_optimizer
from sparse_tube_vit.training.state import TrainState
from sparse_tube_vit.training.step import make_train_step
from sparse_tube_vit.variants import make_model


class Program:
    """Model, optimizer and train step of a config, split over a mesh.

    Nothing is computed or compiled before `init` or `train_step` is called, so that the
    mesh may be one of devices that are not there:
    `program.train_step.lower(program.state, program.batches).compile()`.

    Attributes:
      model: a `TubeViT` with a head for every name in `classes`.
      optimizer: an optax transformation.
      state: `TrainState` of shapes, dtypes and shardings.
      batches: the same of what a step takes: for every stream uint8 (B, T, H, W, 3)
        "video", int32 "label" (B,), or (B, C) with a sigmoid loss, and float32 "weight"
        (B,).
      init: jitted, init(given) -> state before the first step: fresh parameters from
        the config's seed, with those of `given`, a part of the tree, in their place.
      train_step: jitted, train_step(state, batches) -> (state, metrics); it takes the
        memory of the state that it is given.

    Raises:
      IndivisibleBatch: the mesh does not divide a stream's batch; and as `make_model`.
    """

    def __init__(self, config: ConfigDict, classes: Mapping[str, int], mesh: Mesh):
        for name, stream in config.streams.items():
            sharding.check_batch(stream.batch_size, mesh, f"streams.{name}")
        model = self.model = make_model(config, classes)
        optimizer = self.optimizer = make_optimizer(config)

        def init(given):
            params = init_params(model, jax.random.key(config.seed), model.clip)
            return TrainState.create(join(params, given), optimizer, config)

        shapes = jax.eval_shape(init, {})
        shardings = sharding.state_shardings(shapes, mesh)
        batched = NamedSharding(mesh, sharding.BATCH)
        self.state = jax.tree.map(_shaped, shapes, shardings)
        self.batches = jax.tree.map(
            lambda x: _shaped(x, batched), _batch_shapes(config, model)
        )
        self.init = jax.jit(init, out_shardings=shardings)
        self.train_step = jax.jit(
            make_train_step(model, optimizer, config),
            in_shardings=(shardings, batched),
            out_shardings=(shardings, NamedSharding(mesh, P())),
            donate_argnums=0,
        )


def _batch_shapes(config, model):
    """Shapes and dtypes of a batch of every stream."""
    frames, *size = model.clip
    shapes = {}
    for name, stream in config.streams.items():
        b = stream.batch_size
        clip = (frames if stream.kind == "video" else 1, *size, 3)
        label = (model.classes[stream.head],) if stream.loss == "sigmoid" else ()
        shapes[name] = {
            "video": jax.ShapeDtypeStruct((b, *clip), jnp.uint8),
            "label": jax.ShapeDtypeStruct((b, *label), jnp.int32),
            "weight": jax.ShapeDtypeStruct((b,), jnp.float32),
        }
    return shapes


def _shaped(x, sharding):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
