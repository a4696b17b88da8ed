"""What all figures are drawn on, and how they become files."""

import pathlib
import tempfile

from matplotlib.animation import Animation, PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sparse_tube_vit.storage import whole_file, write_whole

DPI = 120

#: Of tubes, in their order.
COLORS = ("#d62728", "#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2")


def new_figure(
    width: float, height: float, layout: str | None = "constrained"
) -> Figure:
    """An empty figure of so many inches, which no window and no pyplot knows of."""
    figure = Figure(figsize=(width, height), layout=layout, dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def save(picture: Figure | Animation, path) -> None:
    """Writes a figure as PNG, an animation as GIF, to local or remote files."""
    if isinstance(picture, Figure):
        with whole_file(path) as write:
            write(lambda file: picture.savefig(file, format="png"))
        return
    with tempfile.TemporaryDirectory() as directory:
        local = pathlib.Path(directory) / "animation.gif"
        rate = 1000 / picture.event_source.interval
        picture.save(local, writer=PillowWriter(fps=rate))
        write_whole(path, local.read_bytes())
