"""Which classes are taken for which."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from sparse_tube_vit.figures.canvas import new_figure


def confusion(counts: np.ndarray, class_names: Sequence[str], title: str) -> Figure:
    """A confusion matrix: rows are labels, columns predictions, shares of the row.

    Args:
      counts: (C, C).
      class_names: C names; drawn up to 60 classes.
      title: wrapped above it.
    """
    c = len(counts)
    side = min(12.0, 3.5 + 0.22 * c)
    figure = new_figure(side + 0.8, side)
    ax = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # Of many classes, what is rare would not be seen.
    norm = PowerNorm(0.5 if c > 60 else 1, 0, 1)
    image = ax.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
    figure.colorbar(image, ax=ax, label="share of the class", shrink=0.8)
    if c <= 60:
        ax.set_xticks(range(c), class_names, rotation=90, fontsize="x-small")
        ax.set_yticks(range(c), class_names, fontsize="x-small")
    if c <= 12:
        for (i, j), n in np.ndenumerate(counts):
            if n:
                dark = "white" if shares[i, j] > 0.5 else "black"
                ax.text(j, i, n, ha="center", va="center", fontsize=7, color=dark)
    ax.set(xlabel="prediction", ylabel="label")
    ax.set_title(title, fontsize="x-small", wrap=True)
    return figure
