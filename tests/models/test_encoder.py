import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from sparse_tube_vit.config import EncoderOptions
from sparse_tube_vit.config.model import ENCODER
from sparse_tube_vit.models import attention as attentions
from sparse_tube_vit.models.attention import IMPLEMENTATIONS
from sparse_tube_vit.models.encoder import (
    GELUS,
    REMAT_POLICIES,
    Attention,
    AttentionPooling,
    Block,
    Encoder,
)
from tests.compiled import apply, init
from tests.models.loops import encode, exact_gelu, multi_head, silu, tanh_gelu
from tests.saved import random_like


@pytest.mark.parametrize(
    "options, blocks, gelu",
    [
        ({}, ["block_0", "block_1"], tanh_gelu),
        ({"gelu": "erf"}, ["block_0", "block_1"], exact_gelu),
        ({"gated_mlp": True}, ["block_0", "block_1"], silu),
        (
            {"new_layers": 1, "gate_after": 1},
            ["block_0", "block_1", "new_block_0"],
            tanh_gelu,
        ),
    ],
)
def test_encoder_is_that_of_loops(options, blocks, gelu):
    model = Encoder(EncoderOptions(depth=2, heads=3, mlp_dim=20, **options))
    x = np.random.default_rng(0).normal(size=(2, 5, 12)).astype(np.float32)
    params = random_like(init(model, jax.random.key(0), x)["params"])
    out = apply(model, {"params": params}, x)
    host = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    for example, expected in zip(out, x, strict=True):
        expected, _ = encode(expected, host, blocks, gelu, options.get("gate_after"))
        np.testing.assert_allclose(example, expected, atol=2e-5)


def test_stochastic_depth_leaves_branches_out_for_whole_examples():
    block = Block(EncoderOptions(heads=2, mlp_dim=8))
    x = np.random.default_rng(0).normal(size=(64, 3, 8)).astype(np.float32)
    params = random_like(init(block, jax.random.key(0), x[:1])["params"])
    out = apply(block, {"params": params}, x, jax.random.key(1), 0.5)

    # All that can become of an example: each branch is there, doubled, or not.
    def without(*branches):
        silent = jax.tree.map(lambda a: a, params)
        for branch, last in (("attention", "out"), ("mlp", "down")):
            factor = 0.0 if branch in branches else 2.0
            layer = silent[branch][last]
            silent[branch] |= {last: jax.tree.map(lambda a, f=factor: f * a, layer)}
        return np.asarray(apply(block, {"params": silent}, x))

    choices = [(), ("attention",), ("mlp",), ("attention", "mlp")]
    distance = np.stack([np.abs(out - without(*c)).max((1, 2)) for c in choices])
    assert distance.min(axis=0).max() < 1e-4
    met = np.bincount(distance.argmin(axis=0), minlength=4)
    assert (met >= 6).all(), met  # 16 of each are expected


def test_stochastic_depth_grows_linearly_from_none():
    model = Encoder(
        EncoderOptions(depth=3, heads=2, mlp_dim=8, stochastic_depth=0.4, new_layers=2)
    )
    rates = {}

    def see(call, args, kwargs, context):
        if isinstance(context.module, Block):
            rates[context.module.name] = float(args[2])
        return call(*args, **kwargs)

    x = jnp.zeros((1, 4, 8))
    params = init(model, jax.random.key(0), x)
    with nn.intercept_methods(see):
        model.apply(params, x, train=True, rngs={"dropout": jax.random.key(1)})
    np.testing.assert_allclose(list(rates.values()), [0, 0.1, 0.2, 0.3, 0.4])
    assert list(rates)[2:] == ["block_2", "new_block_0", "new_block_1"]
    one = EncoderOptions(depth=1, heads=2, mlp_dim=8, stochastic_depth=0.4)
    params = {"params": {k: params["params"][k] for k in ("block_0", "norm")}}
    with nn.intercept_methods(see):
        Encoder(one).apply(params, x, train=True, rngs={"dropout": jax.random.key(1)})
    assert rates["block_0"] == pytest.approx(0.4)  # the last one's


