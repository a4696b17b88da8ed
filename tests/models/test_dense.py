import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_tube_vit.models import dense
from sparse_tube_vit.models.dense import Dense, affine


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("features", [(6, 7), (3, 1)])  # wider, narrower than x
def test_products_and_their_gradients_are_those_of_einsum(
    features, dtype, platform, monkeypatch
):
    monkeypatch.setattr(dense, "platform", lambda: platform)
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (3, 5, 4, 2), dtype)
    kernel = jax.random.normal(keys[1], (4, 2, *features))
    bias = jax.random.normal(keys[2], features)
    y, back = jax.vjp(lambda *inputs: affine(*inputs, 2), x, kernel, bias)
    found = (y, *back(y))
    x, k, g = (np.float64(factor.astype(dtype)) for factor in (x, kernel, y))
    expected = (
        np.einsum("abcd,cdef->abef", x, k) + bias,
        np.einsum("abef,cdef->abcd", g, k),
        np.einsum("abcd,abef->cdef", x, g),
        g.sum((0, 1)),
    )
    assert [a.dtype for a in found] == ["float32", dtype, "float32", "float32"]
    for a, exact in zip(found, expected, strict=True):
        rounding = max(1e-4, jnp.finfo(a.dtype).eps)
        np.testing.assert_allclose(np.float64(a), exact, rtol=rounding, atol=1e-4)


def test_gradients_of_no_examples_and_of_one():
    kernel, bias = jnp.ones((2, 3)), jnp.zeros(3)
    of_none = jax.grad(lambda k: affine(jnp.ones((0, 4, 2)), k, bias).sum())(kernel)
    np.testing.assert_array_equal(of_none, np.zeros((2, 3)))
    x = jnp.arange(8.0).reshape(4, 2)
    of_one = jax.grad(lambda k: affine(x, k, jnp.zeros(()), 2))(jnp.ones((4, 2)))
    np.testing.assert_allclose(of_one, x)


@pytest.mark.parametrize(
    ("examples", "features", "left"),
    [(64, 512, 128), (64, 32, 32), (8, 32, 128)],
    ids=["narrower", "wider", "wider_of_few_examples"],
)
def test_kernels_gradients_copy_the_least_on_cpus(examples, features, left):
    """XLA copies the left factor, element by element; a swap, the product."""
    shapes = ((examples, 128), (128, features), (features,))
    x, kernel, bias = (jnp.ones(shape) for shape in shapes)

    def gradient(kernel):
        return jax.grad(lambda k: affine(x, k, bias).sum())(kernel)

    program = jax.jit(gradient).lower(kernel).compile().as_text()
    (rows,) = re.findall(r"= f32\[(\d+),\d+\]\S* dot\(", program)
    assert int(rows) == left


def test_gradients_copy_no_kernels_of_several_axes_on_cpus():
    x, kernel, bias = (jnp.ones(s) for s in ((2, 64, 128), (128, 4, 32), (4, 32)))

    def gradient(x, kernel):
        return jax.grad(lambda x: (affine(x, kernel, bias) ** 2).sum())(x)

    program = jax.jit(gradient).lower(x, kernel).compile().as_text()
    assert not re.findall(r"= \S+ (copy|transpose)\(", program)


def test_gradients_of_parameters_are_summed_in_float32():
    """To the last bits that a sum of exact products has, over many examples."""
    layer = Dense((4,), dtype=jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), (64, 16, 8)).astype(jnp.bfloat16)
    params = layer.init(jax.random.key(1), x)["params"]
    y, back = jax.vjp(lambda params: layer.apply({"params": params}, x), params)
    assert y.dtype == jnp.bfloat16 and params["kernel"].dtype == jnp.float32
    (gradient,) = back(y)
    x, y = (np.asarray(a.astype(jnp.float32), np.float64) for a in (x, y))
    expected = {"kernel": np.einsum("bnk,bnf->kf", x, y), "bias": y.sum((0, 1))}
    for name, exact in expected.items():
        assert gradient[name].dtype == jnp.float32
        np.testing.assert_allclose(gradient[name], exact, rtol=1e-4, atol=1e-3)
