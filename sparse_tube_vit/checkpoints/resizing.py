"""Patch kernels of another size, inflated to frames, and positions of another grid."""

import functools

import jax
import numpy as np


@functools.cache
def _bilinear(old: int, new: int) -> np.ndarray:
    """Returns the matrix (new, old) of jax.image.resize(..., "linear") on an axis."""
    return np.asarray(jax.image.resize(np.eye(old), (new, old), "linear"), np.float64)


def resize_patches(kernel: np.ndarray, size) -> np.ndarray:
    """Resizes a 2-D patch kernel by the pseudo-inverse, PI-resize of FlexiViT.

    Let B be the matrix that resizes a patch x to the new size bilinearly, smoothed
    where it shrinks. The new kernel is w' = pinv(B^T) w, of all kernels the one that
    minimizes (<Bx, w'> - <x, w>)^2 on average over white x. Where patches grow,
    B^T w' = w: resized patches have exactly the products that the old patches had
    (Beyer et al., CVPR 2023, section 3.4).

    Args:
        kernel: (h, w, 3, D).
        size: The new (h, w).

    Returns:
        (h, w, 3, D).
    """
    # B is a Kronecker product of one matrix an axis, and so is its pseudo-inverse.
    rows, columns = (
        np.linalg.pinv(_bilinear(old, new).T)
        for old, new in zip(kernel.shape[:2], size, strict=True)
    )
    return np.einsum("yh,xw,hwcd->yxcd", rows, columns, kernel)


def inflate_kernel(kernel: np.ndarray, frames: int, how: str) -> np.ndarray:
    """Makes a tube's kernel (t, h, w, 3, D) of a 2-D kernel (h, w, 3, D).

    "repeat": on every frame, divided by their number, so that a still clip gives what
    its frame gives (Carreira and Zisserman, CVPR 2017). "central_frame": on frame
    t // 2 alone, zeros on the others (Arnab et al., ICCV 2021).
    """
    if how == "repeat":
        return np.repeat(kernel[None], frames, axis=0) / frames
    tube = np.zeros((frames, *kernel.shape), kernel.dtype)
    tube[frames // 2] = kernel
    return tube


def positions_at(
    grid: np.ndarray, tube, clip, interpolation: str = "linear"
) -> np.ndarray:
    """Interpolates positions of patches at a tube's centres.

    Both grids span the whole clip. Beyond the centres of the outer patches, linearly
    interpolated positions are constant.

    Args:
        grid: (g, g, D), the same at all times, or (gt, g, g, D).
        tube: The tube.
        clip: (T, H, W).
        interpolation: "linear", "cubic" or "smoothed_cubic", which averages where the
            grid shrinks, in space; linear in time.

    Returns:
        (nt, nh, nw, D).
    """
    nt, nh, nw = tube.grid(clip)
    centres = tube.centres(clip).reshape(nt, nh, nw, 3)
    centres = centres[:, 0, 0, 0], centres[0, :, 0, 1], centres[0, 0, :, 2]
    grid = grid if grid.ndim == 4 else grid[None]
    spatial = _INTERPOLATIONS[interpolation]
    frames, rows, columns = (
        weights(x / size * g - 0.5, g, max(1, stride / size * g))
        for weights, x, size, stride, g in zip(
            (_linear, spatial, spatial),
            centres,
            clip,
            tube.stride,
            grid.shape[:3],
            strict=True,
        )
    )  # (nt, gt), (nh, g), (nw, g)
    resized = np.einsum("yh,xw,ghwd->gyxd", rows, columns, grid)
    return np.einsum("tg,gyxd->tyxd", frames, resized)


def _linear(places, g, step):
    """Returns the weights (n, g) of g values at n places, `step` values apart."""
    return np.stack([np.interp(places, np.arange(g), e) for e in np.eye(g)], -1)


def _cubic(places, g, step):
    """Returns weights as torch's bicubic: values beyond the ends are the last."""
    first = np.floor(places).astype(int)
    weights = np.zeros((len(places), g))
    for i in range(-1, 3):
        column = np.clip(first + i, 0, g - 1)
        row = np.arange(len(places))
        np.add.at(weights, (row, column), _keys(places - first - i, -0.75))
    return weights


def _smoothed_cubic(places, g, step):
    """Returns weights as torch's bicubic with antialias: there are no values beyond."""
    weights = _keys((places[:, None] - np.arange(g)) / step, -0.5)
    return weights / weights.sum(1, keepdims=True)


def _keys(x, a):
    """Returns the kernel of cubic convolution (Keys, 1981)."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.select([x <= 1, x < 2], [near, far])


_INTERPOLATIONS = {
    "linear": _linear,
    "cubic": _cubic,
    "smoothed_cubic": _smoothed_cubic,
}
