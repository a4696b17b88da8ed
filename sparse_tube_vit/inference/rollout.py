"""Which tokens a model looks at: attention pooling, and attention roll-out."""

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
    """What an output takes from the tokens that went in (Abnar and Zuidema, 2020).

    A layer hands on half of its tokens as they are, by its residual connection, and
    half by its attention. The MLPs are left out: it is a picture, not a proof.

    Args:
      shares: (B, N), what the output takes from the tokens of the last layer.
      layers: (B, N, N) attention of every layer, rows of sum 1, the first layer first.
      gate: the number of layers after which the first tokens are added again, and
        times what.

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
    """How much of its description of a clip a model takes from every token.

    Args:
      model, params: with any attention and pooling; heads of attention are averaged.
      x: (B, T, H, W, 3) or images, as for the model.

    Returns:
      {"pooling": from the last layer's tokens, "rollout": from those that the tubes
      made}, each (B, N) float32 of sum 1. With mean pooling the former is 1 / N; with
      a class token it is the attention that this pays in the last layer.
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
        if model.pooling == "attention":
            pooling = weights(kept["pooling"])[:, 0]
        elif model.pooling == "mean":
            pooling = jnp.full((b, n), 1 / n)
        else:
            token = jnp.zeros((b, n)).at[:, 0].set(1)
            looked = [layers[-1][:, 0], rollout(token, layers, gate)]
            pooling, rolled = (
                x[:, 1:] / x[:, 1:].sum(1, keepdims=True) for x in looked
            )
            return {"pooling": pooling, "rollout": rolled}
        return {"pooling": pooling, "rollout": rollout(pooling, layers, gate)}

    return shares(params, x)
