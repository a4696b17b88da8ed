"""Figures without a window, and their files."""

import pathlib
import re
import tempfile
import warnings

import matplotlib
from matplotlib.animation import Animation
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from sparse_tube_vit.log import log
from sparse_tube_vit.storage import whole_file, write_whole

DPI = 120

_REPORTED: set[str] = set()  # characters that the font lacks, as the log says

#: Colors of the tubes, in their order.
COLORS = ("#d62728", "#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2")


class _Unparsed(Figure):
    """A figure whose texts are no markup: names of classes and files may have any."""

    def draw(self, renderer):
        # The default is for texts that drawing makes, as of ticks.
        with (
            matplotlib.rc_context({"text.parse_math": False}),
            warnings.catch_warnings(record=True) as caught,
        ):
            for text in self.findobj(Text):
                text.set_parse_math(False)
            super().draw(renderer)
        _report(caught)


def _report(caught):
    """Shows warnings; those of characters without a glyph as one in the log."""
    missing = set()
    for warning in caught:
        if found := re.match(r"Glyph (\d+) .* missing from", str(warning.message)):
            missing.add(chr(int(found[1])))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    if missing - _REPORTED:
        log.warning(
            "The font of figures has no %s: install one that has, and name it in a "
            "matplotlibrc, as font.family: DejaVu Sans, Noto Sans CJK JP.",
            "".join(sorted(missing - _REPORTED)),
        )
        _REPORTED.update(missing)


def new_figure(
    width: float, height: float, layout: str | None = "constrained"
) -> Figure:
    """Returns an empty figure, its size in inches, that is unknown to pyplot."""
    figure = _Unparsed(figsize=(width, height), layout=layout, dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def add_legend(ax: Axes) -> None:
    """Adds the labels of all lines: matplotlib's own leaves out what begins with _."""
    labels = [str(line.get_label()) for line in ax.lines]
    if labels:
        ax.legend(ax.lines, labels, fontsize="small")


def save(picture: Figure | Animation, path) -> None:
    """Writes a figure as PNG, or an animation as GIF, to a local or remote file."""
    if isinstance(picture, Figure):
        with whole_file(path) as write:
            write(lambda file: picture.savefig(file, format="png"))
        return
    with tempfile.TemporaryDirectory() as directory:
        local = pathlib.Path(directory) / "animation.gif"
        picture.save(local, writer="pillow")
        write_whole(path, local.read_bytes())
