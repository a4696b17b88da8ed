"""Sparse video tubes: the layout of their windows, and the layer that applies them.

A tube (paper 3.2) is a 3-D convolution applied sparsely: a kernel, a stride that is
usually larger than the kernel, and the offset of the first window. Everything is
ordered (t, h, w): frames first, then pixels down, then pixels across.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sparse_tube_vit.distributed.mesh import platform
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.models.dense import affine


class InvalidTube(TubeViTError, ValueError):
    """Sizes of a tube that are out of range, or that space-to-depth does not divide."""


class ClipTooSmall(TubeViTError, ValueError):
    """A clip or image that is shorter or smaller than a tube."""


class NoImageTube(TubeViTError, ValueError):
    """An image for a set of tubes of which none reads a single frame."""


@dataclasses.dataclass(frozen=True)
class Tube:
    """One tube: sizes as (frames, pixels down, pixels across).

    With space-to-depth (paper 3.4, table 12), the stride is divided by the factors, and
    the outputs of that many neighbouring windows are concatenated to one token. The
    number of tokens and their width stay, each token covers a larger part of the clip,
    and the kernel has fewer output channels.

    Attributes:
        kernel: Size of the kernel.
        stride: Distance between two tokens.
        offset: Position of the first token.
        space_to_depth: Windows per token along each axis; it divides the stride.
        channels: Output channels of the kernel. None: the width of a token divided by
            the windows per token. If the windows make more channels than the width,
            only the first ones are kept (scaling up, paper 3.6).
        whole: Whether all windows of a token lie in the clip. Else the first one does,
            so that space-to-depth keeps the number of tokens; others may reach past the
            clip, where they read zeros.

    Raises:
        InvalidTube: A size is not three integers, is out of range, or does not divide.
    """

    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]
    offset: tuple[int, int, int] = (0, 0, 0)
    space_to_depth: tuple[int, int, int] = (1, 1, 1)
    channels: int | None = None
    whole: bool = False

    def __post_init__(self):
        for name, least in _LEAST.items():
            given = getattr(self, name)
            try:
                size = tuple(map(int, given))
                allowed = size == tuple(given)  # 8.0 is as 8, 8.5 and "8" are not
            except (TypeError, ValueError, OverflowError):
                size, allowed = (), False
            allowed &= len(size) == 3 and all(least <= s <= _MOST for s in size)
            if not allowed:
                raise InvalidTube(
                    f"Tube {name} {given}: expected three whole numbers (t, h, w), "
                    f"each from {least} to {_MOST:,}."
                )
            object.__setattr__(self, name, size)
        if self.channels is not None and (
            type(self.channels) is not int or not 1 <= self.channels <= _MOST
        ):
            raise InvalidTube(
                f"Tube channels {self.channels!r}: expected a whole number from 1 to "
                f"{_MOST:,}, or None."
            )
        if type(self.whole) is not bool:
            raise InvalidTube(f"Tube whole {self.whole!r}: expected True or False.")
        if any(s % f for s, f in zip(self.stride, self.space_to_depth, strict=True)):
            raise InvalidTube(
                f"Tube {self}: space_to_depth {self.space_to_depth} does not divide "
                f"the stride {self.stride}. Choose factors that do."
            )

    def __str__(self):
        text = "{} every {} from {}".format(
            *("x".join(map(str, x)) for x in (self.kernel, self.stride, self.offset))
        )
        if self.windows_per_token > 1:
            text += f", {'x'.join(map(str, self.space_to_depth))} windows a token"
            text += " within the clip" if self.whole else ""
        return text

    @property
    def reads_images(self) -> bool:
        """Whether the tube fits into a clip of one frame."""
        return self.extent[0] == 1 and self.offset[0] == 0

    @property
    def windows_per_token(self) -> int:
        """Number of windows that space-to-depth concatenates."""
        return math.prod(self.space_to_depth)

    @property
    def window_stride(self) -> tuple[int, int, int]:
        """Distance between two windows: the stride divided by space-to-depth."""
        return tuple(
            s // f for s, f in zip(self.stride, self.space_to_depth, strict=True)
        )

    @property
    def extent(self) -> tuple[int, int, int]:
        """Size from the start of a token's first window to the end of its last."""
        return tuple(
            kernel + (f - 1) * step
            for kernel, f, step in zip(
                self.kernel, self.space_to_depth, self.window_stride, strict=True
            )
        )

    def kernel_channels(self, width: int) -> int:
        """Returns the output channels of the kernel for tokens of a width.

        Raises:
            InvalidTube: The windows' channels do not add up to the width.
        """
        windows = self.windows_per_token
        if self.channels is None:
            if width % windows:
                raise InvalidTube(
                    f"Tube {self}: a width of {width} cannot be shared by {windows} "
                    "windows. Choose other factors, or state the kernel's channels."
                )
            return width // windows
        if windows * self.channels < width:
            raise InvalidTube(
                f"Tube {self}: {windows} windows of {self.channels} channels make "
                f"less than the width of {width}. Take more windows a token."
            )
        return self.channels

    def restride(self, scale: float) -> "Tube":
        """Returns the tube with scaled strides, for more or fewer tokens.

        Each stride is rounded to the nearest multiple of its space-to-depth factor
        (paper table 7d). The result is `whole`: a model that was not trained on tokens
        that reach past the clip misreads them (docs/measurements.md).
        """
        if scale == 1:
            return self
        stride = tuple(
            f * max(1, round(s * scale / f))
            for s, f in zip(self.stride, self.space_to_depth, strict=True)
        )
        return dataclasses.replace(self, stride=stride, whole=True)

    def to_dict(self) -> dict[str, object]:
        """Returns the attributes that differ from the defaults, for a config."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }

    def grid(self, clip: Sequence[int]) -> tuple[int, int, int]:
        """Returns the number of tokens per axis in a clip of (T, H, W).

        Along an axis there are floor((size - offset - need) / stride) + 1, where a
        token needs its `extent` if it is `whole`, else the size of the kernel.

        Raises:
            ClipTooSmall: Not even one token fits.
        """
        least = self.extent if self.whole else self.kernel
        need = tuple(o + n for o, n in zip(self.offset, least, strict=True))
        if any(size < n for size, n in zip(clip, need, strict=True)):
            raise ClipTooSmall(
                f"Tube {self} needs at least {need[0]} frames of {need[1]}x{need[2]} "
                f"pixels, but the clip has {clip[0]} of {clip[1]}x{clip[2]}. Use "
                "longer or larger clips, or tubes with a smaller kernel or offset, or "
                "stride, where all windows of a token lie within the clip."
            )
        return tuple(
            (size - n) // stride + 1
            for size, n, stride in zip(clip, need, self.stride, strict=True)
        )

    def past(self, clip: Sequence[int]) -> tuple[int, int, int]:
        """Returns how far space-to-depth's last windows reach past a clip (T, H, W)."""
        last = np.array(self.offset) + (np.array(self.grid(clip)) - 1) * self.stride
        return tuple(np.maximum(0, last + self.extent - clip).tolist())

    def centres(self, clip: Sequence[int]) -> np.ndarray:
        """Returns the tokens' centres (N, 3) in (frames, pixels, pixels), t slowest.

        Frame and pixel i span [i, i + 1], so the centre of a 1x16x16 window at the
        origin is (0.5, 8, 8). The centre of a token of several windows is that of its
        extent.
        """
        return self.places(clip, self.stride)

    def windows(self, clip: Sequence[int]) -> np.ndarray:
        """Returns the first corners (N, windows per token, 3) of all windows, int."""
        first = self.centres(clip) - np.array(self.extent) / 2
        steps = np.indices(self.space_to_depth).reshape(3, -1).T * self.window_stride
        return (first[:, None] + steps).astype(int)

    def places(self, clip: Sequence[int], step: Sequence[int]) -> np.ndarray:
        """Returns the tokens' `centres` as if the stride were `step`."""
        axes = [
            offset + step * np.arange(n) + extent / 2
            for n, extent, step, offset in zip(
                self.grid(clip), self.extent, step, self.offset, strict=True
            )
        ]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


