"""Classes of a long video over its time."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from sparse_tube_vit.figures.canvas import add_legend, new_figure


def timeline(
    spans: Sequence[tuple[float, float]],
    scores: np.ndarray,
    class_names: Sequence[str],
    title: str,
    top: int = 5,
) -> Figure:
    """Plots the probabilities of a video's windows against time.

    A point is at the middle of its window, a horizontal bar shows the window's length.
    The classes are those with the highest probabilities in any window.

    Args:
        spans: Begin and end of the N windows in seconds.
        scores: Probabilities (N, C).
        class_names: C names.
        title: Name of the video.
        top: Number of classes.
    """
    figure = new_figure(9, 3.5)
    ax = figure.subplots()
    spans = np.array(spans, float).reshape(-1, 2)
    scores = np.array(scores, float).reshape(len(spans), len(class_names))
    if len(spans):
        best = np.argsort(-scores.max(axis=0), kind="stable")[:top]
        # In the order in which they come.
        best = sorted(best.tolist(), key=lambda c: scores[:, c].argmax())
        middles, halves = spans.mean(axis=1), np.diff(spans, axis=1)[:, 0] / 2
        for number, c in enumerate(best):
            color, values = f"C{number % 10}", 100 * scores[:, c]
            ax.plot(middles, values, "o-", ms=3, color=color, label=class_names[c])
            ax.hlines(
                values, middles - halves, middles + halves, colors=color, alpha=0.25
            )
        ax.set_xlim(spans.min(), spans.max())
    ax.set(title=title, ylabel="probability, %", ylim=(-2, 102))
    _label_time(ax)
    ax.grid(alpha=0.3)
    add_legend(ax)
    if legend := ax.get_legend():
        legend.set_loc("upper left")
        legend.set_bbox_to_anchor((1, 1))
    return figure


def _label_time(ax: Axes):
    """Labels the x axis in seconds, or beyond two minutes as m:ss or h:mm:ss."""
    longest = ax.get_xlim()[1]
    ax.set_xlabel("seconds" if longest <= 120 else "time")
    if longest <= 120:
        return
    ticks = (30, 60, 120, 300, 600, 900, 1800, 3600)
    step = next((t for t in ticks if longest / t <= 10), 3600 * -(-longest // 36000))
    ax.xaxis.set_major_locator(MultipleLocator(step))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _clock(x)))


def _clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
