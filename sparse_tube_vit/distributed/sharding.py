"""The device mesh, and which axis of it every array is split over."""

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
from sparse_tube_vit.errors import IndivisibleBatch, TubeViTError


class MeshDoesNotFit(TubeViTError, ValueError):
    """The mesh does not fit the devices, the hosts, or the model."""


def make_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over devices; one axis of size -1 takes what is left.

    Neighbours on an axis are neighbours in the network of a TPU slice, where it has
    the form for it. The data axis reaches across slices, and no other: what slices
    exchange is gradients, once a step.

    Args:
      config: of the run.
      devices: all that there are if not given; or those of a topology that is compiled
        for.

    Raises:
      MeshDoesNotFit: the sizes do not fit the devices, their slices or their hosts.
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
    """How many slices of a pod the devices are in; 1 where they know of none."""
    return len(_by_slice(devices))


def _by_slice(devices):
    found = collections.defaultdict(list)
    for device in devices:
        found[getattr(device, "slice_index", 0)].append(device)
    return found


def _axis_sizes(config, devices):
    """Sizes of the axes, which multiply to the number of devices."""
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
    """The devices of every slice. Where devices know of none, equal parts in order."""
    count, found = config.mesh.slices, _by_slice(devices)
    if len(found) > 1 and len(found) != count:
        raise MeshDoesNotFit(
            f"config.mesh.slices is {count}, but the devices are in {len(found)} "
            "slices. Set it to that."
        )
    if len(devices) % count:
        raise MeshDoesNotFit(
            f"config.mesh.slices is {count}, which does not divide the {len(devices)} "
            "devices."
        )
    if len(found) > 1:
        return [found[index] for index in sorted(found)]
    return np.array(devices).reshape(count, -1).tolist()


def batch_share(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
    """Which share of every batch a host feeds, and how many shares there are.

    Hosts that the tensor axis connects feed the same share, and no row is in two: any
    number of hosts feeds the same examples in a step, each once.
    The rows of a share need not be neighbours, so that examples may stand in another
    order on other hosts or meshes, and mixup pair others.

    Args:
      mesh: of the run.
      process: the host's number; this one's if not given.

    Raises:
      MeshDoesNotFit: hosts would feed shares that differ and overlap.
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
    return shares.index(tuple(sorted(fed[process]))), len(shares)


#: How parameters are split, by the end of their path. What tensor splits has, in its
#: layer, outputs or inputs of its own; fsdp splits whatever is large.
_RULES = (
    (r"(query|key|value)/kernel", P("fsdp", "tensor")),  # (D, heads, d)
    (r"(query|key|value)/bias", P("tensor")),  # (heads, d)
    (r"out/kernel", P("tensor", None, "fsdp")),  # (heads, d, D)
    (r"up/kernel", P("fsdp", "tensor")),  # (D, M)
    (r"up/bias", P("tensor")),  # (M,)
    (r"down/kernel", P("tensor", "fsdp")),  # (M, D)
    (r"head_[^/]*/kernel", P("fsdp")),  # (D, classes)
    (r"stem/[^/]*/kernel", P(None, None, None, None, "fsdp")),  # (t, h, w, 3, d)
    (r"positions/[^/]*", P(None, None, None, "fsdp")),  # (nt, nh, nw, D)
)


def parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """How the parameter a/b/c is split; norms, most biases and scalars are not.

    An axis that the mesh does not divide stays whole: a tube's channels, say. `check`
    sees to it that this is none of the encoder's.
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
    """Shardings of a train state of arrays or shapes; Adam's moments as parameters."""

    def sharding(path, leaf):
        names = (str(getattr(k, "key", getattr(k, "name", k))) for k in path)
        return NamedSharding(mesh, parameter_spec("/".join(names), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, state)


def constrain_parameters(tree):
    """A tree of gradients split as their parameters, where there is a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, state_shardings(tree, mesh))


def check_model(config: ConfigDict, mesh: Mesh) -> None:
    """Raises MeshDoesNotFit unless the mesh divides every layer of the encoder."""
    for axis, sizes in {"fsdp": ("width",), "tensor": ("heads", "mlp_dim")}.items():
        for name in sizes:
            if config.model[name] % mesh.shape[axis]:
                raise MeshDoesNotFit(
                    f"model.{name} {config.model[name]} is not a multiple of mesh axis "
                    f"{axis} {mesh.shape[axis]}, which splits it. Make that axis "
                    "smaller and mesh.data larger."
                )


def check_batch(batch_size: int, mesh: Mesh, where: str, parts: int = 1) -> None:
    """Raises IndivisibleBatch unless every device gets as many examples of each part.

    Args:
      batch_size: over all hosts.
      mesh: its data and fsdp axes split a batch.
      where: the source, as `streams.NAME`.
      parts: of a batch that are taken one after the other.
    """
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    if batch_size % (data * fsdp * parts):
        one_by_one = f" x optimizer.accumulate_steps {parts}" if parts > 1 else ""
        raise IndivisibleBatch(
            f"{where}.batch_size {batch_size} is not a multiple of "
            f"{data * fsdp * parts} (mesh axes data {data} x fsdp {fsdp}{one_by_one}). "
            "Change either."
        )


def to_devices(batch, mesh: Mesh):
    """This host's share of a batch, a tree of numpy arrays, to global arrays.

    It fills the rows of the host's devices in their order in the mesh.
    """
    sharding = NamedSharding(mesh, P(BATCH))
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, x), batch
    )
