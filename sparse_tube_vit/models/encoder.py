"""The ViT encoder: pre-norm blocks with global attention, and attention pooling."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

from sparse_tube_vit.distributed.mesh import BATCH, constrain
from sparse_tube_vit.models.attention import (
    attention,
    attention_weights,
    choose,
    pad_tokens,
)
from sparse_tube_vit.models.dense import Dense


class Attention(nn.Module):
    """Multi-head attention of queries (B, M, D) to keys and values (B, N, D).

    Sows its `weights` (B, heads, M, N) where intermediates are asked for: fused
    attention never has them.
    """

    heads: int
    implementation: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, queries, x):
        (_, m, width), n = queries.shape, x.shape[1]
        split = (self.heads, width // self.heads)
        sizes = ((*y.shape[:2], *split) for y in (queries, x))
        implementation = choose(self.implementation, *sizes, self.dtype)
        if implementation == "splash":  # padding costs least where tokens are narrow
            queries = x = pad_tokens(x)

        def project(name, x):
            y = Dense(split, dtype=self.dtype, name=name)(x)  # (B, N, heads, d)
            return constrain(y, BATCH, None, "tensor")

        q, k, v = project("query", queries), project("key", x), project("value", x)
        if self.is_mutable_collection("intermediates"):
            weights = attention_weights(q[:, :m], k[:, :n])
            self.sow("intermediates", "weights", weights)
        out = attention(q, k, v, implementation, n)
        out = Dense((width,), axes=2, dtype=self.dtype, name="out")(out)
        return constrain(out[:, :m], BATCH)


#: The Gaussian error linear unit: its approximation by tanh, which ViTs in JAX are
#: trained with, or exactly, as those in PyTorch are.
GELUS = {
    "tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "erf": lambda x: jax.nn.gelu(x, approximate=False),
}


class Mlp(nn.Module):
    """Two dense layers with a GELU between them; dropout where there is a key."""

    mlp_dim: int
    dropout: float = 0.0
    gelu: str = "tanh"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, key=None):
        width = x.shape[-1]
        x = Dense((self.mlp_dim,), dtype=self.dtype, name="up")(x)
        x = GELUS[self.gelu](constrain(x, BATCH, None, "tensor"))  # (B, N, M)
        x = nn.Dropout(self.dropout)(x, deterministic=key is None, rng=key)
        return Dense((width,), dtype=self.dtype, name="down")(x)


class Block(nn.Module):
    """x + MSA(LN x), then x + MLP(LN x) (paper table 11)."""

    heads: int
    mlp_dim: int
    dropout: float = 0.0
    gelu: str = "tanh"
    norm_epsilon: float = 1e-6
    attention: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, key=None, skip=None):
        """(B, N, D) to (B, N, D).

        Args:
          x: tokens.
          key: of dropout and skipping; None: there is neither.
          skip: the rate at which either branch is left out for an example, stochastic
            depth (Huang et al., 2016); None: never.
        """
        keys = [None] * 5 if key is None else list(jax.random.split(key, 5))

        def branch(y, key_dropout, key_skip):
            drop = nn.Dropout(self.dropout)
            y = drop(y, deterministic=key is None, rng=key_dropout)
            if key is None or skip is None:
                return y
            kept = jax.random.bernoulli(key_skip, 1 - skip, (len(y), 1, 1))
            return jnp.where(kept, y / (1 - skip), 0).astype(y.dtype)

        norm = {"epsilon": self.norm_epsilon, "dtype": self.dtype}
        x = constrain(x, BATCH)
        y = nn.LayerNorm(**norm, name="norm_1")(x)
        attend = Attention(self.heads, self.attention, self.dtype, name="attention")
        x = x + branch(attend(y, y), *keys[:2])
        y = nn.LayerNorm(**norm, name="norm_2")(x)
        mlp = Mlp(self.mlp_dim, self.dropout, self.gelu, self.dtype, name="mlp")
        return x + branch(mlp(y, keys[2]), *keys[3:])


#: What is kept of a block for its gradient, by name; the rest is computed again.
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    # What the dense layers and attention put out, but no scores of attention.
    "dots": jax.checkpoint_policies.save_only_these_names("dense", "attention"),
}


def block_names(depth: int, new_layers: int) -> list[str]:
    """Names of an encoder's blocks, from the first to the last."""
    new = [f"new_block_{i}" for i in range(new_layers)]
    return [f"block_{i}" for i in range(depth)] + new