@pytest.mark.parametrize(
    "options",
    [
        {"remat": "full"},
        {"scan": True, "gate_after": 2},
        {"scan": True, "remat": "dots", "frozen_layers": 1, "gate_after": 3},
        {"scan": True, "remat": "full", "frozen_layers": 4},
    ],
    ids=lambda options: "-".join(options),
)
def test_scan_and_remat_change_neither_tokens_nor_gradients(options):
    """With dropout and a rate of its own for every block."""
    sizes = {"depth": 3, "new_layers": 1, "heads": 2, "mlp_dim": 12}
    noise = {"dropout": 0.2, "stochastic_depth": 0.5}
    model = Encoder(EncoderOptions(**sizes, **noise, **options))
    gate = model.options.gate_after
    plain = Encoder(EncoderOptions(**sizes, **noise, gate_after=gate))
    x = jax.random.normal(jax.random.key(0), (3, 5, 8))
    params = init(model, jax.random.key(0), x)["params"]
    jax.tree.map(
        np.testing.assert_array_equal,
        params,
        init(plain, jax.random.key(0), x)["params"],
    )
    params = random_like(params)

    def gradient(model):
        def loss(params, x):
            rngs = {"dropout": jax.random.key(1)}
            return (model.apply({"params": params}, x, True, rngs=rngs) ** 3).sum()

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradient(model),
        gradient(plain),
    )


@pytest.mark.parametrize(
    "options", [{}, {"scan": True, "remat": "dots"}], ids=["blocks", "loop"]
)
def test_tokens_side_by_side_are_as_alone(options):
    model = Encoder(
        EncoderOptions(depth=2, heads=2, mlp_dim=12, gate_after=1, **options)
    )
    images, videos = (jax.random.normal(jax.random.key(n), (n, n, 8)) for n in (3, 5))
    params = random_like(init(model, jax.random.key(0), images)["params"])

    def apply(params, x):
        return model.apply({"params": params}, x)

    def together(params):
        out = apply(params, {"videos": videos, "images": images})
        return out["images"], out["videos"]

    def alone(params):
        return apply(params, images), apply(params, videos)

    def with_gradient(function):
        y, back = jax.vjp(function, params)
        return y, back(y)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        jax.jit(lambda: with_gradient(together))(),
        jax.jit(lambda: with_gradient(alone))(),
    )


@pytest.mark.parametrize("rate", ["dropout", "stochastic_depth"])
def test_tokens_side_by_side_have_noise_of_their_own(rate):
    model = Encoder(EncoderOptions(depth=2, heads=2, mlp_dim=12, **{rate: 0.5}))
    x = jnp.tile(jax.random.normal(jax.random.key(0), (1, 5, 8)), (16, 1, 1))
    params = init(model, jax.random.key(0), x)
    rngs = {"dropout": jax.random.key(1)}
    one, other = apply(model, params, [x, x], True, rngs=rngs)
    assert np.abs(one - other).max() > 0.1