# Sizes of a tube: the least value of each, and the largest of all.
_LEAST = {"kernel": 1, "stride": 1, "offset": 0, "space_to_depth": 1}
_MOST = 10**6


def tubes_for(tubes: Sequence[Tube], frames: int) -> list[int]:
    """Returns the indices of the tubes that read an input of a number of frames.

    Only tubes of one frame read an image; all tubes read a video (paper 3.5).

    Raises:
        NoImageTube: The input is an image and no tube reads images.
    """
    if frames > 1:
        return list(range(len(tubes)))
    chosen = [i for i, tube in enumerate(tubes) if tube.reads_images]
    if not chosen:
        raise NoImageTube(
            f"None of the tubes [{', '.join(map(str, tubes))}] reads a single frame: "
            "this model is for videos alone. To train one for images, add a tube with "
            "a temporal kernel of 1 and a temporal offset of 0."
        )
    return chosen


def count_tokens(tubes: Sequence[Tube], clip: Sequence[int]) -> int:
    """Returns the number of tokens that the tubes make of a clip of (T, H, W).

    Raises:
        ClipTooSmall, NoImageTube: The tubes cannot read such a clip.
    """
    return sum(math.prod(tubes[i].grid(clip)) for i in tubes_for(tubes, clip[0]))


def pixels_read(tubes: Sequence[Tube], clip: tuple[int, int, int]) -> np.ndarray:
    """Returns the pixels of a clip (T, H, W) that any tube reads, bool (T, H, W)."""
    read = np.zeros(clip, bool)
    for tube in tubes:
        for start in tube.windows(clip).reshape(-1, 3):
            t, h, w = (slice(s, s + k) for s, k in zip(start, tube.kernel, strict=True))
            read[t, h, w] = True
    return read


