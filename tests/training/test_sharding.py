import jax
import numpy as np
import pytest

from sparse_tube_vit.config import default_config, stream
from sparse_tube_vit.input.pipeline import IndivisibleBatch
from sparse_tube_vit.model import TubeViT, init_params
from sparse_tube_vit.training import sharding
from sparse_tube_vit.training.optimizer import make_optimizer
from sparse_tube_vit.training.step import TrainState, make_train_step
from sparse_tube_vit.tubes import Tube


def make_mesh(**axes):
    config = default_config()
    config.mesh.update(**axes)
    return sharding.make_mesh(config)


def test_one_axis_takes_the_devices_that_are_left():
    assert dict(make_mesh(fsdp=2).shape) == {"data": 2, "fsdp": 2, "tensor": 1}
    mesh = make_mesh(data=1, fsdp=2, tensor=-1)
    assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize("axes", [{"fsdp": 3}, {"data": 2}, {"data": -1, "fsdp": -1}])
def test_a_mesh_that_does_not_make_the_devices(axes):
    with pytest.raises(sharding.MeshDoesNotFit, match="does not make 4 devices"):
        make_mesh(**axes)


def test_a_batch_that_the_mesh_does_not_divide():
    with pytest.raises(IndivisibleBatch, match=r"streams.v.batch_size 6 .* of 4"):
        sharding.check_batch(6, make_mesh(fsdp=2), "streams.v")


def test_rules_on_names():
    mesh = make_mesh(data=1, fsdp=2, tensor=2)

    def spec(path, *shape):
        return tuple(sharding.parameter_spec(tuple(path.split("/")), shape, mesh))

    block = "params/encoder/block_0"
    assert spec(f"{block}/attention/query/kernel", 64, 4, 16) == (
        "fsdp",
        "tensor",
        None,
    )
    assert spec(f"{block}/attention/query/bias", 4, 16) == ("tensor", "fsdp")
    assert spec(f"{block}/attention/out/kernel", 4, 16, 64) == ("tensor", None, "fsdp")
    assert spec(f"{block}/mlp/up/kernel", 64, 256) == ("fsdp", "tensor")
    assert spec(f"{block}/mlp/down/kernel", 256, 64) == ("tensor", "fsdp")
    assert spec(f"{block}/mlp/down/bias", 64) == (None,)
    assert spec("params/stem/tube_0/kernel", 8, 8, 8, 3, 64) == (*[None] * 4, "fsdp")
    assert spec(f"{block}/norm_1/scale", 64) == (None,)
    assert spec("params/head_k/kernel", 63, 5) == (None, None)  # 2 divides neither
    assert spec("step") == ()


@pytest.mark.parametrize(
    "axes",
    [{}, {"fsdp": 4}, {"data": 1, "fsdp": 2, "tensor": 2}],
    ids=lambda axes: "-".join(f"{k}{v}" for k, v in axes.items()) or "data4",
)
def test_every_mesh_computes_what_one_device_computes(axes):
    """Two joint steps; the parameters are split and yet the same."""
    config = default_config()
    config.total_steps = 10
    config.optimizer.update(learning_rate=0.01, warmup_steps=1)
    for name in ("video", "image"):
        config.streams[name] = stream(kind=name, dataset="", head=name, batch_size=8)
    model = TubeViT(
        tubes=(Tube((4, 8, 8), (4, 8, 8)), Tube((1, 8, 8), (4, 8, 8))),
        classes={"video": 5, "image": 3},
        depth=1,
        width=16,
        mlp_dim=32,
        heads=2,
    )
    rng = np.random.default_rng(0)
    batches = {
        name: {
            "video": rng.integers(0, 256, (8, frames, 16, 16, 3), np.uint8),
            "label": rng.integers(0, 3, 8).astype(np.int32),
            "weight": np.ones(8, np.float32),
        }
        for name, frames in (("video", 4), ("image", 1))
    }
    optimizer = make_optimizer(config)
    params = init_params(model, jax.random.key(0), (4, 16, 16))
    state = TrainState.create(params, optimizer, config)
    train_step = make_train_step(model, optimizer, config)

    mesh = make_mesh(**axes)
    shardings = sharding.state_shardings(state, mesh)
    split = jax.device_put(state, shardings)
    in_batches = sharding.to_devices(batches, mesh)
    sharded_step = jax.jit(train_step, out_shardings=(shardings, None))
    plain_step = jax.jit(train_step)
    for _ in range(2):
        split, ours = sharded_step(split, in_batches)
        state, expected = plain_step(state, batches)
        np.testing.assert_allclose(ours["loss"], expected["loss"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
        split.params,
        state.params,
    )
    up = split.params["encoder"]["block_0"]["mlp"]["up"]["kernel"]
    moment = split.optimizer[1].mu["encoder"]["block_0"]["mlp"]["up"]["kernel"]
    ways = axes.get("fsdp", 1) * axes.get("tensor", 1)
    assert up.addressable_shards[0].data.size * ways == up.size
    assert moment.sharding == up.sharding
