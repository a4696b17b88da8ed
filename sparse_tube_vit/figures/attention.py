"""Attention of a model over the frames of a clip."""

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.figure import Figure

from sparse_tube_vit.figures.canvas import new_figure
from sparse_tube_vit.figures.tubes import (
    PALE,
    Windows,
    color_of,
    frames_read,
    name,
)
from sparse_tube_vit.models.tubes import Tube, tubes_for

# Not from white on: what a tube does not read is light grey.
_CMAP = ListedColormap(colormaps["YlOrRd"](np.linspace(0.1, 1, 256)))


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
) -> Figure:
    """Draws frames of a clip, and below them the attention to its tokens, a row a tube.

    Colors are those of the bar: a token's attention relative to uniform attention. What
    a tube does not read is grey. Beside a row stand its tube's total, and its total
    under uniform attention.

    Args:
        clip: uint8 (T, H, W, 3).
        tubes: The model's tubes.
        weights: Attention to the tokens of one clip, (N,) of sum 1.
        title: Of the figure, wrapped to its width.
    """
    t, h, w, _ = clip.shape
    weights = np.asarray(weights, np.float64)
    maps = spread_over_pixels(len(weights) * weights, tubes, clip.shape[:3])
    grey = clip.mean(axis=-1) / 255
    shown = frames_read(clip.shape[:3], tubes, columns=8)
    rows = 1 + len(maps)
    width = 1.4 * len(shown) + 1.5
    lines = textwrap.wrap(title, int(12 * width))
    figure = new_figure(width, 1.4 * rows * h / w + 0.8 + 0.2 * len(lines))
    axes = figure.subplots(rows, len(shown), squeeze=False)
    for ax, frame in zip(axes[0], shown, strict=True):
        ax.imshow(clip[frame])
        ax.set(xticks=[], yticks=[])
        ax.set_title(f"frame {frame}", fontsize="small")
    axes[0, 0].set_ylabel("clip" if t > 1 else "image", fontsize="small")
    norm, end = PowerNorm(0.5, 0, max(2.0, len(weights) * weights.max())), 0
    for row, (i, over) in zip(axes[1:], maps.items(), strict=True):
        begin, end = end, end + math.prod(tubes[i].grid(clip.shape[:3]))
        windows = Windows(tubes[i], clip.shape[:3], "0.5", line=0.3)
        for ax, frame in zip(row, shown, strict=True):
            below, _ = windows.draw(ax, grey[frame], frame, cmap="gray", vmin=0, vmax=1)
            below.set_alpha(PALE)
            image = ax.imshow(over[frame], cmap=_CMAP, norm=norm)
        total, even = weights[begin:end].sum(), (end - begin) / len(weights)
        text = f"{name(tubes[i])}\n{total:.0%} (even: {even:.0%})"
        row[0].set_ylabel(text, color=color_of(i), fontsize="small")
    bar = figure.colorbar(image, ax=axes, shrink=0.9, pad=0.01)
    bar.set_label("attention (1: even)", fontsize="small")
    figure.suptitle("\n".join(lines), fontsize="medium")
    if any(np.isnan(over).any() for over in maps.values()):
        figure.supxlabel("grey: what the tube does not read", fontsize="small")
    return figure
