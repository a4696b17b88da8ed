import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_tube_vit.models.dense import Dense, affine


@pytest.mark.parametrize("features", [(6, 7), (3, 1)])  # wider, narrower than x
def test_products_and_their_gradients_are_those_of_einsum(features):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (3, 5, 4, 2))
    kernel = jax.random.normal(keys[1], (4, 2, *features))
    bias = jax.random.normal(keys[2], features)
    y, back = jax.vjp(lambda *inputs: affine(*inputs, 2), x, kernel, bias)
    expected, expected_back = jax.vjp(
        lambda x, k, b: jnp.einsum("abcd,cdef->abef", x, k) + b, x, kernel, bias
    )
    np.testing.assert_allclose(y, expected, atol=1e-5)
    for a, b in zip(back(y), expected_back(y), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("features", [512, 32])  # wider, narrower than x
def test_the_narrower_factor_of_a_kernels_gradient_stands_left_on_cpus(features):
    """XLA copies the left one, element by element."""
    shapes = ((64, 128), (128, features), (features,))
    x, kernel, bias = (jnp.ones(shape) for shape in shapes)

    def gradient(kernel):
        return jax.grad(lambda k: affine(x, k, bias).sum())(kernel)

    program = jax.jit(gradient).lower(kernel).compile().as_text()
    sizes = sorted(shapes[1])
    assert re.findall(r"= f32\[(\d+),(\d+)\]\S* dot\(", program) == [
        tuple(map(str, sizes))
    ]


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
