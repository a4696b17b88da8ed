"""Shares of attention against loops, through fused attention, loops and remat."""

import jax
import numpy as np
import pytest

from sparse_tube_vit import Tube, TubeViT
from sparse_tube_vit.config import EncoderOptions
from sparse_tube_vit.inference.rollout import attention_shares
from sparse_tube_vit.models.tubevit import init_params
from tests.models.loops import encode, multi_head, tanh_gelu

CLIP = (4, 16, 16)


def by_loops(z, p, blocks, pooling, gate_after):
    """(pooling, rollout), each (N,), of the tokens z (N, D) that the tubes made."""
    extra = [p[name][0] for name in ("class_token", "registers") if name in p]
    z, extra = np.concatenate([*extra, z]), sum(map(len, extra))
    x, weights = encode(z, p["encoder"], blocks, tanh_gelu, gate_after)
    one = np.eye(len(z))
    flow = one  # how much of every first token is in every token
    for i, last in enumerate(weights):
        if i == gate_after:
            g = abs(np.tanh(p["encoder"]["gate"]))
            flow = (flow + g * one) / (1 + g)
        flow = 0.5 * (one + last) @ flow
    if pooling == "class_token":
        pooled, rolled = last[0, extra:], flow[0, extra:]
        return pooled / pooled.sum(), rolled / rolled.sum()
    pooled = np.full(len(z) - extra, 1 / (len(z) - extra))
    if pooling == "attention":
        probe = p["pooling"]["probe"][0]
        _, (pooled,) = multi_head(probe, x[extra:], p["pooling"]["attention"])
    rolled = pooled @ flow[extra:, extra:]
    return pooled, rolled / rolled.sum()


def random_params(model):
    """Parameters that attend to some tokens far more than to others."""
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0), CLIP))
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: (0.7 * rng.normal(size=x.shape)).astype(np.float32), shapes
    )


@pytest.mark.parametrize(
    ("pooling", "options"),
    [
        ("attention", {"scan": True, "remat": "dots", "attention": "xla"}),
        ("attention", {"new_layers": 1, "gate_after": 1}),
        ("mean", {}),
        ("class_token", {}),
        ("attention", {"registers": 2}),
        ("class_token", {"registers": 2}),
    ],
)
def test_shares_are_those_of_loops(pooling, options):
    options = dict(options)
    registers = options.pop("registers", 0)
    model = TubeViT(
        tubes=(Tube((2, 8, 8), (2, 8, 8)), Tube((1, 16, 16), (2, 16, 16))),
        classes={"h": 2},
        options=EncoderOptions(depth=2, width=12, mlp_dim=20, heads=3, **options),
        pooling=pooling,
        registers=registers,
    )
    params = random_params(model)
    if "gate_after" in options:  # what is subtracted counts as what is added
        params["encoder"]["gate"] = -abs(params["encoder"]["gate"])
    videos = np.random.default_rng(0).integers(0, 256, (2, *CLIP, 3), np.uint8)
    got = attention_shares(model, params, videos)
    tokens = model.apply(
        {"params": params},
        videos,
        method=lambda m, x: m.stem(x) + m.place(x.shape[1:4]),
    )
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    blocks = ["block_0", "block_1"] + ["new_block_0"] * options.get("new_layers", 0)
    for i, z in enumerate(np.asarray(tokens, np.float64)):
        pooled, rolled = by_loops(z, p, blocks, pooling, options.get("gate_after"))
        np.testing.assert_allclose(got["pooling"][i], pooled, rtol=2e-3, atol=1e-5)
        np.testing.assert_allclose(got["rollout"][i], rolled, rtol=2e-3, atol=1e-5)
        # Else loops of uniform attention would pass as well.
        assert np.ptp(rolled) > 0.02 and rolled.sum() == pytest.approx(1)


def test_who_does_not_ask_computes_no_weights():
    tubes = (Tube((2, 8, 8), (2, 8, 8)),)
    options = EncoderOptions(depth=1, width=12, mlp_dim=20, heads=3)
    model = TubeViT(tubes, {"h": 2}, options)
    x = np.zeros((1, *CLIP, 3), np.uint8)
    variables = jax.eval_shape(lambda key: model.init(key, x, "h"), jax.random.key(0))
    assert set(variables) == {"params"}

    def softmaxes(**options):
        def run(variables):
            return model.apply(variables, x, method="features", **options)

        return str(jax.make_jaxpr(run)(variables)).count("exp ")

    assert 0 < softmaxes() < softmaxes(mutable=["intermediates"])
