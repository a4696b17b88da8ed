"""Attention of a model over the frames of a clip."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.figure import Figure

from sparse_tube_vit.figures.canvas import new_figure
from sparse_tube_vit.figures.tubes import Windows, color_of, frames_read, name
from sparse_tube_vit.models.tubes import Tube, tubes_for

# Low attention is transparent.
_COLORS = colormaps["YlOrRd"](np.linspace(0.1, 1, 256))
_COLORS[:, 3] = np.linspace(0.1, 0.9, 256)
_CMAP = ListedColormap(_COLORS)


def spread_over_pixels(
    weights: np.ndarray, tubes: Sequence[Tube], clip: Sequence[int]
) -> dict[int, np.ndarray]:
    """Spreads the weights of tokens over the pixels that their tubes read.

    Args:
        weights: One per token, (N,).
        tubes: The model's tubes.
        clip: Its shape (T, H, W).

    Returns:
        For every tube that reads the clip, by its index, (T, H, W): the mean weight of
        the tokens that read a pixel, NaN where none does.
    """
    maps, end = {}, 0
    for i in tubes_for(tubes, clip[0]):
        windows = tubes[i].windows(clip)  # (N, windows per token, 3)
        begin, end = end, end + len(windows)
        total, count = np.zeros(clip), np.zeros(clip)
        for weight, starts in zip(weights[begin:end], windows, strict=True):
            for start in starts:
                box = tuple(
                    slice(s, s + k) for s, k in zip(start, tubes[i].kernel, strict=True)
                )
                total[box] += weight
                count[box] += 1
        maps[i] = np.where(count, total / np.maximum(count, 1), np.nan)
    return maps


def attention(
    clip: np.ndarray,
    tubes: Sequence[Tube],
    weights: np.ndarray,
    title: str = "",
    columns: int = 8,
) -> Figure:
    """Draws the attention to a clip's tokens over its frames, a row a tube.

    Colors give a token's attention relative to uniform attention. Beside a row stand
    its tube's total, and its total under uniform attention.

    Args:
        clip: uint8 (T, H, W, 3).
        tubes: The model's tubes.
        weights: Attention to the tokens of one clip, (N,) of sum 1.
        title: The figure's title.
        columns: Most frames shown, chosen by `frames_read`.
    """
    t, h, w, _ = clip.shape
    weights = np.asarray(weights, np.float64)
    maps = spread_over_pixels(len(weights) * weights, tubes, clip.shape[:3])
    grey = clip.mean(axis=-1) / 255
    shown = frames_read(clip.shape[:3], tubes, columns)
    figure = new_figure(1.4 * len(shown) + 1.5, max(1.8, 1.4 * len(maps) * h / w) + 0.8)
    axes = figure.subplots(len(maps), len(shown), squeeze=False)
    norm, end = PowerNorm(0.5, 0, max(2.0, len(weights) * weights.max())), 0
    for row, (i, over) in zip(axes, maps.items(), strict=True):
        begin, end = end, end + math.prod(tubes[i].grid(clip.shape[:3]))
        windows = Windows(tubes[i], clip.shape[:3], "0.5", line=0.3)
        for ax, frame in zip(row, shown, strict=True):
            windows.draw(ax, grey[frame], frame, cmap="gray", vmin=0, vmax=1)
            image = ax.imshow(over[frame], cmap=_CMAP, norm=norm)
        total, even = weights[begin:end].sum(), (end - begin) / len(weights)
        text = f"{name(tubes[i])}\n{total:.0%} (even: {even:.0%})"
        row[0].set_ylabel(text, color=color_of(i), fontsize="small")
    for ax, frame in zip(axes[0], shown, strict=True):
        ax.set_title(f"frame {frame}", fontsize="small")
    bar = figure.colorbar(image, ax=axes, shrink=0.9, pad=0.01)
    bar.set_label("attention (1: even)", fontsize="small")
    figure.suptitle(title, fontsize="medium")
    return figure
