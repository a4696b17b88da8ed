"""softmax(q k^T / sqrt(d)) v, and what computes it on which device."""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.mesh import BATCH


class UnavailableAttention(TubeViTError, ValueError):
    """An implementation of attention that does not run where it is asked for."""


def attention(q, k, v, implementation: str = "auto") -> jax.Array:
    """softmax(q k^T / sqrt(d)) v, the softmax in float32.

    Args:
      q: (B, M, heads, d).
      k, v: (B, N, heads, d).
      implementation: one of `IMPLEMENTATIONS`, or "auto": on TPUs splash for
        self-attention; on GPUs cudnn, where the dtype is one of 16 bits and d a
        multiple of 8 up to 128, else xla; elsewhere heads_first.

    Returns:
      (B, M, heads, d), named "attention" for what is kept under remat.

    Raises:
      UnavailableAttention: the implementation is for other devices, or other inputs.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = device.platform if device else jax.default_backend()
    fits = {
        "splash": platform == "tpu" and q.shape == k.shape,
        "cudnn": platform == "gpu"
        and q.dtype.itemsize == 2
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= 128,
    }
    if implementation == "auto":
        otherwise = "xla" if platform == "gpu" else "heads_first"
        implementation = next((name for name in fits if fits[name]), otherwise)
    elif not fits.get(implementation, True):
        raise UnavailableAttention(
            f"model.attention is {implementation!r}, which does not run on {platform} "
            f"with queries {q.shape} and keys {k.shape} of {q.dtype}: splash is for "
            "self-attention on TPUs, cudnn for 16-bit floats on NVIDIA GPUs. Set it to "
            "'auto'."
        )
    return checkpoint_name(IMPLEMENTATIONS[implementation](q, k, v), "attention")


def heads_first(q, k, v):
    """Heads next to the batch make one batched matmul of it.

    XLA runs that faster on CPUs than with heads where the projections leave them.
    """
    weights = attention_weights(q, k).astype(v.dtype)  # (B, heads, M, N)
    return (weights @ v.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)


def attention_weights(q, k) -> jax.Array:
    """softmax(q k^T / sqrt(d)), (B, heads, M, N) float32; q and k as of `attention`."""
    q, k = (x.transpose(0, 2, 1, 3) for x in (q, k))  # (B, heads, N, d)
    scores = q * q.shape[-1] ** -0.5 @ k.swapaxes(-1, -2)
    return jax.nn.softmax(scores.astype(jnp.float32))


_LANES = 128  # of a TPU's vector registers: blocks are multiples of it
_LARGEST_BLOCK = 640  # tokens


def splash(q, k, v, interpret: bool = False):
    """Splash attention: a block of scores at a time, none of them in main memory.

    Tokens are padded to a multiple of a block; ids keep them from attending to padding.
    Every device runs the kernel on its own examples and heads. With `interpret` it runs
    anywhere, slowly.
    """
    # Here: only TPUs need it, and it takes a while to import.
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as masks,
    )

    n, d = q.shape[1], q.shape[3]
    padded = -(-n // _LANES) * _LANES
    block = max(
        size
        for size in range(_LANES, min(padded, _LARGEST_BLOCK) + 1, _LANES)
        if padded % size == 0
    )
    sizes = kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )

    def on_device(q, k, v):  # (b, heads, padded, d), b examples of this device
        every = masks.MultiHeadMask([masks.FullMask((padded, padded))] * q.shape[1])
        kernel = kernels.make_splash_mha(
            every,
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name="attention",
            interpret=interpret,
        )
        ids = (jnp.arange(padded) >= n).astype(jnp.int32)
        ids = kernels.SegmentIds(ids, ids) if padded > n else None
        return jax.vmap(lambda q, k, v: kernel(q, k, v, ids))(q, k, v)

    def heads_major(x):
        x = jnp.pad(x, ((0, 0), (0, padded - n), (0, 0), (0, 0)))
        return x.transpose(0, 2, 1, 3)  # (B, heads, padded, d)

    if not jax.sharding.get_abstract_mesh().empty:
        split = P(BATCH, "tensor")
        on_device = jax.shard_map(
            on_device, in_specs=split, out_specs=split, check_vma=False
        )
    y = on_device(*map(heads_major, (q * d**-0.5, k, v)))
    return y.transpose(0, 2, 1, 3)[:, :n]


IMPLEMENTATIONS = {
    "heads_first": heads_first,
    "xla": functools.partial(jax.nn.dot_product_attention, implementation="xla"),
    "cudnn": functools.partial(jax.nn.dot_product_attention, implementation="cudnn"),
    "splash": splash,
}