def _cut_axis(x, axis, windows, kernel, stride, offset):
    """Replaces one axis by two, (windows, kernel), using static slices only."""
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
    """Extracts a tube's windows from clips.

    Args:
        x: Clips (B, T, H, W, C) of any dtype.
        tube: The tube.

    Returns:
        (B, N, windows per token, kt * kh * kw * C), tokens ordered as in
        `Tube.centres`. Windows of space-to-depth that reach past the clip are padded
        with zeros.
    """
    b, *clip, c = x.shape
    grid = tube.grid(clip)
    if any(past := tube.past(clip)):
        x = jnp.pad(x, [(0, 0), *((0, p) for p in past), (0, 0)])
    for axis in range(3):  # after each cut the next axis has moved one place on
        x = _cut_axis(
            x,
            1 + 2 * axis,
            grid[axis] * tube.space_to_depth[axis],
            tube.kernel[axis],
            tube.window_stride[axis],
            tube.offset[axis],
        )
    axes = zip(grid, tube.space_to_depth, tube.kernel, strict=True)
    x = x.reshape(b, *(size for axis in axes for size in axis), c)
    x = x.transpose(0, 1, 4, 7, 2, 5, 8, 3, 6, 9, 10)  # (B, nt, nh, nw, ft, .., kt, ..)
    return x.reshape(
        b, math.prod(grid), tube.windows_per_token, math.prod(tube.kernel) * c
    )


def _selector(size, windows, kernel, stride, offset, dtype):
    """Returns one-hot positions of pixels in windows, (size, windows, kernel)."""
    place = offset + stride * np.arange(windows)[:, None] + np.arange(kernel)
    return jnp.asarray(np.arange(size)[:, None, None] == place, dtype)


def select_windows(x: jax.Array, tube: Tube) -> jax.Array:
    """Extracts the windows of `cut_windows` by matrix products along each axis.

    The result is exact, as the factors are zeros and ones. TPUs multiply far faster
    than they move pixels within their registers, which slicing requires.

    Args:
        x: Clips (B, T, H, W, C), uint8 or floating point.
        tube: The tube.

    Returns:
        (B, nt, nh, nw, kt, kh, kw, C) of the same dtype, with n the windows along an
        axis, those of space-to-depth included.
    """
    clip, dtype = x.shape[1:4], x.dtype
    x = x.astype(jnp.bfloat16) if dtype == jnp.uint8 else x  # exact for all bytes
    windows = [n * f for n, f in zip(tube.grid(clip), tube.space_to_depth, strict=True)]
    axes = list(
        zip(clip, windows, tube.kernel, tube.window_stride, tube.offset, strict=True)
    )
    frames, rows, columns = (_selector(*axis, x.dtype) for axis in axes)
    einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    if tube.window_stride[0] >= tube.kernel[0]:  # most frames may be in no window
        _, *along_time = axes[0]
        x = _cut_axis(x, 1, *along_time)
        x = einsum("bmnhwc,hij->bmnwcij", x, rows)
        x = einsum("bmnwcij,wkl->bmiknjlc", x, columns)
    else:
        x = einsum("bthwc,hij->btwcij", x, rows)
        x = einsum("btwcij,wkl->btcijkl", x, columns)
        x = einsum("btcijkl,tmn->bmiknjlc", x, frames)
    return x.astype(dtype)


def normalize(x: jax.Array, dtype=jnp.float32) -> jax.Array:
    """Maps uint8 in 0..255 to [-1, 1]; casts floats, expected in [-1, 1]."""
    if x.dtype == jnp.uint8:
        return (x.astype(jnp.float32) / 127.5 - 1).astype(dtype)  # rounded once
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"Clips are uint8 or floating point, not {x.dtype}.")
    return x.astype(dtype)


