"""Learned filters."""

import math

import numpy as np
from matplotlib.figure import Figure

from sparse_tube_vit.figures.canvas import new_figure


def kernels(kernel: np.ndarray, filters: int | None = None) -> Figure:
    """Draws a tube's learned filters as RGB tiles, time to the right (paper figure 5).

    Filters are sorted by the norm of their weights, the largest first. Each is scaled
    to its own range: grey is a weight of 0.

    Args:
        kernel: Weights (t, h, w, 3, D).
        filters: Most filters shown; by default 64 of one frame, or 16 of more.
    """
    t, h, w, _, d = kernel.shape
    norms = np.sqrt((kernel**2).sum(axis=(0, 1, 2, 3)))
    chosen = np.argsort(-norms)[: min(filters or (64 if t == 1 else 16), d)]
    blocks = max(1, min(len(chosen), 16 // t, 8))  # filters side by side
    rows = math.ceil(len(chosen) / blocks)
    pad = max(1, w // 8)
    block = t * (w + pad) + (pad if t > 1 else 0)
    canvas = np.ones((rows * (h + pad), blocks * block, 3))
    for i, f in enumerate(chosen):
        weights = kernel[..., f]
        scale = np.abs(weights).max() or 1.0
        top = (i // blocks) * (h + pad)
        for k in range(t):
            left = (i % blocks) * block + k * (w + pad)
            tile = 0.5 + weights[k] / (2 * scale)
            canvas[top : top + h, left : left + w] = tile
    height, width, _ = canvas.shape
    figure = new_figure(6, 6 * height / width + 0.35)
    ax = figure.subplots()
    ax.imshow(canvas, interpolation="nearest")
    ax.set_axis_off()
    time = f", {t} frames to the right" if t > 1 else ""
    ax.set_title(f"{t}x{h}x{w}: {len(chosen)} of {d} filters{time}", fontsize="small")
    return figure
