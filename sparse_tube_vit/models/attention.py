"""Scaled dot-product attention, softmax(q k^T / sqrt(d)) v, for every device."""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from sparse_tube_vit.distributed.mesh import BATCH, platform
from sparse_tube_vit.errors import TubeViTError


class UnavailableAttention(TubeViTError, ValueError):
    """An implementation of attention that does not run on this device or input."""


def choose(implementation: str, queries, keys, dtype) -> str:
    """Resolves "auto" to an implementation, and checks any other.

    Args:
        implementation: One of `IMPLEMENTATIONS`, or "auto": on TPUs splash for
            self-attention of many tokens; on NVIDIA GPUs from Ampere on cudnn for
            16-bit floats with d a multiple of 8 up to 128; otherwise xla on both. On
            other devices head_by_head for many tokens, heads_first for few.
        queries: Shape (B, M, heads, d).
        keys: Shape (B, N, heads, d).
        dtype: Dtype of both.

    Returns:
        One of `IMPLEMENTATIONS`.

    Raises:
        UnavailableAttention: The implementation is for other devices or inputs.
    """
    device, d = platform(), queries[-1]
    narrow = jnp.dtype(dtype).itemsize == 2 and d % 8 == 0 and d <= 128
    fits = {
        "splash": device == "tpu" and queries == keys,
        "cudnn": device == "gpu" and narrow and _has_fused_kernel(),
    }
    if implementation == "auto":
        if device == "tpu":
            many = queries[1] >= _MANY_TOKENS
            return "splash" if fits["splash"] and many else "xla"
        if device == "gpu":
            return "cudnn" if fits["cudnn"] else "xla"
        many = queries[1] * keys[1] >= _MANY_SCORES
        return "head_by_head" if many else "heads_first"
    if not fits.get(implementation, True):
        raise UnavailableAttention(
            f"model.attention is {implementation!r}, which does not run on {device} "
            f"with queries {queries} and keys {keys} of {dtype}: splash is for "
            "self-attention on TPUs, cudnn for 16-bit floats on NVIDIA GPUs from "
            "Ampere on. Set it to 'auto'."
        )
    return implementation


def _has_fused_kernel():
    """Returns whether cuDNN's fused kernel supports the attached GPU; True without one.

    It needs compute capability 8.0; AMD's GPUs report a name instead.
    """
    capability = getattr(jax.local_devices()[0], "compute_capability", "8.0")
    return capability[:1].isdigit() and float(capability) >= 8


def attention(q, k, v, implementation: str, tokens: int | None = None):
    """Computes softmax(q k^T / sqrt(d)) v, with the softmax in float32.

    For rematerialization the output is named "attention"; for splash, inputs and
    outputs of its kernel are. Those of cudnn are known by the kernel's own name.

    Args:
        q: Queries (B, M, heads, d).
        k: Keys (B, N, heads, d).
        v: Values (B, N, heads, d).
        implementation: One of `IMPLEMENTATIONS`.
        tokens: For splash, the number of tokens before padding.

    Returns:
        (B, M, heads, d).
    """
    compute = IMPLEMENTATIONS[implementation]
    if implementation == "splash":
        return compute(q, k, v, tokens)
    y = compute(q, k, v)
    return y if implementation == "cudnn" else checkpoint_name(y, "attention")


def heads_first(q, k, v):
    """Computes attention with heads next to the batch, as one batched matmul.

    On CPUs, XLA runs this faster than the projections' layout (B, N, heads, d).
    """
    weights = attention_weights(q, k).astype(v.dtype)  # (B, heads, M, N)
    return (weights @ v.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)


# From so many scores of a head on, 4 MiB, a loop over heads is faster on two cores.
_MANY_SCORES = 2**20


def head_by_head(q, k, v):
    """Computes attention of one head of one example at a time.

    The scores of others are not in memory, and for the gradient they are computed
    again, whatever the rematerialization.
    """

    @functools.partial(jax.checkpoint, prevent_cse=False)  # not needed in a loop
    def one(qkv):
        return heads_first(*qkv)

    def on_device(q, k, v):
        b, m, heads, d = q.shape

        def each(x):  # (b * heads, 1, N, 1, d)
            return x.transpose(0, 2, 1, 3).reshape(b * heads, 1, -1, 1, d)

        y = jax.lax.map(one, (each(q), each(k), each(v)))
        return y.reshape(b, heads, m, d).transpose(0, 2, 1, 3)

    return _on_every_device(on_device, P(BATCH, None, "tensor"))(q, k, v)


