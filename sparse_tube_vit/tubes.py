"""Sparse video tubes: the layout of their windows and the layer that reads them.

A tube (paper 3.2) is a 3-D convolution applied sparsely: a kernel, a stride that is
usually larger than the kernel, and the offset of the first window. Everything is
ordered (t, h, w): frames first, then pixels down, then pixels across.
"""

import dataclasses
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sparse_tube_vit.errors import TubeViTError


class ClipTooSmall(TubeViTError, ValueError):
    """A clip or image is shorter or smaller than a tube that has to read it."""


class NoImageTube(TubeViTError, ValueError):
    """An image was given to a set of tubes of which none reads a single frame."""


@dataclasses.dataclass(frozen=True)
class Tube:
    """One tube: kernel, stride and offset as (frames, pixels down, pixels across).

    Raises:
      ValueError: a size is not three integers, or out of range.
    """

    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]
    offset: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self):
        for name, least in (("kernel", 1), ("stride", 1), ("offset", 0)):
            size = tuple(getattr(self, name))
            if len(size) != 3 or any(int(s) != s or s < least for s in size):
                raise ValueError(
                    f"Tube {name} {size}: expected three whole numbers (t, h, w), "
                    f"each at least {least}."
                )
            object.__setattr__(self, name, tuple(int(s) for s in size))

    def __str__(self):
        sizes = (self.kernel, self.stride, self.offset)
        return "{} every {} from {}".format(*("x".join(map(str, s)) for s in sizes))

    @property
    def reads_images(self) -> bool:
        """Whether the tube fits in a clip of one frame."""
        return self.kernel[0] == 1 and self.offset[0] == 0

    def grid(self, clip: Sequence[int]) -> tuple[int, int, int]:
        """Number of windows per axis in a clip of (T, H, W) frames and pixels.

        Windows lie wholly in the clip: floor((size - offset - kernel) / stride) + 1.

        Raises:
          ClipTooSmall: not even one window fits.
        """
        need = tuple(o + k for o, k in zip(self.offset, self.kernel, strict=True))
        if any(size < least for size, least in zip(clip, need, strict=True)):
            raise ClipTooSmall(
                f"Tube {self} needs at least {need[0]} frames of {need[1]}x{need[2]} "
                f"pixels, but the clip has {clip[0]} of {clip[1]}x{clip[2]}. Use "
                "longer or larger clips, or tubes with a smaller kernel or offset."
            )
        return tuple(
            (size - least) // stride + 1
            for size, least, stride in zip(clip, need, self.stride, strict=True)
        )

    def centres(self, clip: Sequence[int]) -> np.ndarray:
        """Centres (N, 3) of all windows in (frames, pixels, pixels), t slowest.

        Frame and pixel i span [i, i + 1], so a 1x16x16 window at the origin has its
        centre at (0.5, 8, 8).
        """
        axes = [
            offset + stride * np.arange(n) + kernel / 2
            for n, kernel, stride, offset in zip(
                self.grid(clip), self.kernel, self.stride, self.offset, strict=True
            )
        ]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def tubes_for(tubes: Sequence[Tube], frames: int) -> list[int]:
    """Indices of the tubes that read an input of so many frames.

    An image (one frame) goes through the tubes of one frame alone, a video through all
    of them (paper 3.5).

    Raises:
      NoImageTube: the input is an image and no tube reads images.
    """
    if frames > 1:
        return list(range(len(tubes)))
    chosen = [i for i, tube in enumerate(tubes) if tube.reads_images]
    if not chosen:
        raise NoImageTube(
            f"None of the tubes [{', '.join(map(str, tubes))}] reads a single frame. "
            "Add a tube with a temporal kernel of 1 and a temporal offset of 0."
        )
    return chosen


def token_centres(tubes: Sequence[Tube], clip: Sequence[int]) -> np.ndarray:
    """Centres (N, 3) of all tokens of a clip of (T, H, W), in the tokens' order."""
    return np.concatenate([tubes[i].centres(clip) for i in tubes_for(tubes, clip[0])])