def equations(jaxpr):
    """All of a program, those of its inner programs too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def program_of_gradient(trained, **options):
    """The gradient with respect to the last blocks of an encoder of 6."""
    model = Encoder(EncoderOptions(depth=6, heads=2, mlp_dim=12, **options))
    x = jnp.zeros((3, 5, 8))
    params = init(model, jax.random.key(0), x)["params"]
    last = {f"block_{i}": params[f"block_{i}"] for i in range(6 - trained, 6)}

    def loss(last):
        return (model.apply({"params": params | last}, x) ** 2).sum()

    return equations(jax.make_jaxpr(jax.grad(loss))(last).jaxpr)


def test_no_gradient_is_computed_in_loops_of_frozen_layers():
    def loops(**options):
        found = program_of_gradient(2, scan=True, **options)
        return sorted(e.params["length"] for e in found if e.primitive.name == "scan")

    assert loops(frozen_layers=4) == [2, 2, 4]  # forward and back; forward
    assert loops() == [6, 6]


def test_remat_keeps_what_its_name_says():
    """The products that are computed again: those of a block, of attention, none."""

    def products(**options):
        found = program_of_gradient(6, **options)
        return sum(e.primitive.name == "dot_general" for e in found)

    none = products()
    assert none == 6 * (8 * 3 + 6)  # the gradients of 6 biases are products too
    assert products(remat="dots") == none + 6 * 1  # the scores of attention
    assert products(remat="full") > none + 6 * 5


def test_padding_of_fused_attention_is_not_attended_to(monkeypatch):
    """130 tokens are padded to 256, which get the biases of keys and values too."""
    monkeypatch.setattr(attentions, "platform", lambda: "tpu")
    interpreted = functools.partial(attentions.splash, interpret=True)
    monkeypatch.setitem(IMPLEMENTATIONS, "splash", interpreted)
    model = Attention(heads=2, implementation="splash")
    x = np.random.default_rng(0).normal(size=(1, 130, 8)).astype(np.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x, x)["params"]
    params = random_like(params)
    (out,) = jax.jit(model.apply)({"params": params}, x, x)
    host = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    expected, _ = multi_head(x[0], x[0], host)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_pooling_is_that_of_loops():
    model = AttentionPooling(EncoderOptions(heads=2))
    x = np.random.default_rng(0).normal(size=(3, 7, 8)).astype(np.float32)
    params = random_like(init(model, jax.random.key(0), x)["params"])
    out = apply(model, {"params": params}, x)
    host = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    for pooled, example in zip(out, x, strict=True):
        (expected,), _ = multi_head(host["probe"][0], example, host["attention"])
        np.testing.assert_allclose(pooled, expected, atol=1e-5)


def test_map_pooling_adds_an_mlp():
    options = EncoderOptions(heads=2, mlp_dim=6)
    model = AttentionPooling(options, mlp=True)
    x = jax.random.normal(jax.random.key(0), (3, 7, 8))
    p = random_like(init(model, jax.random.key(1), x)["params"])
    out = apply(model, {"params": p}, x)
    attention = {name: p[name] for name in ("probe", "attention")}
    y = apply(AttentionPooling(options), {"params": attention}, x)
    centred = y - y.mean(-1, keepdims=True)
    z = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    z = z * p["norm"]["scale"] + p["norm"]["bias"]
    up, down = p["mlp"]["up"], p["mlp"]["down"]
    z = jax.nn.gelu(z @ up["kernel"] + up["bias"]) @ down["kernel"] + down["bias"]
    np.testing.assert_allclose(out, y + z, atol=1e-5)


def test_a_norm_before_the_first_block_and_quick_gelu():
    """Quick GELU is x / (1 + exp(-1.702 x)), as published with CLIP."""
    x = np.linspace(-4, 4, 9)
    expected = x / (1 + np.exp(-1.702 * x))
    np.testing.assert_allclose(GELUS["quick"](x), expected, atol=1e-6)

    options = EncoderOptions(depth=2, heads=2, mlp_dim=6)
    model = Encoder(dataclasses.replace(options, pre_norm=True))
    x = jax.random.normal(jax.random.key(0), (3, 7, 8))
    p = random_like(init(model, jax.random.key(1), x)["params"])
    normed = apply(nn.LayerNorm(1e-6), {"params": p["pre_norm"]}, x)
    rest = {k: v for k, v in p.items() if k != "pre_norm"}
    expected = apply(Encoder(options), {"params": rest}, normed)
    np.testing.assert_allclose(apply(model, {"params": p}, x), expected, atol=1e-5)


def test_dropout_acts_in_training_alone():
    model = Encoder(EncoderOptions(depth=1, heads=2, mlp_dim=8, dropout=0.5))
    x = jnp.ones((1, 4, 8))
    params = init(model, jax.random.key(0), x)

    def run(train, seed):
        return apply(model, params, x, train, rngs={"dropout": jax.random.key(seed)})

    np.testing.assert_array_equal(run(False, 0), run(False, 1))
    assert not np.allclose(run(True, 0), run(True, 1))
    np.testing.assert_array_equal(run(True, 0), run(True, 0))


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    model = Encoder(EncoderOptions(depth=1, heads=2, mlp_dim=8, dtype="bfloat16"))
    x = jax.random.normal(jax.random.key(0), (1, 4, 8))
    params = init(model, jax.random.key(0), x)
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    out = apply(model, params, x)
    assert out.dtype == jnp.bfloat16
    exact = apply(Encoder(EncoderOptions(depth=1, heads=2, mlp_dim=8)), params, x)
    assert 0 < np.abs(out.astype(jnp.float32) - exact).max() < 0.1


def test_every_allowed_option_is_implemented():
    def choices(name):
        return set(ENCODER[name].rule.choices)

    assert choices("gelu") == set(GELUS)
    assert choices("remat") == {"none", *REMAT_POLICIES}
    assert choices("attention") == {"auto", *IMPLEMENTATIONS}


@pytest.mark.parametrize(
    "given, used", [("xla", "xla"), ("auto", "heads_first"), ("splash", "heads_first")]
)
def test_pooling_attends_as_the_blocks_do(given, used, monkeypatch):
    called = []
    for name in IMPLEMENTATIONS:
        monkeypatch.setitem(
            IMPLEMENTATIONS,
            name,
            lambda q, k, v, *_, name=name: called.append(name) or q,
        )
    options = EncoderOptions(depth=1, width=24, mlp_dim=48, heads=3, attention=given)
    pooling = AttentionPooling(options)
    jax.eval_shape(pooling.init, jax.random.key(0), jnp.zeros((1, 5, 24)))
    assert called == [used]