def _on_every_device(compute, split):
    """Returns the function by which every device computes its examples and heads."""
    if jax.sharding.get_abstract_mesh().empty:
        return compute
    return jax.shard_map(compute, in_specs=split, out_specs=split, check_vma=False)


def attention_weights(q, k) -> jax.Array:
    """Returns softmax(q k^T / sqrt(d)), (B, heads, M, N) float32, as in `attention`."""
    q, k = q.transpose(0, 2, 1, 3) * q.shape[-1] ** -0.5, k.transpose(0, 2, 3, 1)
    return jax.nn.softmax(jnp.matmul(q, k, preferred_element_type=jnp.float32))


def cudnn(q, k, v, implementation: str = "cudnn"):
    """Computes attention with cuDNN's fused kernel: no scores are in main memory.

    jax refuses gradients for odd numbers of tokens: zeros make them even, masked.
    """
    b, m, n = *q.shape[:2], k.shape[1]
    lengths = {}
    if m % 2 or n % 2:
        lengths["query_seq_lengths"] = jnp.full(b, m, jnp.int32)
        lengths["key_value_seq_lengths"] = jnp.full(b, n, jnp.int32)
        q, k, v = (
            jnp.pad(x, [(0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)]) for x in (q, k, v)
        )
    y = jax.nn.dot_product_attention(q, k, v, **lengths, implementation=implementation)
    return y[:, :m]


# From here on splash is faster than XLA by the TPU compiler's estimate, because scores
# no longer fit in the core's memory.
_MANY_TOKENS = 512

_LANES = 128  # of a TPU's vector registers; blocks are multiples of it
_LARGEST_BLOCK = 640  # tokens


def pad_tokens(x):
    """Pads tokens (B, N, ...) with zeros to a multiple of splash's blocks."""
    missing = -x.shape[1] % _LANES
    return jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))


def splash(q, k, v, tokens: int | None = None, interpret: bool = False):
    """Computes splash attention, a block of scores at a time, none in main memory.

    The kernel has tokens in the lanes of registers, because heads of 64 channels would
    fill only half of them. Every device runs it on its own examples and heads.

    Args:
        q: Queries (B, N, heads, d).
        k: Keys, as q.
        v: Values, as q.
        tokens: Number of tokens before padding; None: all. Padding is masked.
        interpret: Runs on any device, slowly.

    Returns:
        (B, N, heads, d).
    """
    # Imported here: only TPUs need it, and it takes a while.
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as masks,
    )

    n, d = q.shape[1], q.shape[3]
    tokens = tokens or n
    q, k, v = map(pad_tokens, (q * d**-0.5, k, v))
    padded = q.shape[1]
    block = max(
        size
        for size in range(_LANES, min(padded, _LARGEST_BLOCK) + 1, _LANES)
        if padded % size == 0
    )
    in_lanes = kernels.QKVLayout.SEQ_MINOR
    # All keys of a head fit in the core's memory, so that one kernel gives the
    # gradients of queries, keys and values, and computes the scores only once.
    sizes = kernels.BlockSizes(
        block_q=block,
        block_kv=padded,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=padded,
        block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,
        q_layout=in_lanes,
        k_layout=in_lanes,
        v_layout=in_lanes,
    )

    def on_device(q, k, v):  # (b, heads, d, padded), b examples a device
        every = masks.MultiHeadMask([masks.FullMask((padded, padded))] * q.shape[1])
        kernel = kernels.make_splash_mha(
            every,
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name="attention",
            interpret=interpret,
        )
        ids = (jnp.arange(padded) >= tokens).astype(jnp.int32)
        ids = kernels.SegmentIds(ids, ids) if padded > tokens else None
        q, k, v = (x.swapaxes(2, 3) for x in (q, k, v))
        return jax.vmap(lambda q, k, v: kernel(q, k, v, ids))(q, k, v)

    on_device = _on_every_device(on_device, P(BATCH, "tensor"))
    # Saved for the gradient as the kernel reads them: they are transposed only once.
    q, k, v = (checkpoint_name(x.transpose(0, 2, 3, 1), "attention") for x in (q, k, v))
    y = on_device(q, k, v)  # (B, heads, padded, d)
    return y.transpose(0, 2, 1, 3)[:, :n]


IMPLEMENTATIONS = {
    "heads_first": heads_first,
    "head_by_head": head_by_head,
    "xla": functools.partial(jax.nn.dot_product_attention, implementation="xla"),
    "cudnn": cudnn,
    "splash": splash,
}
