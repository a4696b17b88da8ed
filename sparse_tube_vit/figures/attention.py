"""Which parts of a clip a model looks at."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.figure import Figure

from sparse_tube_vit.figures.canvas import new_figure
from sparse_tube_vit.figures.tubes import Windows, color_of, frames_read, name
from sparse_tube_vit.models.tubes import Tube, tubes_for

# The less attention, the more of the picture shows through.
_COLORS = colormaps["YlOrRd"](np.linspace(0.1, 1, 256))
_COLORS[:, 3] = np.linspace(0.1, 0.9, 256)
_CMAP = ListedColormap(_COLORS)


def shares_in_clip(
    shares: np.ndarray, tubes: Sequence[Tube], clip: Sequence[int]
) -> dict[int, np.ndarray]:
    """Shares of tokens, laid over the pixels that they were made of.

    Args:
      shares: (N,), one a token.
      clip: (T, H, W).

    Returns:
      For every tube that reads the clip, by its number, (T, H, W): the mean of the
      shares of the tokens that read a pixel, NaN where none does.
    """
    laid, end = {}, 0
    for i in tubes_for(tubes, clip[0]):
        windows = tubes[i].windows(clip)  # (N, windows per token, 3)
        begin, end = end, end + len(windows)
        total, count = np.zeros(clip), np.zeros(clip)
        for share, starts in zip(shares[begin:end], windows, strict=True):
            for start in starts:
                box = tuple(
                    slice(s, s + k) for s, k in zip(start, tubes[i].kernel, strict=True)
                )
                total[box] += share
                count[box] += 1
        laid[i] = np.where(count, total / np.maximum(count, 1), np.nan)
    return laid


def attention(
    clip: np.ndarray,
    tubes: Sequence[Tube],
    shares: np.ndarray,
    title: str = "",
    columns: int = 8,
) -> Figure:
    """Attention to a clip's tokens drawn over its frames, one row a tube.

    Colours say how many times a token gets what it would if all got the same. Beside a
    row stands what its tube gets in all, and would then.

    Args:
      clip: (T, H, W, 3) uint8.
      shares: (N,) of sum 1, of one clip from `rollout.attention_shares`.
      columns: frames shown, as `frames_read` takes them.
    """
    t, h, w, _ = clip.shape
    shares = np.asarray(shares, np.float64)
    laid = shares_in_clip(len(shares) * shares, tubes, clip.shape[:3])
    grey = clip.mean(axis=-1) / 255
    shown = frames_read(clip.shape[:3], tubes, columns)
    figure = new_figure(1.4 * len(shown) + 1.5, max(1.8, 1.4 * len(laid) * h / w) + 0.8)
    axes = figure.subplots(len(laid), len(shown), squeeze=False)
    norm, end = PowerNorm(0.5, 0, max(2.0, len(shares) * shares.max())), 0
    for row, (i, over) in zip(axes, laid.items(), strict=True):
        begin, end = end, end + math.prod(tubes[i].grid(clip.shape[:3]))
        windows = Windows(tubes[i], clip.shape[:3], "0.5", line=0.3)
        for ax, frame in zip(row, shown, strict=True):
            windows.draw(ax, grey[frame], frame, cmap="gray", vmin=0, vmax=1)
            image = ax.imshow(over[frame], cmap=_CMAP, norm=norm)
        got, even = shares[begin:end].sum(), (end - begin) / len(shares)
        text = f"{name(tubes[i])}\n{got:.0%} (even: {even:.0%})"
        row[0].set_ylabel(text, color=color_of(i), fontsize="small")
    for ax, frame in zip(axes[0], shown, strict=True):
        ax.set_title(f"frame {frame}", fontsize="small")
    bar = figure.colorbar(image, ax=axes, shrink=0.9, pad=0.01)
    bar.set_label("attention (1: even)", fontsize="small")
    figure.suptitle(title, fontsize="medium")
    return figure
