"""Shares of attention against loops, through fused attention, loops and remat."""

import jax
import numpy as np
import pytest

from sparse_tube_vit import Tube, TubeViT
from sparse_tube_vit.config import EncoderOptions
from sparse_tube_vit.inference.rollout import attention_shares
from sparse_tube_vit.models.tubevit import init_params
from tests.models.loops import (
    layer_norm,
    multi_head,
    softmax,
    tanh_gelu,
)

CLIP = (4, 16, 16)


def weights_of(queries, x, p):
    """Attention's weights, mean over heads, by loops over queries and heads."""
    out = np.zeros((len(queries), len(x)))
    for i, row in enumerate(queries):
        for h in range(p["query"]["kernel"].shape[1]):
            q = row @ p["query"]["kernel"][:, h] + p["query"]["bias"][h]
            k = x @ p["key"]["kernel"][:, h] + p["key"]["bias"][h]
            out[i] += softmax(k @ q / np.sqrt(len(q)))
    return out / p["query"]["kernel"].shape[1]


def by_loops(z, p, blocks, pooling, gate_after):
    """(pooling, rollout), each (N,), of the tokens z (N, D) that the tubes made."""
    extra = [p[name][0] for name in ("class_token", "registers") if name in p]
    z, extra = np.concatenate([*extra, z]), sum(map(len, extra))
    n, e, x = len(z), p["encoder"], z
    flow = np.eye(n)  # how much of every first token is in every token
    for i, block in enumerate(blocks):
        if i == gate_after:
            g = np.tanh(e["gate"])
            x = x + g * z
            flow = (flow + abs(g) * np.eye(n)) / (1 + abs(g))
        b = e[block]
        y = np.stack([layer_norm(row, b["norm_1"]) for row in x])
        last = weights_of(y, y, b["attention"])
        mixed = np.zeros((n, n))
        for a in range(n):
            for c in range(n):
                mixed[a] += (0.5 * (a == c) + 0.5 * last[a, c]) * flow[c]
        flow = mixed
        x = x + multi_head(y, y, b["attention"])
        y = np.stack([layer_norm(row, b["norm_2"]) for row in x])
        y = tanh_gelu(y @ b["mlp"]["up"]["kernel"] + b["mlp"]["up"]["bias"])
        x = x + y @ b["mlp"]["down"]["kernel"] + b["mlp"]["down"]["bias"]
    x = np.stack([layer_norm(row, e["norm"]) for row in x])
    if pooling == "class_token":
        pooled, rolled = last[0, extra:], flow[0, extra:]
        return pooled / pooled.sum(), rolled / rolled.sum()
    pooled = np.full(n - extra, 1 / (n - extra))
    if pooling == "attention":
        probe = p["pooling"]["probe"][0]
        (pooled,) = weights_of(probe, x[extra:], p["pooling"]["attention"])
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
