"""The ViT encoder: pre-norm blocks with global attention, and attention pooling."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def attention(q, k, v):
    """softmax(q k^T / sqrt(d)) v, the softmax in float32.

    Heads next to the batch make one batched matmul of it, which XLA runs faster on
    CPUs than with heads where the projections leave them.

    Args:
      q: (B, M, heads, d).
      k, v: (B, N, heads, d).

    Returns:
      (B, M, heads, d).
    """
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))  # (B, heads, N, d)
    scores = q * q.shape[-1] ** -0.5 @ k.swapaxes(-1, -2)  # (B, heads, M, N)
    weights = jax.nn.softmax(scores.astype(jnp.float32)).astype(v.dtype)
    return (weights @ v).transpose(0, 2, 1, 3)


class Attention(nn.Module):
    """Multi-head attention of queries (B, M, D) to keys and values (B, N, D)."""

    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, queries, x):
        width = x.shape[-1]

        def project(name, x):
            split = (self.heads, width // self.heads)
            return nn.DenseGeneral(
                split,
                dtype=self.dtype,
                kernel_init=nn.initializers.xavier_uniform(),
                name=name,
            )(x)

        out = attention(
            project("query", queries), project("key", x), project("value", x)
        )
        return nn.DenseGeneral(
            width,
            axis=(-2, -1),
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            name="out",
        )(out)


class Mlp(nn.Module):
    """Two dense layers with a GELU between them."""

    mlp_dim: int
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):
        dense = {"dtype": self.dtype, "kernel_init": nn.initializers.xavier_uniform()}
        width = x.shape[-1]
        x = nn.gelu(nn.Dense(self.mlp_dim, name="up", **dense)(x), approximate=True)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return nn.Dense(width, name="down", **dense)(x)


class Block(nn.Module):
    """x + MSA(LN x), then x + MLP(LN x) (paper table 11)."""

    heads: int
    mlp_dim: int
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):
        drop = nn.Dropout(self.dropout, deterministic=not train)
        y = nn.LayerNorm(dtype=self.dtype, name="norm_1")(x)
        x = x + drop(Attention(self.heads, self.dtype, name="attention")(y, y))
        y = nn.LayerNorm(dtype=self.dtype, name="norm_2")(x)
        mlp = Mlp(self.mlp_dim, self.dropout, self.dtype, name="mlp")
        return x + drop(mlp(y, train))


class Encoder(nn.Module):
    """A stack of blocks and a final LayerNorm; tokens (B, N, D) to tokens (B, N, D)."""

    depth: int
    heads: int
    mlp_dim: int
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        for i in range(self.depth):
            x = Block(
                self.heads, self.mlp_dim, self.dropout, self.dtype, name=f"block_{i}"
            )(x, train)
        return nn.LayerNorm(dtype=self.dtype, name="norm")(x)


class AttentionPooling(nn.Module):
    """A learned probe attends to all tokens: (B, N, D) to (B, D)."""

    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        b, _, d = x.shape
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, d))
        probe = jnp.broadcast_to(probe.astype(self.dtype), (b, 1, d))
        return Attention(self.heads, self.dtype, name="attention")(probe, x)[:, 0]
