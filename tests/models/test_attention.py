import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as stablehlo
from jax.sharding import PartitionSpec as P

from sparse_tube_vit.distributed.mesh import AXES, BATCH
from sparse_tube_vit.models import attention as attentions
from sparse_tube_vit.models.attention import UnavailableAttention, attention, choose
from sparse_tube_vit.models.encoder import REMAT_POLICIES


def inputs(tokens, queries=None, dtype=jnp.float32):
    """q, k, v and a gradient of the output; 2 examples, 2 heads, 8 channels each."""
    keys = jax.random.split(jax.random.key(0), 4)
    sizes = (queries or tokens, tokens, tokens, queries or tokens)
    return [
        jax.random.normal(key, (2, n, 2, 8), dtype)
        for key, n in zip(keys, sizes, strict=True)
    ]


def by_loops(q, k, v):
    out = np.zeros(q.shape)
    for b, m, h in np.ndindex(q.shape[:3]):
        scores = k[b, :, h] @ q[b, m, h] / np.sqrt(q.shape[3])
        weights = np.exp(scores - scores.max())
        out[b, m, h] = weights / weights.sum() @ v[b, :, h]
    return out


@pytest.mark.parametrize("name", ["heads_first", "head_by_head", "xla"])
def test_attention_is_that_of_loops(name):
    q, k, v, _ = inputs(9, queries=5)
    expected = by_loops(*(np.asarray(x, np.float64) for x in (q, k, v)))
    np.testing.assert_allclose(attention(q, k, v, name), expected, atol=1e-6)


def padding(tokens):
    return ((0, 0), (0, tokens), (0, 0), (0, 0))


@pytest.mark.parametrize(
    "tokens", [130, pytest.param(128, marks=pytest.mark.slow)], ids=["padded", "whole"]
)
def test_splash_and_its_gradient_are_those_of_plain_attention(tokens, monkeypatch):
    """As a TPU computes it, step by step; in parts of the batch and of the heads."""
    monkeypatch.setattr(attentions, "_LARGEST_BLOCK", 128)  # two where tokens are 130
    q, k, v, gradient = inputs(tokens)
    mesh = jax.make_mesh((2, 1, 2), AXES, (jax.sharding.AxisType.Auto,) * 3)
    assert mesh.size == 4

    def splash(q, k, v):
        """Padded here as the projections are, with what must not be attended to."""
        missing = -tokens % 128
        padded = (jnp.pad(x, padding(missing), constant_values=3.0) for x in (q, k, v))
        return attentions.splash(*padded, tokens=tokens, interpret=True)[:, :tokens]

    def run(function):
        def both(*inputs):
            out, back = jax.vjp(function, *inputs[:3])
            return out, back(inputs[3])

        return jax.jit(both)(q, k, v, gradient)

    expected = run(attentions.heads_first)
    with jax.set_mesh(mesh):
        found = run(splash)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected
    )


def test_splash_keeps_what_it_reads_as_it_reads_it(capsys):
    q, k, v, _ = inputs(128)

    def attend(*inputs):
        return attentions.splash(*(2 * x for x in inputs), interpret=True)

    attend = jax.checkpoint(attend, policy=REMAT_POLICIES["dots"])
    jax.ad_checkpoint.print_saved_residuals(attend, q, k, v)
    kept = re.findall(r"f32\[([\d,]+)\]", capsys.readouterr().out)
    # Queries, keys, values; the output; the logarithms of the sums of the softmax.
    assert sorted(kept) == ["2,2,128", "2,2,128,8", *["2,2,8,128"] * 3]


@pytest.mark.parametrize("tokens, queries", [(9, None), (8, 1)])
def test_odd_numbers_of_tokens_are_padded_for_cudnn(tokens, queries, monkeypatch):
    """Lowered for a GPU with its gradient; its result by xla from the same padding."""
    q, k, v, gradient = inputs(tokens, queries)

    def both(function):
        def run(*inputs):
            out, back = jax.vjp(function, *inputs)
            return out, back(gradient)

        return jax.jit(run)(q, k, v)

    expected = both(attentions.heads_first)
    found = both(lambda *x: attentions.cudnn(*x, implementation="xla"))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected
    )

    def loss(*x):
        return attentions.cudnn(*x).astype(jnp.float32).sum()

    monkeypatch.setattr(stablehlo, "check_cudnn_version", lambda: 91000)
    narrow = (x.astype(jnp.bfloat16) for x in (q, k, v))
    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*narrow)
    lowered = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "cudnn$fmha" in lowered


