"""The axes of the device mesh, as the model names them."""

import jax
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor")
#: What batches are split over: parameters that are split over fsdp see all the data.
BATCH = ("data", "fsdp")


def constrain(x: jax.Array, *axes) -> jax.Array:
    """`x` with its first axes split over the named mesh axes, the others whole.

    Tells XLA where an activation lies, in place of what it may infer. Without a mesh
    (`jax.set_mesh`) there is nothing to tell.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(*axes))


def platform() -> str:
    """Kind of the devices that a program is traced for: "tpu", "gpu" or "cpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()