class Encoder(nn.Module):
    """A stack of blocks and a final LayerNorm; tokens (B, N, D) to tokens (B, N, D).

    Takes a tree of such tokens too, of images and videos say: they go through each
    block side by side, so that its parameters are gathered, and their gradients summed
    over devices, once for all.

    Attributes:
      depth: number of blocks, `block_<i>`.
      new_layers: number of blocks put on top of a pretrained trunk, `new_block_<i>`
        (paper table 8).
      gate_after: the number of blocks after which the tokens that came in are added
        again, times tanh of the learned scalar `gate`, which starts at 0 (paper 3.6,
        eq. 8). None: nowhere.
      heads, mlp_dim, dropout, gelu, norm_epsilon, attention, dtype: as in `Block`.
      stochastic_depth: rate of the last block; it grows linearly from 0.
      scan: whether blocks run in a loop, which is compiled once for all of them. The
        parameters are those of the blocks one by one; intermediates of blocks cannot be
        captured.
      remat: what is kept for the gradient: everything ("none"), or as in
        `REMAT_POLICIES`. Without `scan`, computing again gathers parameters once for
        each of several inputs.
      frozen_layers: number of blocks that the loop takes by themselves, because no
        gradient of their parameters is taken. Such a gradient of a loop is of all that
        run in it.
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
    attention: str = "auto"
    scan: bool = False
    remat: str = "none"
    frozen_layers: int = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):
        names = block_names(self.depth, self.new_layers)
        xs, tree = jax.tree.flatten(x)
        keys, skips = [None] * len(xs), None
        if train and (self.dropout or self.stochastic_depth):
            keys = [self.make_rng("dropout") for _ in xs]
            keys = [jax.random.split(key, len(names) + 1) for key in keys]
            drop = nn.Dropout(self.dropout, deterministic=False)
            xs = [drop(x, rng=key[-1]) for x, key in zip(xs, keys, strict=True)]
        if train and self.stochastic_depth:
            skips = jnp.linspace(0, self.stochastic_depth, len(names))
        raw, gate = xs, self.gate_after or 0
        stops = sorted({0, self.frozen_layers, gate, len(names)})
        for start, stop in itertools.pairwise(stops):
            if start and start == gate:
                scale = jnp.tanh(self.param("gate", nn.initializers.zeros, ()))
                xs = [
                    (x + scale * first).astype(x.dtype)
                    for x, first in zip(xs, raw, strict=True)
                ]
            own = slice(start, stop)
            noise = jax.tree.map(lambda a, own=own: a[own], (keys, skips))
            xs = self._run(names[own], xs, noise)
        norm = nn.LayerNorm(self.norm_epsilon, dtype=self.dtype, name="norm")
        return jax.tree.unflatten(tree, map(norm, xs))

    @nn.nowrap
    def _run(self, names, xs, noise):
        """Blocks by name, one after the other; `noise` is keys by stream, and skips."""
        block = Block
        if self.remat != "none":
            policy = REMAT_POLICIES[self.remat]
            block = nn.remat(Block, policy=policy, prevent_cse=not self.scan)
        block = functools.partial(
            block,
            heads=self.heads,
            mlp_dim=self.mlp_dim,
            dropout=self.dropout,
            gelu=self.gelu,
            norm_epsilon=self.norm_epsilon,
            attention=self.attention,
            dtype=self.dtype,
        )

        def run(block, xs, noise):
            keys, skip = noise
            return [block(x, key, skip) for x, key in zip(xs, keys, strict=True)]

        if not self.scan or self.is_initializing():
            for i, name in enumerate(names):
                own = jax.tree.map(lambda a, i=i: a[i], noise)
                xs = run(block(name=name), xs, own)
            return xs

        def layer(xs, given):
            params, noise = given
            apply = functools.partial(block(parent=None).apply, {"params": params})
            return run(apply, xs, noise), None

        params = [self.variables["params"][name] for name in names]
        params = jax.tree.map(lambda *each: jnp.stack(each), *params)
        return jax.lax.scan(layer, xs, (params, noise))[0]


class AttentionPooling(nn.Module):
    """A learned probe attends to all tokens: (B, N, D) to (B, D)."""

    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        b, _, d = x.shape
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, d))
        probe = jnp.broadcast_to(probe, (b, 1, d)).astype(self.dtype)
        probe = constrain(probe, BATCH)
        attend = Attention(self.heads, dtype=self.dtype, name="attention")
        return attend(probe, x)[:, 0]
