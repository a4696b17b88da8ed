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


#: The Gaussian error linear unit: its approximation by tanh, which ViTs in JAX are
#: trained with, or exactly, as those in PyTorch are.
GELUS = {
    "tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "erf": lambda x: jax.nn.gelu(x, approximate=False),
}


class Mlp(nn.Module):
    """Two dense layers with a GELU between them."""

    mlp_dim: int
    dropout: float = 0.0
    gelu: str = "tanh"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):
        dense = {"dtype": self.dtype, "kernel_init": nn.initializers.xavier_uniform()}
        width = x.shape[-1]
        x = GELUS[self.gelu](nn.Dense(self.mlp_dim, name="up", **dense)(x))
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return nn.Dense(width, name="down", **dense)(x)


class Block(nn.Module):
    """x + MSA(LN x), then x + MLP(LN x) (paper table 11).

    With stochastic depth (Huang et al., 2016), either branch is left out for an example
    at the given rate, in training.
    """

    heads: int
    mlp_dim: int
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    gelu: str = "tanh"
    norm_epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):
        def branch(y):
            y = nn.Dropout(self.dropout)(y, deterministic=not train)
            whole = nn.Dropout(self.stochastic_depth, broadcast_dims=(1, 2))
            return whole(y, deterministic=not train)

        norm = {"epsilon": self.norm_epsilon, "dtype": self.dtype}
        y = nn.LayerNorm(**norm, name="norm_1")(x)
        x = x + branch(Attention(self.heads, self.dtype, name="attention")(y, y))
        y = nn.LayerNorm(**norm, name="norm_2")(x)
        mlp = Mlp(self.mlp_dim, self.dropout, self.gelu, self.dtype, name="mlp")
        return x + branch(mlp(y, train))


def block_names(depth: int, new_layers: int) -> list[str]:
    """Names of an encoder's blocks, from the first to the last."""
    new = [f"new_block_{i}" for i in range(new_layers)]
    return [f"block_{i}" for i in range(depth)] + new


class Encoder(nn.Module):
    """A stack of blocks and a final LayerNorm; tokens (B, N, D) to tokens (B, N, D).

    Attributes:
      depth: number of blocks, `block_<i>`.
      new_layers: number of blocks put on top of a pretrained trunk, `new_block_<i>`
        (paper table 8).
      gate_after: the number of blocks after which the tokens that came in are added
        again, times tanh of the learned scalar `gate`, which starts at 0 (paper 3.6,
        eq. 8). None: nowhere.
      heads, mlp_dim, dropout, gelu, norm_epsilon, dtype: as in `Block`.
      stochastic_depth: rate of the last block; it grows linearly from 0.
    """

    depth: int
    heads: int
    mlp_dim: int
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    new_layers: int = 0
    gate_after: int | None = None
    gelu: str = "tanh"
    norm_epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):
        x = raw = nn.Dropout(self.dropout)(x, deterministic=not train)
        names = block_names(self.depth, self.new_layers)
        for i, name in enumerate(names):
            if i == self.gate_after:
                gate = self.param("gate", nn.initializers.zeros, ())
                x = x + jnp.tanh(gate).astype(x.dtype) * raw
            x = Block(
                heads=self.heads,
                mlp_dim=self.mlp_dim,
                dropout=self.dropout,
                stochastic_depth=self.stochastic_depth * i / max(1, len(names) - 1),
                gelu=self.gelu,
                norm_epsilon=self.norm_epsilon,
                dtype=self.dtype,
                name=name,
            )(x, train)
        return nn.LayerNorm(self.norm_epsilon, dtype=self.dtype, name="norm")(x)


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
