"""Attention of the pooling, and attention rollout."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from sparse_tube_vit.models.encoder import block_names
from sparse_tube_vit.models.tubevit import TubeViT


def rollout(
    shares: jax.Array,
    layers: Sequence[jax.Array],
    gate: tuple[int, jax.Array] | None = None,
) -> jax.Array:
    """Traces an output's attention back to the input tokens (Abnar and Zuidema, 2020).

    Of each block, half of a token comes through the residual connection and half
    through attention. MLPs are ignored: rollout is an illustration, not an attribution.

    Args:
        shares: (B, N), what the output takes from the last block's tokens.
        layers: (B, N, N) attention of each block, rows of sum 1, the first block first.
        gate: The number of blocks after which the input tokens are added again (paper
            eq. 8), and the factor.

    Returns:
        (B, N), of the same sum as `shares`.
    """
    after, scale = gate or (None, 0.0)
    added = jnp.zeros_like(shares)
    for i in reversed(range(len(layers))):
        shares = (shares + jnp.einsum("bn,bnm->bm", shares, layers[i])) / 2
        if i == after:
            share = jnp.abs(scale) / (1 + jnp.abs(scale))
            added, shares = share * shares, (1 - share) * shares
    return shares + added


def attention_shares(model: TubeViT, params, x) -> dict[str, jax.Array]:
    """Computes how much of its pooled features a model takes from each token.

    Args:
        model: A model with any attention and pooling; heads are averaged.
        params: Its parameters.
        x: (B, T, H, W, 3) or images, as for the model.

    Returns:
        {"pooling": of the last block's tokens, "rollout": of the input tokens}, each
        (B, N) float32 of sum 1. With mean pooling, the former is 1 / N; with a class
        token, it is that token's attention in the last block.
    """
    options = model.options
    names = block_names(options.depth, options.new_layers)
    # Blocks that run in a loop keep no intermediates.
    model = model.with_options(scan=False, remat="none")

    @jax.jit
    def shares(params, x):
        variables = {"params": params}
        _, kept = model.apply(
            variables, x, method="features", mutable=["intermediates"]
        )
        kept = kept["intermediates"]

        def weights(part):
            return part["attention"]["weights"][0].mean(axis=1)  # (B, M, N)

        layers = [weights(kept["encoder"][name]) for name in names]
        gate = None
        if options.gate_after is not None:
            gate = options.gate_after, jnp.tanh(params["encoder"]["gate"])
        b, n, _ = layers[0].shape
        start, extra = jnp.zeros((b, n)), model.extra_tokens
        if model.pooling == "class_token":
            start = start.at[:, 0].set(1)
            pooling = layers[-1][:, 0]
        else:
            mean = model.pooling == "mean"
            share = 1 / (n - extra) if mean else weights(kept["pooling"])[:, 0]
            pooling = start = start.at[:, extra:].set(share)
        parts = {"pooling": pooling, "rollout": rollout(start, layers, gate)}
        parts = {k: x[:, extra:] for k, x in parts.items()}
        return {k: x / x.sum(1, keepdims=True) for k, x in parts.items()}

    return shares(params, x)
