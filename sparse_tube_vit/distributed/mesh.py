"""Axes of the device mesh."""

import dataclasses

import jax
from jax.sharding import AbstractDevice
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor")
#: Axes that batches are split over: fsdp splits both batches and parameters.
BATCH = ("data", "fsdp")


def constrain(x: jax.Array, *axes) -> jax.Array:
    """Constrains the first axes of `x` to mesh axes by name; others are replicated.

    XLA might infer another sharding of the activation. Without a mesh (`jax.set_mesh`)
    `x` is returned as it is.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(*axes))


def traced_for_cpu():
    """Context manager in which programs are traced for a CPU, on whatever machine."""
    fields = dataclasses.fields(AbstractDevice)  # without platform before jax 0.10
    cpu = {"device_kind": "cpu", "num_cores": None, "platform": "cpu"}
    device = AbstractDevice(*(cpu[field.name] for field in fields))
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def platform() -> str:
    """Returns the platform that a program is traced for: "tpu", "gpu" or "cpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        return jax.default_backend()
    if hasattr(device, "platform"):
        return device.platform
    kind = device.device_kind.lower()  # all that it has before jax 0.10
    return next((name for name in ("tpu", "cpu") if kind.startswith(name)), "gpu")
