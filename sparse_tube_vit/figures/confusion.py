"""Confusion matrices of evaluations."""

from collections.abc import Sequence

import numpy as np
from etils import epath
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from sparse_tube_vit.checkpoints.evaluations import read_evaluations
from sparse_tube_vit.figures.canvas import new_figure, save


def draw_confusions(directory) -> list[epath.Path]:
    """Draws the confusion matrices of evaluations that have none, or an older one.

    Args:
        directory: Results, as for `read_evaluations`; `STEM_confusion.png` is written
            beside them. Those without a confusion matrix, as those of several labels,
            are skipped.

    Returns:
        Paths of what was drawn.

    Raises:
        UnwritableOutput: A picture cannot be written.
    """
    directory, drawn = epath.Path(directory), []
    for stem, result in read_evaluations(directory).items():
        png = directory / f"{stem}_confusion.png"
        written = (directory / f"{stem}.json").stat().mtime
        # Times are in whole seconds: of the same one, the result may be the later.
        drawn_before = png.exists() and png.stat().mtime > written
        if "confusion" in result and not drawn_before:
            save(confusion_of(result), png)
            drawn.append(png)
    return drawn


def confusion_of(result: dict) -> Figure:
    """Draws the confusion matrix of an evaluation, given as its JSON file holds it."""
    classes = list(result["per_class"])
    return confusion(np.array(result["confusion"]), classes, result.get("summary", ""))


def confusion(counts: np.ndarray, class_names: Sequence[str], title: str) -> Figure:
    """Draws a confusion matrix: rows are labels, columns predictions.

    Colors give each count as a fraction of its row.

    Args:
        counts: Numbers of examples, (C, C).
        class_names: C names, drawn for at most 60 classes.
        title: Wrapped above the matrix.
    """
    c = len(counts)
    side = min(12.0, 3.5 + 0.22 * c)
    figure = new_figure(side + 0.8, side)
    ax = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # Among many classes, small fractions would be invisible on a linear scale.
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