def test_dots_runs_cudnn_once_and_full_runs_it_again(monkeypatch, capsys):
    monkeypatch.setattr(attentions, "platform", lambda: "gpu")
    monkeypatch.setattr(stablehlo, "check_cudnn_version", lambda: 91000)
    q, k, v = (x.astype(jnp.bfloat16) for x in inputs(8)[:3])

    def kernels(policy):
        def attend(*x):
            return jax.checkpoint(attention, policy=policy, static_argnums=3)(
                *x, "cudnn"
            )

        def loss(*x):
            return jnp.sin(attend(*x)).sum()

        traced = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)
        capsys.readouterr()
        jax.ad_checkpoint.print_saved_residuals(attend, q, k, v)
        kept = re.findall(r"(\w+)\[[\d,]+\] output of", capsys.readouterr().out)
        runs = re.findall(r"= dot_product_attention_fwd_wrapper", str(traced))
        return len(runs), sorted(kept)

    # The output, once, and the sums of the softmax.
    assert kernels(REMAT_POLICIES["dots"]) == (1, ["bf16", "f32"])
    assert kernels(REMAT_POLICIES["full"]) == (2, [])


def test_a_loop_over_heads_has_the_gradients_of_all_at_once():
    *qkv, gradient = inputs(9, queries=5)
    expected = jax.vjp(attentions.heads_first, *qkv)[1](gradient)
    found = jax.vjp(attentions.head_by_head, *qkv)[1](gradient)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_every_device_loops_over_its_own_heads():
    mesh = jax.make_mesh((2, 1, 2), AXES, (jax.sharding.AxisType.Auto,) * 3)
    split = jax.sharding.NamedSharding(mesh, P(BATCH, None, "tensor"))
    *qkv, gradient = (jax.device_put(x, split) for x in inputs(9))

    @jax.jit
    def both(q, k, v, gradient):
        out, back = jax.vjp(attentions.head_by_head, q, k, v)
        return out, *back(gradient)

    with jax.set_mesh(mesh):
        compiled = both.lower(*qkv, gradient).compile()
        found = compiled(*qkv, gradient)
    assert "all-gather" not in compiled.as_text()
    assert {x.sharding.spec for x in found} == {split.spec}
    expected, back = jax.vjp(attentions.heads_first, *qkv)
    for a, b in zip(found, (expected, *back(gradient)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("name", ["heads_first", "head_by_head", "xla"])
def test_scores_and_softmax_are_not_rounded_to_the_dtype_of_the_factors(name):
    # Scores of 63 and 63.125: bfloat16 has nothing between 63 and 63.25.
    q = jnp.ones((1, 1, 1, 64), jnp.bfloat16)
    k = jnp.full((1, 2, 1, 64), 8.0, jnp.bfloat16).at[0, :, 0, 0].set([0.0, 1.0])
    v = jnp.zeros((1, 2, 1, 64), jnp.bfloat16).at[0, 1].set(1.0)
    out = attention(q, k, v, name)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        out.astype(jnp.float32), 1 / (1 + np.exp(-0.125)), atol=2**-9
    )


def chosen(platform, **options):
    """Which implementation "auto" takes on a device that is not there."""
    kind = {"tpu": "TPU v5 lite", "gpu": "NVIDIA H100", "cpu": "cpu"}[platform]
    known = {"device_kind": kind, "num_cores": None, "platform": platform}
    fields = dataclasses.fields(jax.sharding.AbstractDevice)  # no platform in jax 0.9
    device = jax.sharding.AbstractDevice(*(known[field.name] for field in fields))
    mesh = jax.sharding.AbstractMesh(
        (1, 1, 1), AXES, (jax.sharding.AxisType.Auto,) * 3, abstract_device=device
    )
    q, k, *_ = inputs(**options)
    with jax.sharding.use_abstract_mesh(mesh):
        return choose("auto", q.shape, k.shape, q.dtype)


def test_what_each_device_computes_attention_with(monkeypatch):
    bfloat16 = {"dtype": jnp.bfloat16}
    assert chosen("cpu", tokens=9) == "heads_first"
    assert chosen("cpu", tokens=1024) == "head_by_head"
    assert chosen("cpu", tokens=1024, queries=1) == "heads_first"
    assert chosen("tpu", tokens=539) == "splash"
    assert chosen("tpu", tokens=539, queries=1) == "xla"
    assert chosen("tpu", tokens=196) == "xla"
    assert chosen("gpu", tokens=9) == "xla"
    for capability, expected in {
        "7.5": "xla",  # Turing, as Colab's T4
        "8.0": "cudnn",
        "12.0": "cudnn",
        "gfx942": "xla",  # of AMD
    }.items():
        attached = types.SimpleNamespace(compute_capability=capability)
        monkeypatch.setattr(jax, "local_devices", lambda attached=attached: [attached])
        assert chosen("gpu", tokens=9, **bfloat16) == expected
    monkeypatch.undo()  # no GPU is attached, as where a step is compiled for one
    assert chosen("gpu", tokens=9, **bfloat16) == "cudnn"


def test_what_does_not_run_here_is_named():
    q, k, *_ = inputs(9)
    for name in ("splash", "cudnn"):
        with pytest.raises(UnavailableAttention, match=f"'{name}', .* not run on cpu"):
            choose(name, q.shape, k.shape, q.dtype)
