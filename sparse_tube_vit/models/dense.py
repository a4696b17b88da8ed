"""Dense layers that multiply in one dtype and accumulate in float32."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from sparse_tube_vit.distributed.mesh import platform


def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array, axes: int = 1):
    """Contracts the last axes of x with the first axes of a kernel, and adds a bias.

    Factors have the dtype of x. Sums are float32, those of the output and those of the
    gradients over examples, tokens and devices. The automatic derivative of a bfloat16
    product would round every device's part of a gradient before they are summed.

    Args:
        x: (..., *K).
        kernel: (*K, *F) float32.
        bias: (*F,) float32.
        axes: Number of axes in K.

    Returns:
        (..., *F) float32.
    """
    if platform() != "cpu":
        return _affine(x, kernel, bias, axes)
    # As matrices: XLA copies kernels of more axes, as attention's, before it multiplies
    # gradients with them.
    batch, outputs = x.shape[: x.ndim - axes], kernel.shape[axes:]
    n, k, f = map(math.prod, (batch, kernel.shape[:axes], outputs))
    y = _affine(x.reshape(n, k), kernel.reshape(k, f), bias.reshape(f), 1)
    return y.reshape(*batch, *outputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _affine(x, kernel, bias, axes):
    return _dot(x, kernel.astype(x.dtype), (_last(x, axes), tuple(range(axes)))) + bias


def _dot(a, b, contracted):
    numbers = (contracted, ((), ()))
    return jax.lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)


def _last(x, axes):
    return tuple(range(x.ndim - axes, x.ndim))


def _forward(x, kernel, bias, axes):
    return _affine(x, kernel, bias, axes), (x, kernel)


def _backward(axes, saved, gradient):
    x, kernel = saved
    gradient = gradient.astype(x.dtype)
    outputs = kernel.ndim - axes
    to_x = _dot(
        gradient,
        kernel.astype(x.dtype),
        (_last(gradient, outputs), _last(kernel, outputs)),
    )
    batch = tuple(range(x.ndim - axes))
    to_kernel = _outer(x, gradient, batch)
    # A sum as a product: on TPUs, matrix units sum heads of 64 channels several times
    # as fast as XLA's reductions.
    ones = jnp.ones((8, *x.shape[: len(batch)]), x.dtype)
    to_bias = _dot(ones, gradient, (tuple(i + 1 for i in batch), batch))[0]
    return to_x.astype(x.dtype), to_kernel, to_bias


def _outer(x, gradient, batch):
    """Contracts the batch axes of (*batch, *K) and (*batch, *F) to (*K, *F)."""
    if platform() == "cpu" and x.dtype == jnp.float32:
        # XLA copies the left factor transposed, element by element.
        (n, k), f = x.shape, gradient.shape[1]
        if n * k > n * f + k * f:
            # Without the barrier it swaps the factors again, to save the transpose.
            y = jax.lax.optimization_barrier(_dot(gradient, x, (batch, batch)))
            return y.transpose()
    return _dot(x, gradient, (batch, batch))


_affine.defvjp(_forward, _backward)


class Dense(nn.Module):
    """Dense layer from (..., *K) to (..., *features).

    Parameters are `kernel` (*K, *features) and `bias` (*features,), float32.

    Attributes:
        features: Sizes of the output's axes.
        axes: Number of the input's last axes that are contracted.
        dtype: Dtype of factors and output.
    """

    features: tuple[int, ...]
    axes: int = 1
    dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(self, x):
        inputs = x.shape[x.ndim - self.axes :]

        def initial(key, shape):
            flat = (math.prod(inputs), math.prod(self.features))
            return nn.initializers.xavier_uniform()(key, flat).reshape(shape)

        kernel = self.param("kernel", initial, (*inputs, *self.features))
        bias = self.param("bias", nn.initializers.zeros, self.features)
        y = affine(x.astype(self.dtype), kernel, bias, self.axes)
        # Named for rematerialization, whose policies do not see into `affine`.
        return checkpoint_name(y.astype(self.dtype), "dense")