def count_tokens(tubes: Sequence[Tube], clip: Sequence[int]) -> int:
    """Number of tokens that the tubes make of a clip of (T, H, W)."""
    return sum(math.prod(tubes[i].grid(clip)) for i in tubes_for(tubes, clip[0]))


def _cut_axis(x, axis, windows, kernel, stride, offset):
    """Replaces one axis by two, (windows, kernel), with static slices alone."""
    shape = x.shape
    if stride >= kernel:
        # Disjoint windows: one reshape. The last window's gap may reach past the end.
        x = jax.lax.slice_in_dim(
            x, offset, min(shape[axis], offset + windows * stride), axis=axis
        )
        missing = windows * stride - x.shape[axis]
        x = jnp.pad(x, [(0, missing if a == axis else 0) for a in range(x.ndim)])
        x = x.reshape(*shape[:axis], windows, stride, *shape[axis + 1 :])
        return jax.lax.slice_in_dim(x, 0, kernel, axis=axis + 1)
    last = offset + (windows - 1) * stride + 1
    return jnp.stack(
        [
            jax.lax.slice_in_dim(x, offset + k, last + k, stride, axis)
            for k in range(kernel)
        ],
        axis=axis + 1,
    )


def cut_windows(x: jax.Array, tube: Tube) -> jax.Array:
    """Cuts a tube's windows out of clips.

    Args:
      x: clips (B, T, H, W, C) of any dtype.
      tube: the tube.

    Returns:
      (B, N, kt * kh * kw * C), windows ordered as in `Tube.centres`.
    """
    b, *clip, c = x.shape
    grid = tube.grid(clip)
    for axis in range(3):  # after each cut the next axis has moved one place on
        x = _cut_axis(
            x, 1 + 2 * axis, grid[axis], tube.kernel[axis], tube.stride[axis],
            tube.offset[axis],
        )  # fmt: skip
    x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)  # (B, nt, nh, nw, kt, kh, kw, C)
    return x.reshape(b, math.prod(grid), math.prod(tube.kernel) * c)


def normalize(x: jax.Array, dtype=jnp.float32) -> jax.Array:
    """uint8 in 0..255 to [-1, 1]; floats, taken to be in [-1, 1], are only cast."""
    if x.dtype == jnp.uint8:
        return x.astype(dtype) / 127.5 - 1
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"Clips are uint8 or floating point, not {x.dtype}.")
    return x.astype(dtype)


class SparseTubes(nn.Module):
    """Clips to tokens (paper 3.2): every tube's windows times its kernel.

    Cutting windows out and multiplying equals a strided VALID convolution and is
    several times as fast on CPUs. Parameters: `tube_<i>/kernel` (t, h, w, 3, D), as for
    a convolution, and `tube_<i>/bias` (D,). They exist for all tubes whatever the
    input.

    Attributes:
      tubes: the tubes, in the order of their tokens.
      width: D, channels of a token.
      dtype: of the computation; parameters are float32.
    """

    tubes: tuple[Tube, ...]
    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        """(B, T, H, W, 3), uint8 or floats in [-1, 1], to tokens (B, N, D)."""
        kernels = [
            TubeKernel(tube.kernel, self.width, name=f"tube_{i}")()
            for i, tube in enumerate(self.tubes)
        ]
        tokens = []
        for i in tubes_for(self.tubes, x.shape[1]):
            kernel, bias = (p.astype(self.dtype) for p in kernels[i])
            windows = normalize(cut_windows(x, self.tubes[i]), self.dtype)
            tokens.append(windows @ kernel.reshape(-1, self.width) + bias)
        return jnp.concatenate(tokens, axis=1)


class TubeKernel(nn.Module):
    """The parameters of one tube: kernel (t, h, w, 3, D) and bias (D,), float32."""

    size: tuple[int, int, int]
    width: int

    @nn.compact
    def __call__(self):
        fan_in = nn.initializers.lecun_normal(in_axis=(0, 1, 2, 3), out_axis=4)
        return (
            self.param("kernel", fan_in, (*self.size, 3, self.width)),
            self.param("bias", nn.initializers.zeros, (self.width,)),
        )
