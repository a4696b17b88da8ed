"""The device mesh, and which axis of it every array is split over."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.input.pipeline import IndivisibleBatch

AXES = ("data", "fsdp", "tensor")
#: Batches are split over both: parameters sharded over fsdp still see all the data.
BATCH = P(("data", "fsdp"))


class MeshDoesNotFit(TubeViTError, ValueError):
    """The axes of the mesh do not multiply to the number of devices."""


def make_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over devices; one axis of size -1 takes what is left.

    Args:
      config: of the run.
      devices: all that there are if not given; or those of a topology that is compiled
        for.

    Raises:
      MeshDoesNotFit: the sizes do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.mesh[axis] for axis in AXES]
    fixed = int(np.prod([s for s in sizes if s != -1]))
    if sizes.count(-1) == 1 and len(devices) % fixed == 0:
        sizes[sizes.index(-1)] = len(devices) // fixed
    if int(np.prod(sizes)) != len(devices) or min(sizes) < 1:
        asked = ", ".join(f"{a}={config.mesh[a]}" for a in AXES)
        raise MeshDoesNotFit(
            f"config.mesh ({asked}) does not make {len(devices)} devices. Let the axes "
            "multiply to that number, or set one of them to -1."
        )
    hosts = len({device.process_index for device in devices})
    if (sizes[0] * sizes[1]) % hosts:
        raise MeshDoesNotFit(
            f"Each of the {hosts} hosts feeds its own share of a batch, "
            f"but data {sizes[0]} x fsdp {sizes[1]} is not a multiple of them: tensor "
            f"{sizes[2]} must not reach across hosts."
        )
    placed = np.array(devices).reshape(sizes)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


# The layers whose outputs are split over `tensor`, and those that read such outputs.
_SPLIT_OUTPUTS = ("query", "key", "value", "up")
_SPLIT_INPUTS = ("out", "down")


def parameter_spec(path: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh) -> P:
    """How a parameter is split: over tensor by layer, over fsdp along the longest axis.

    An axis that a mesh axis does not divide stays whole.
    """
    spec = [None] * len(shape)
    *_, layer, name = ("", *path)
    split = None
    if layer in _SPLIT_OUTPUTS:  # kernels (D, heads, D/heads) and (D, M), their biases
        split = 1 if name == "kernel" else 0
    elif layer in _SPLIT_INPUTS and name == "kernel":  # (heads, D/heads, D), (M, D)
        split = 0
    if split is not None and shape[split] % mesh.shape["tensor"] == 0:
        spec[split] = "tensor"
    free = [i for i, s in enumerate(spec) if s is None and shape[i] > 1]
    free = [i for i in free if shape[i] % mesh.shape["fsdp"] == 0]
    if free and len(shape) > 1:
        spec[max(free, key=lambda i: shape[i])] = "fsdp"
    return P(*spec)


def state_shardings(state, mesh: Mesh):
    """Shardings of a train state of arrays or shapes; Adam's moments as parameters."""

    def sharding(path, leaf):
        names = tuple(str(getattr(k, "key", getattr(k, "name", k))) for k in path)
        return NamedSharding(mesh, parameter_spec(names, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, state)


def check_batch(batch_size: int, mesh: Mesh, where: str) -> None:
    """Raises IndivisibleBatch unless the mesh's data and fsdp axes divide the batch."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % ways:
        raise IndivisibleBatch(
            f"{where}.batch_size {batch_size} is not a multiple of {ways} (mesh axes "
            f"data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']}). Change either."
        )


def to_devices(batch, mesh: Mesh):
    """This host's share of a batch, a tree of numpy arrays, to global arrays."""
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, x), batch
    )
