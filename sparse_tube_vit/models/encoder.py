"""The ViT encoder: pre-norm blocks with global attention, and attention pooling."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sparse_tube_vit.config import EncoderOptions
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

    Sows its `weights` (B, heads, M, N) only where the caller collects intermediates,
    because fused attention never materializes them.
    """

    heads: int
    implementation: str = "auto"
    dtype: DTypeLike = "float32"

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


#: Gaussian error linear units by `EncoderOptions.gelu`.
GELUS = {
    "tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "erf": lambda x: jax.nn.gelu(x, approximate=False),
    "quick": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


class Mlp(nn.Module):
    """down(GELU(up x)); with `gated_mlp` down(silu(gate x) * up x)."""

    options: EncoderOptions

    @nn.compact
    def __call__(self, x, key=None):
        """Maps (B, N, D) to (B, N, D).

        Args:
            x: Tokens.
            key: PRNG key of dropout; None: no dropout.
        """
        o, width = self.options, x.shape[-1]

        def project(name):
            y = Dense((o.mlp_dim,), dtype=o.dtype, name=name)(x)  # (B, N, M)
            return constrain(y, BATCH, None, "tensor")

        y = project("up")
        y = nn.silu(project("gate")) * y if o.gated_mlp else GELUS[o.gelu](y)
        y = nn.Dropout(o.dropout)(y, deterministic=key is None, rng=key)
        return Dense((width,), dtype=o.dtype, name="down")(y)


class Block(nn.Module):
    """x + MSA(LN x), then x + MLP(LN x) (paper table 11)."""

    options: EncoderOptions

    @nn.compact
    def __call__(self, x, key=None, skip_rate=None):
        """Maps (B, N, D) to (B, N, D).

        Args:
            x: Tokens.
            key: PRNG key of dropout and stochastic depth; None: neither acts.
            skip_rate: Rate at which either branch is skipped for an example, stochastic
                depth (Huang et al., 2016); None: never.
        """
        o = self.options
        keys = [None] * 5 if key is None else list(jax.random.split(key, 5))

        def branch(y, key_dropout, key_skip):
            drop = nn.Dropout(o.dropout)
            y = drop(y, deterministic=key is None, rng=key_dropout)
            if key is None or skip_rate is None:
                return y
            kept = jax.random.bernoulli(key_skip, 1 - skip_rate, (len(y), 1, 1))
            return jnp.where(kept, y / (1 - skip_rate), 0).astype(y.dtype)

        norm = {"epsilon": o.norm_epsilon, "dtype": jnp.dtype(o.dtype)}
        x = constrain(x, BATCH)
        y = nn.LayerNorm(**norm, name="norm_1")(x)
        attend = Attention(o.heads, o.attention, o.dtype, name="attention")
        x = x + branch(attend(y, y), *keys[:2])
        y = nn.LayerNorm(**norm, name="norm_2")(x)
        return x + branch(Mlp(o, name="mlp")(y, keys[2]), *keys[3:])


_named = jax.checkpoint_policies.save_only_these_names("dense", "attention")


def _dots(primitive, *args, **params):
    """Keeps the outputs of dense layers and attention, not the attention scores.

    The gradient of cuDNN's kernel also needs sums of its softmax, which cannot be
    named: all outputs of the kernel are kept, or it would run again.
    """
    fused = primitive.name == "dot_product_attention_fwd_wrapper"
    return fused or _named(primitive, *args, **params)


#: Activations of a block that are kept for its gradient, by `EncoderOptions.remat`;
#: the others are computed again.
REMAT_POLICIES = {"full": jax.checkpoint_policies.nothing_saveable, "dots": _dots}


def block_names(depth: int, new_layers: int) -> list[str]:
    """Returns the names of an encoder's blocks, from the first to the last."""
    new = [f"new_block_{i}" for i in range(new_layers)]
    return [f"block_{i}" for i in range(depth)] + new


class Encoder(nn.Module):
    """A stack of blocks and a final LayerNorm; with `pre_norm` one before them too.

    With `scan` the blocks run in a loop that is compiled once. Their parameters stay
    separate, `block_<i>`, and their intermediates cannot be collected. Without it,
    rematerialization gathers the parameters once for each of several inputs.
    """

    options: EncoderOptions

    @nn.compact
    def __call__(self, x, train=False):
        """Maps tokens (B, N, D) to tokens (B, N, D).

        Args:
            x: Tokens, or a tree of them, such as those of images and of videos. The
                leaves go through each block side by side, so that its parameters are
                gathered, and their gradients summed over devices, only once.
            train: Whether dropout and stochastic depth act.
        """
        o = self.options
        names = block_names(o.depth, o.new_layers)
        xs, tree = jax.tree.flatten(x)
        keys, skip_rates = [None] * len(xs), None
        norm = {"epsilon": o.norm_epsilon, "dtype": jnp.dtype(o.dtype)}
        if o.pre_norm:
            xs = [*map(nn.LayerNorm(**norm, name="pre_norm"), xs)]
        if train and (o.dropout or o.stochastic_depth):
            keys = [self.make_rng("dropout") for _ in xs]
            keys = [jax.random.split(key, len(names) + 1) for key in keys]
            drop = nn.Dropout(o.dropout, deterministic=False)
            xs = [drop(x, rng=key[-1]) for x, key in zip(xs, keys, strict=True)]
        if train and o.stochastic_depth:
            skip_rates = jnp.linspace(0, o.stochastic_depth, len(names))
            skip_rates = skip_rates.at[-1].set(o.stochastic_depth)  # a lone one's, too
        inputs, gate = xs, o.gate_after or 0
        # Frozen blocks run in a loop of their own: a loop is differentiated as a whole.
        # So do new ones, which may train alone at first.
        stops = sorted({0, o.frozen_layers, gate, o.depth, len(names)})
        for start, stop in itertools.pairwise(stops):
            if start and start == gate:
                scale = jnp.tanh(self.param("gate", nn.initializers.zeros, ()))
                xs = [
                    (x + scale * first).astype(x.dtype)
                    for x, first in zip(xs, inputs, strict=True)
                ]
            part = slice(start, stop)
            noise = jax.tree.map(lambda a, part=part: a[part], (keys, skip_rates))
            xs = self._run(names[part], xs, noise)
        return jax.tree.unflatten(tree, map(nn.LayerNorm(**norm, name="norm"), xs))

    @nn.nowrap
    def _run(self, names, xs, noise):
        """Runs named blocks one after the other.

        Args:
            names: Names of the blocks.
            xs: List of tokens (B, N, D).
            noise: (Keys by input and block, skip rates by block), as in `Block`.
        """
        o = self.options
        block = Block
        if o.remat != "none":
            policy = REMAT_POLICIES[o.remat]
            block = nn.remat(Block, policy=policy, prevent_cse=not o.scan)

        def run(block, xs, noise):
            keys, skip_rate = noise
            return [block(x, key, skip_rate) for x, key in zip(xs, keys, strict=True)]

        if not o.scan or self.is_initializing():
            for i, name in enumerate(names):
                noise_i = jax.tree.map(lambda a, i=i: a[i], noise)
                xs = run(block(o, name=name), xs, noise_i)
            return xs

        def layer(xs, params_and_noise):
            params, noise = params_and_noise
            apply = functools.partial(block(o, parent=None).apply, {"params": params})
            return run(apply, xs, noise), None

        params = [self.variables["params"][name] for name in names]
        params = jax.tree.map(lambda *each: jnp.stack(each), *params)
        return jax.lax.scan(layer, xs, (params, noise))[0]


class AttentionPooling(nn.Module):
    """Attention of a learned probe to all tokens: (B, N, D) to (B, D).

    With `mlp`, a block's second half, x + MLP(LN x), follows, as in the MAP head of
    SigLIP and big_vision (Zhai et al., 2022).
    """

    options: EncoderOptions
    mlp: bool = False

    @nn.compact
    def __call__(self, x):
        o = self.options
        b, _, d = x.shape
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, d))
        probe = jnp.broadcast_to(probe, (b, 1, d)).astype(o.dtype)
        probe = constrain(probe, BATCH)
        # Splash attention takes no single query.
        chosen = "auto" if o.attention == "splash" else o.attention
        x = Attention(o.heads, chosen, o.dtype, name="attention")(probe, x)
        if self.mlp:
            norm = nn.LayerNorm(o.norm_epsilon, dtype=jnp.dtype(o.dtype), name="norm")
            x = x + Mlp(o, name="mlp")(norm(x))
        return x[:, 0]