def kernel_channels(tubes: Sequence[Tube], width: int, kernels: str) -> list[int]:
    """Returns the output channels of every tube's kernel for tokens of a width.

    Raises:
        InvalidTube: Space-to-depth does not divide the width, or kernels that are
            interpolated from one need different numbers of channels.
    """
    channels = [tube.kernel_channels(width) for tube in tubes]
    if kernels == "interpolated" and len(set(channels)) > 1:
        raise InvalidTube(
            "Interpolated kernels come from one kernel, but the tubes "
            f"[{'; '.join(map(str, tubes))}] need {channels} channels. Give all the "
            "same number of windows a token."
        )
    return channels


def resize_kernel(kernel: jax.Array, size: Sequence[int]) -> jax.Array:
    """Resizes a kernel (t, h, w, ...) to another (t, h, w) by trilinear interpolation.

    Half-pixel centres and no antialiasing, as PyTorch's trilinear with
    align_corners=False. The values keep their scale (paper 3.4, interpolated kernels).
    """
    shape = (*size, *kernel.shape[3:])
    return jax.image.resize(kernel, shape, "trilinear", antialias=False)


#: Size of the kernel that all interpolated kernels come from (paper 3.4).
SHARED_KERNEL = (8, 8, 8)


class SparseTubes(nn.Module):
    """Sparse convolutions from clips to tokens (paper 3.2).

    Every tube's windows are multiplied by its kernel. That equals a strided VALID
    convolution, and is several times as fast. Parameters are `tube_<i>/kernel`
    (t, h, w, 3, d), as for a convolution, and `tube_<i>/bias` (d,), with d the tube's
    `kernel_channels`; all tubes have them, whatever the input. Interpolated kernels
    share one such pair, `shared`, of size `SHARED_KERNEL`.

    Attributes:
        tubes: Tubes, in the order of their tokens.
        width: D, channels of a token.
        kernels: "separate", or "interpolated": one kernel resized to every tube's size.
        dtype: Dtype of the computation; parameters are float32.

    Raises:
        InvalidTube: As `kernel_channels`.
    """

    tubes: tuple[Tube, ...]
    width: int
    kernels: str = "separate"
    dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(self, x):
        """Maps (B, T, H, W, 3), uint8 or floats in [-1, 1], to tokens (B, N, D)."""
        parameters = self._parameters()
        clip, tokens = x.shape[1:4], []
        for i in tubes_for(self.tubes, clip[0]):
            tube, (kernel, bias) = self.tubes[i], parameters[i]
            # Slicing uint8 is twice as fast as slicing floats, but padding is mid-grey,
            # which uint8 cannot represent.
            bytes_suffice = x.dtype == jnp.uint8 and not any(tube.past(clip))
            y = x if bytes_suffice else normalize(x, self.dtype)
            if platform() == "tpu":
                windows = normalize(select_windows(y, tube), self.dtype)
                z = affine(windows, kernel, bias, axes=4)  # (B, nt, nh, nw, d)
                z = _by_token(z, tube, clip)
            else:
                windows = normalize(cut_windows(y, tube), self.dtype)
                z = affine(windows, kernel.reshape(windows.shape[-1], -1), bias)
            z = z.astype(self.dtype)  # (B, N, windows per token, d)
            tokens.append(z.reshape(*z.shape[:2], -1)[..., : self.width])
        return jnp.concatenate(tokens, axis=1)

    def _parameters(self):
        """Returns (kernel, bias) of every tube."""
        channels = kernel_channels(self.tubes, self.width, self.kernels)
        if self.kernels == "separate":
            return [
                TubeKernel(tube.kernel, channels[i], name=f"tube_{i}")()
                for i, tube in enumerate(self.tubes)
            ]
        kernel, bias = TubeKernel(SHARED_KERNEL, channels[0], name="shared")()
        return [(resize_kernel(kernel, tube.kernel), bias) for tube in self.tubes]


def _by_token(z, tube, clip):
    """Groups windows (B, nt, nh, nw, d) to (B, N, windows per token, d)."""
    axes = zip(tube.grid(clip), tube.space_to_depth, strict=True)
    z = z.reshape(z.shape[0], *(size for axis in axes for size in axis), z.shape[-1])
    z = z.transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return z.reshape(z.shape[0], -1, tube.windows_per_token, z.shape[-1])


class TubeKernel(nn.Module):
    """Parameters of one kernel (t, h, w, 3, d) and its bias (d,), float32."""

    size: tuple[int, int, int]
    channels: int

    @nn.compact
    def __call__(self):
        fan_in = nn.initializers.lecun_normal(in_axis=(0, 1, 2, 3), out_axis=4)
        return (
            self.param("kernel", fan_in, (*self.size, 3, self.channels)),
            self.param("bias", nn.initializers.zeros, (self.channels,)),
        )
