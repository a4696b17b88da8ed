"""The device mesh, and the shardings of parameters and batches."""

import collections
import math
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.distributed.mesh import AXES, BATCH
from sparse_tube_vit.distributed.share import Share
from sparse_tube_vit.errors import IndivisibleBatch, TubeViTError


class MeshDoesNotFit(TubeViTError, ValueError):
    """The mesh does not fit the devices, the hosts or the model."""


def make_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh of a config's axis sizes; one size of -1 is inferred.

    Neighbours on an axis are neighbours in the network of a TPU slice, where its shape
    allows. Only the data axis spans slices: they exchange gradients once a step.

    Args:
        config: The config of the run.
        devices: By default all; or those of a topology to compile for.

    Raises:
        MeshDoesNotFit: The sizes do not fit the devices, their slices or their hosts.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _axis_sizes(config, len(devices))
    slices = _slices(config, devices)
    if sizes[0] % len(slices):
        raise MeshDoesNotFit(
            f"config.mesh.data makes {sizes[0]}, which mesh.slices {len(slices)} does "
            "not divide: each slice takes its share of the data axis."
        )
    within = (sizes[0] // len(slices), *sizes[1:])
    placed = [
        mesh_utils.create_device_mesh(within, each, allow_split_physical_axes=True)
        for each in slices
    ]
    mesh = Mesh(np.concatenate(placed), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    batch_share(mesh, devices[0].process_index)
    return mesh


def count_slices(devices: Sequence[jax.Device]) -> int:
    """Returns the number of TPU slices that the devices are in, 1 for other devices."""
    return len(_by_slice(devices))


def _by_slice(devices):
    groups = collections.defaultdict(list)
    for device in devices:
        # XLA numbers nodes of GPUs as slices; fsdp and tensor may span these.
        on_tpu = device.platform == "tpu"
        groups[getattr(device, "slice_index", 0) if on_tpu else 0].append(device)
    return groups


def _axis_sizes(config, devices):
    """Returns the sizes of the axes, whose product is the number of devices."""
    sizes = [config.mesh[axis] for axis in AXES]
    fixed = math.prod(s for s in sizes if s != -1)
    if sizes.count(-1) == 1 and devices % fixed == 0:
        sizes[sizes.index(-1)] = devices // fixed
    if math.prod(sizes) != devices or min(sizes) < 1:
        asked = ", ".join(f"{a}={config.mesh[a]}" for a in AXES)
        raise MeshDoesNotFit(
            f"config.mesh ({asked}) does not make {devices} devices. Let the axes "
            "multiply to that number, or set one of them to -1."
        )
    return sizes


def _slices(config, devices):
    """Returns the devices by slice; if they have none, equal parts in their order."""
    count, groups = config.mesh.slices, _by_slice(devices)
    if len(groups) > 1 and len(groups) != count:
        raise MeshDoesNotFit(
            f"config.mesh.slices is {count}, but the devices are in {len(groups)} "
            "slices. Set it to that."
        )
    if len(devices) % count:
        raise MeshDoesNotFit(
            f"config.mesh.slices is {count}, which does not divide the {len(devices)} "
            "devices."
        )
    if len(groups) > 1:
        return [groups[index] for index in sorted(groups)]
    return np.array(devices).reshape(count, -1).tolist()


def batch_share(mesh: Mesh, process: int | None = None) -> Share:
    """Returns a host's share of every batch.

    Hosts that the tensor axis connects load the same share; otherwise no example is in
    two: any number of hosts feeds the same examples in a step, each once. Devices of a
    share need not be neighbours in the mesh, so that the order of examples, and the
    pairs of mixup, depend on hosts and mesh.

    Args:
        mesh: The mesh of the run.
        process: Number of the host; by default this one's.

    Raises:
        MeshDoesNotFit: Hosts would feed shares that overlap in part.
    """
    process = jax.process_index() if process is None else process
    rows = mesh.devices.reshape(-1, mesh.shape["tensor"])  # one part of a batch each
    fed = collections.defaultdict(set)
    for i, row in enumerate(rows):
        for device in row:
            fed[device.process_index].add(i)
    shares = sorted({tuple(sorted(parts)) for parts in fed.values()})
    if sum(map(len, shares)) != len(rows) or len(set(map(len, shares))) > 1:
        raise MeshDoesNotFit(
            f"Each of the {len(fed)} hosts feeds its own share of a batch, but "
            + ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
            + " gives them shares that overlap. Let tensor divide the devices of a "
            "host, or be a multiple of them."
        )
    index = shares.index(tuple(sorted(fed[process])))
    return Share(index, len(shares), parts=len(rows) // len(shares))


#: Shardings of parameters by the end of their path. tensor splits the heads or hidden
#: units of a layer; fsdp splits all large kernels.
_RULES = (
    (r"(query|key|value)/kernel", P("fsdp", "tensor")),  # (D, heads, d)
    (r"(query|key|value)/bias", P("tensor")),  # (heads, d)
    (r"out/kernel", P("tensor", None, "fsdp")),  # (heads, d, D)
    (r"(up|gate)/kernel", P("fsdp", "tensor")),  # (D, M)
    (r"(up|gate)/bias", P("tensor")),  # (M,)
    (r"down/kernel", P("tensor", "fsdp")),  # (M, D)
    (r"head_[^/]*/kernel", P("fsdp")),  # (D, classes)
    (r"stem/[^/]*/kernel", P(None, None, None, None, "fsdp")),  # (t, h, w, 3, d)
    (r"positions/[^/]*", P(None, None, None, "fsdp")),  # (nt, nh, nw, D)
)


def parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """Returns the sharding of the parameter a/b/c; norms and most biases have none.

    A dimension that the mesh axis does not divide is not sharded, as a tube's channels
    may be. `check_mesh` excludes this for the encoder.
    """
    for pattern, spec in _RULES:
        if re.search(rf"(^|/){pattern}$", path):
            return P(
                *(
                    axis if axis and size % mesh.shape[axis] == 0 else None
                    for axis, size in zip(spec, shape, strict=False)
                )
            )
    return P()


def state_shardings(state, mesh: Mesh):
    """Returns the shardings of a train state, moments like their parameters."""

    def sharding(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, parameter_spec(name, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, state)


def constrain_parameters(tree):
    """Constrains gradients to their parameters' shardings, if there is a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, state_shardings(tree, mesh))


def check_mesh(config: ConfigDict, mesh: Mesh) -> None:
    """Checks that the mesh divides the encoder's layers and all batches.

    Raises:
        MeshDoesNotFit: An axis does not divide what it splits.
        IndivisibleBatch: As `check_batch`.
    """
    for axis, sizes in {"fsdp": ("width",), "tensor": ("heads", "mlp_dim")}.items():
        for name in sizes:
            if config.model[name] % mesh.shape[axis]:
                raise MeshDoesNotFit(
                    f"model.{name} {config.model[name]} is not a multiple of mesh axis "
                    f"{axis} {mesh.shape[axis]}, which splits it. Make that axis "
                    "smaller and mesh.data larger."
                )
    for name, stream in config.streams.items():
        parts = config.optimizer.accumulate_steps
        check_batch(stream.batch_size, mesh, f"streams.{name}", parts)
    for name, source in config.evaluations.items():
        check_batch(source.batch_size, mesh, f"evaluations.{name}")


def check_batch(batch_size: int, mesh: Mesh, where: str, parts: int = 1) -> None:
    """Checks that a mesh divides a batch.

    Args:
        batch_size: Over all hosts.
        mesh: The mesh of the run.
        where: Key of the stream or evaluation in the config, as `streams.NAME`.
        parts: Number of parts of a batch that gradients are accumulated over.

    Raises:
        IndivisibleBatch: Devices would get unequal numbers of examples of a part.
    """
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    if batch_size % (data * fsdp * parts):
        one_by_one = f" x optimizer.accumulate_steps {parts}" if parts > 1 else ""
        raise IndivisibleBatch(
            f"{where}.batch_size {batch_size} is not a multiple of "
            f"{data * fsdp * parts} (mesh axes data {data} x fsdp {fsdp}{one_by_one}). "
            "Change either."
        )


def to_devices(parts: Sequence, mesh: Mesh):
    """Transfers this host's share of a batch to the devices, without joining its parts.

    Args:
        parts: The parts of the share, equal trees of numpy arrays. They fill the rows
            of this host's devices in the order of the mesh.
        mesh: The mesh of the run.

    Returns:
        A tree of global arrays.
    """
    sharding = NamedSharding(mesh, P(BATCH))
    rows = mesh.devices.reshape(-1, mesh.shape["tensor"])
    ours = [[d for d in row if d.process_index == jax.process_index()] for row in rows]
    ours = [row for row in ours if row]

    def to_global(*arrays):
        placed = [
            (x, device)
            for x, row in zip(arrays, ours, strict=True)
            for device in row  # those along the tensor axis hold the same
        ]
        shape = (len(rows) * len(arrays[0]), *arrays[0].shape[1:])
        placed = jax.device_put(*map(list, zip(*placed, strict=True)))
        return jax.make_array_from_single_device_arrays(shape, sharding, placed)

    return jax.tree.map(to_global, *parts)
