"""Meshes: what they refuse, how they split, and that all of them compute the same."""

import dataclasses
import math
import re
from collections import Counter

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P

from sparse_tube_vit.config import default_config, evaluation, stream
from sparse_tube_vit.distributed import sharding
from sparse_tube_vit.distributed.share import Share
from sparse_tube_vit.errors import IndivisibleBatch
from sparse_tube_vit.training.program import Program


def make_mesh(**axes):
    config = default_config()
    config.mesh.update(**axes)
    return sharding.make_mesh(config)


def test_one_axis_takes_the_devices_that_are_left():
    assert dict(make_mesh(fsdp=2).shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    mesh = make_mesh(data=1, fsdp=2, tensor=-1)
    assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "tensor": 4}


@pytest.mark.parametrize("axes", [{"fsdp": 3}, {"data": 2}, {"data": -1, "fsdp": -1}])
def test_a_mesh_that_does_not_make_the_devices(axes):
    with pytest.raises(sharding.MeshDoesNotFit, match="does not make 8 devices"):
        make_mesh(**axes)


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh asks of a device that is not there."""

    id: int
    process_index: int = 0
    slice_index: int = 0
    device_kind: str = "cpu"
    platform: str = "cpu"
    core_on_chip: int = 0

    @property
    def coords(self):
        """Of a TPU whose slice is a line of chips, here two of them in turns."""
        return (self.id // 2, 0, 0)


def place(devices, **axes):
    """Numbers of the devices where the mesh puts them."""
    config = default_config()
    config.mesh.update(**axes)
    mesh = sharding.make_mesh(config, devices)
    return np.vectorize(lambda d: d.id)(mesh.devices), mesh


def test_the_data_axis_alone_reaches_across_slices():
    # Of two slices, whose devices come in turns.
    devices = [Device(i, slice_index=i % 2, platform="tpu") for i in range(8)]
    ids, _ = place(devices, slices=2, fsdp=2, tensor=2)
    assert ids.shape == (2, 2, 2)
    assert (
        sharding.count_slices(devices) == 2 and sharding.count_slices(devices[:1]) == 1
    )
    assert (ids[0] % 2 == 0).all() and (ids[1] % 2 == 1).all()
    ids, _ = place(devices, slices=2, fsdp=2)
    assert ids.tolist() == [[[0], [2]], [[4], [6]], [[1], [3]], [[5], [7]]]
    with pytest.raises(sharding.MeshDoesNotFit, match="in 2 slices. Set it to that"):
        place(devices)
    with pytest.raises(sharding.MeshDoesNotFit, match="mesh.slices 2 does not divide"):
        place(devices, slices=2, data=1, fsdp=-1)
    # Devices that know of no slices are taken for equal parts.
    assert np.array_equal(make_mesh(slices=2).devices, make_mesh().devices)
    with pytest.raises(sharding.MeshDoesNotFit, match="slices is 3"):
        make_mesh(slices=3)


def test_fsdp_and_tensor_span_nodes_of_gpus():
    """XLA takes each node for a slice."""
    devices = [
        Device(i, process_index=i // 4, slice_index=i // 4, platform="gpu")
        for i in range(8)
    ]
    assert sharding.count_slices(devices) == 1
    for axes in ({"data": 1, "fsdp": 8}, {"fsdp": 2, "tensor": 2}, {"tensor": 8}):
        ids, _ = place(devices, **axes)
        assert ids.ravel().tolist() == [*range(8)]
    ids, _ = place(devices, slices=2, fsdp=4)  # who wants it so
    assert ids.tolist() == [[[0], [1], [2], [3]], [[4], [5], [6], [7]]]


def test_every_host_feeds_its_share_of_a_batch():
    devices = [Device(i, process_index=i // 2) for i in range(8)]
    _, mesh = place(devices, fsdp=2)
    shares = [sharding.batch_share(mesh, h) for h in range(4)]
    assert shares == [Share(h, 4, parts=2) for h in range(4)]
    # Hosts that tensor connects feed the same.
    _, mesh = place(devices, tensor=4)
    shares = [sharding.batch_share(mesh, h) for h in range(4)]
    assert shares == [Share(h // 2, 2, parts=1) for h in range(4)]
    _, mesh = place(devices, fsdp=2, tensor=2)
    assert sharding.batch_share(mesh).parts == 1
    with pytest.raises(sharding.MeshDoesNotFit, match="shares that overlap"):
        place([Device(i, process_index=i // 3) for i in range(6)], tensor=2)


@pytest.mark.parametrize("sizes", [{}, {"fsdp": 4}, {"tensor": 2}, {"tensor": 8}])
def test_the_parts_of_a_share_are_those_of_the_devices(sizes):
    """As jax places the share as a whole."""
    mesh = make_mesh(**sizes)
    share = {"x": np.arange(48).reshape(16, 3), "y": np.arange(16, dtype=np.int8)}
    split = jax.sharding.NamedSharding(mesh, P(("data", "fsdp")))
    expected = {
        key: jax.make_array_from_process_local_data(split, x)
        for key, x in share.items()
    }
    parts = sharding.batch_share(mesh).parts
    assert parts == 8 // sizes.get("tensor", 1)
    cut = {key: np.split(x, parts) for key, x in share.items()}
    found = sharding.to_devices(
        [{key: x[i] for key, x in cut.items()} for i in range(parts)], mesh
    )
    for key, x in expected.items():
        assert found[key].sharding == x.sharding and found[key].dtype == x.dtype
        for a, b in zip(
            found[key].addressable_shards, x.addressable_shards, strict=True
        ):
            assert a.device == b.device
            np.testing.assert_array_equal(a.data, b.data)


def test_what_the_mesh_does_not_divide():
    with pytest.raises(IndivisibleBatch, match=r"streams.v.batch_size 6 .* of 8"):
        sharding.check_batch(6, make_mesh(fsdp=2), "streams.v")
    with pytest.raises(IndivisibleBatch, match=r"24 .* 16 .*accumulate_steps 2"):
        sharding.check_batch(24, make_mesh(), "streams.v", parts=2)
    config = default_config()
    for axes, message in (
        ({"fsdp": 8}, "model.width 12 .* axis fsdp 8"),
        ({"tensor": 4}, "model.heads 6 .* axis tensor 4"),
    ):
        config.model.update(width=12, heads=6)
        with pytest.raises(sharding.MeshDoesNotFit, match=message):
            sharding.check_mesh(config, make_mesh(**axes))


def test_evaluations_are_checked_before_anything_is_compiled():
    """By what preflight compiles too: else a pod is paid for, and the run refused."""
    config = make_config()
    views = evaluation(kind="video", dataset="", head="video", batch_size=12)
    config.evaluations.views = views
    with pytest.raises(IndivisibleBatch, match=r"evaluations.views.batch_size 12 .* 8"):
        Program(config, CLASSES, make_mesh())


def test_gates_are_split_as_the_other_hidden_units():
    mesh = jax.sharding.AbstractMesh((1, 2, 4), ("data", "fsdp", "tensor"))
    for leaf, shape in (("kernel", (32, 80)), ("bias", (80,))):
        specs = {
            sharding.parameter_spec(f"encoder/block_0/mlp/{layer}/{leaf}", shape, mesh)
            for layer in ("up", "gate")
        }
        assert len(specs) == 1 and "tensor" in specs.pop()
    assert sharding.parameter_spec("encoder/gate", (), mesh) == P()


# A joint run of tiny clips. Sizes are such that none is a product of others: a size in
# a compiled program tells what it is of.
BATCH, MLP = 24, 80
CLASSES = {"video": 5, "image": 7}


def make_config(**options):
    config = default_config()
    config.total_steps = 10
    config.clip.update(frames=6, size=16)
    config.model.update(depth=2, width=32, mlp_dim=MLP, heads=4)
    config.model.tubes = (
        {"kernel": (2, 8, 8), "stride": (2, 8, 8)},
        {"kernel": (1, 8, 8), "stride": (6, 8, 8)},
    )
    config.optimizer.update(learning_rate=1e-3, warmup_steps=1, ema_decay=0.9)
    for kind in CLASSES:
        config.streams[kind] = stream(
            kind=kind, dataset="", head=kind, batch_size=BATCH, mixup=0.2
        )
    for key, value in options.items():
        section, key = key.split(".")
        config[section][key] = value
    return config


def make_batches(shapes):
    rng = np.random.default_rng(0)
    return {
        name: {
            "video": rng.integers(0, 256, x["video"].shape, np.uint8),
            "label": rng.integers(0, 5, BATCH).astype(np.int32),
            "weight": (rng.random(BATCH) < 0.8).astype(np.float32),
        }
        for name, x in shapes.items()
    }


@dataclasses.dataclass
class Run:
    """Five steps of a program."""

    program: Program
    text: str  # of the compiled step, of one device
    losses: list
    state: dict


@pytest.fixture(scope="module")
def five_steps():
    """Runs a config, each once, from the same state."""
    runs, start = {}, None

    def run(devices=None, **options):
        nonlocal start
        name = str((devices, options))
        if name not in runs:
            config = make_config(**options)
            mesh = sharding.make_mesh(config, jax.devices()[:devices])
            program = Program(config, CLASSES, mesh)
            if start is None:
                start = jax.device_get(program.init({}))
            places = jax.tree.map(lambda x: x.sharding, program.state)
            state, losses = jax.device_put(start, places), []
            batches = jax.device_put(
                make_batches(program.batches),
                jax.sharding.NamedSharding(mesh, P(("data", "fsdp"))),
            )
            step = program.lower().compile()
            for _ in range(5):
                state, metrics = step(state, batches)
                losses.append(float(metrics["loss"]))
            runs[name] = Run(program, step.as_text(), losses, state)
        return runs[name]

    return run


DATA = {}
FSDP = {"mesh.fsdp": 8, "model.scan": True, "model.remat": "full"}
TENSOR = {"mesh.data": 2, "mesh.tensor": 4, "model.remat": "dots"}
MIXED = {
    "mesh.slices": 2,
    "mesh.fsdp": 2,
    "mesh.tensor": 2,
    "model.scan": True,
    "model.remat": "dots",
    "optimizer.accumulate_steps": 2,
}


@pytest.mark.parametrize(
    "options", [DATA, FSDP, TENSOR, MIXED], ids=["data", "fsdp", "tensor", "mixed"]
)
def test_every_mesh_computes_what_one_device_computes(options, five_steps):
    """With the options that save memory, too: none of them changes what is learnt."""
    expected, run = five_steps(devices=1), five_steps(**options)
    assert run.program.mesh.size == 8
    np.testing.assert_allclose(run.losses, expected.losses, rtol=1e-5)
    assert expected.losses[-1] < expected.losses[0] - 0.01
    for name in ("params", "ema"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            getattr(run.state, name),
            getattr(expected.state, name),
        )
    moments = run.state.optimizer[1], expected.state.optimizer[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *moments)


@pytest.mark.parametrize(
    "options", [FSDP, TENSOR, MIXED], ids=["fsdp", "tensor", "mixed"]
)
def test_every_matrix_is_split_and_so_are_its_moments(options, five_steps):
    run = five_steps(**options)
    shape = run.program.mesh.shape
    params = flatten_dict(run.state.params, sep="/")
    adam = run.state.optimizer[1]
    kept = [flatten_dict(x, sep="/") for x in (adam.mu, adam.nu, run.state.ema)]
    layers = ("query", "key", "value", "out", "up", "down")
    split = Counter()
    for name, x in params.items():
        ways = 1
        if name.endswith("kernel"):
            of_a_layer = name.split("/")[-2] in layers
            ways = shape["fsdp"] * (shape["tensor"] if of_a_layer else 1)
        elif name.split("/")[-2] in ("query", "key", "value", "up"):
            ways = shape["tensor"]
        for array in (x, *(tree[name] for tree in kept)):
            shard = array.addressable_shards[0].data
            assert shard.size * ways == array.size, name
            assert array.sharding.is_equivalent_to(x.sharding, x.ndim)
        split[ways] += 1
    assert max(split) == shape["fsdp"] * shape["tensor"] and split[max(split)] >= 12


def collectives(text):
    """[(operation, dtype, shape)] of all that a program's devices exchange."""
    found = []
    pattern = r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all)(?:-start)?\("
    for line in text.splitlines():
        if match := re.search(pattern, line):
            for dtype, sizes in re.findall(r"([a-z]+\d+)\[([\d,]*)\]", match[1]):
                shape = tuple(int(n) for n in sizes.split(",") if n)
                found.append((match[2], dtype, shape))
    return found


def sizes_in(text):
    """All sizes of axes of arrays in a program."""
    shapes = re.findall(r"[a-z]+\d+\[([\d,]+)\]", text)
    return {int(n) for shape in shapes for n in shape.split(",")}


def test_fsdp_gathers_parameters_reduces_gradients_and_nothing_else(five_steps):
    run = five_steps(**FSDP)
    kernels = {
        name: x.shape
        for name, x in flatten_dict(run.state.params, sep="/").items()
        if name.endswith("kernel")
    }
    # As the model takes them: tubes as matrices.
    matrices = {math.prod(shape) for shape in kernels.values()}
    per_layer = sum(name.startswith("encoder/block_0/") for name in kernels)
    gathered = [x for op, _, x in collectives(run.text) if op == "all-gather"]
    reduced = [
        shape
        for op, _, shape in collectives(run.text)
        if op in ("all-reduce", "reduce-scatter") and len(shape) > 1
    ]
    assert {math.prod(shape) for shape in gathered} == matrices
    assert not [x for op, _, x in collectives(run.text) if op == "all-to-all"]
    # Layer by layer: both loops, forward and back, gather one layer for all streams,
    # and the one back reduces its gradient.
    in_loops = 2 * per_layer
    outside = len([name for name in kernels if "block_" not in name])
    assert len(gathered) <= in_loops + 3 * outside
    assert {math.prod(kernel) for kernel in kernels.values()} <= {
        math.prod(shape) for shape in reduced
    }
    # No device holds more of a batch than its share.
    assert BATCH not in sizes_in(run.text) and BATCH // 8 in sizes_in(run.text)


def test_other_meshes_split_batches_heads_and_hidden_units(five_steps):
    data = five_steps(**DATA)
    assert {op for op, *_ in collectives(data.text)} == {"all-reduce"}
    assert BATCH not in sizes_in(data.text)
    tensor = five_steps(**TENSOR)
    assert {op for op, *_ in collectives(tensor.text)} == {"all-reduce"}
    assert {BATCH, MLP}.isdisjoint(sizes_in(tensor.text))
    assert {BATCH // 2, MLP // 4} <= sizes_in(tensor.text)
    mixed = five_steps(**MIXED)
    assert {BATCH, MLP}.isdisjoint(sizes_in(mixed.text))
    assert {BATCH // 4, MLP // 2} <= sizes_in(mixed.text)
