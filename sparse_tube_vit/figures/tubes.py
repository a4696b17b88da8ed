"""Windows of tubes over the frames of a clip."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.animation import FuncAnimation
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from sparse_tube_vit.figures.canvas import COLORS, new_figure
from sparse_tube_vit.models.tubes import Tube, tubes_for

#: Opacity of what a tube does not read.
PALE = 0.35


def tube_layout(clip: np.ndarray, tubes: Sequence[Tube], columns: int = 8) -> Figure:
    """Draws the windows of tubes on frames of a clip, a row a tube.

    Frames that a tube does not read are pale.

    Args:
        clip: uint8 (T, H, W, 3); for an image, T = 1, and only tubes that read images
            have rows.
        tubes: The model's tubes.
        columns: Most frames shown, chosen by `frames_read`.
    """
    t, h, w, _ = clip.shape
    shown = frames_read(clip.shape[:3], tubes, columns)
    read = tubes_for(tubes, t)
    figure = new_figure(1.4 * len(shown) + 0.5, 1.4 * len(read) * h / w + 0.7)
    axes = figure.subplots(len(read), len(shown), squeeze=False)
    for row, i in zip(axes, read, strict=True):
        windows = Windows(tubes[i], clip.shape[:3], color_of(i))
        for ax, frame in zip(row, shown, strict=True):
            windows.draw(ax, clip[frame], frame)
        row[0].set_ylabel(name(tubes[i]), color=color_of(i), fontsize="small")
    for ax, frame in zip(axes[0], shown, strict=True):
        ax.set_title(f"frame {frame}", fontsize="small")
    if any(ax.images[0].get_alpha() == PALE for ax in axes.flat):
        figure.supxlabel("pale: frames that the tube does not read", fontsize="small")
    return figure


def tube_animation(clip: np.ndarray, tubes: Sequence[Tube], fps: float):
    """Animates a clip, a panel a tube, with the windows that it reads.

    Args:
        clip: uint8 (T, H, W, 3).
        tubes: The model's tubes.
        fps: Frames per second.

    Returns:
        A matplotlib FuncAnimation. `figures.save` writes it as GIF; a notebook shows it
        by `IPython.display.HTML(animation.to_jshtml())`.
    """
    t, h, w, _ = clip.shape
    read = tubes_for(tubes, t)
    across = math.ceil(math.sqrt(len(read)))
    down = math.ceil(len(read) / across)
    figure = new_figure(2.6 * across, 2.85 * down * h / w + 0.3)
    figure.set_dpi(80)  # at more the file takes many megabytes
    axes = figure.subplots(down, across, squeeze=False).ravel()
    panels = []
    for ax, i in itertools.zip_longest(axes, read):
        if i is None:
            ax.set_axis_off()
            continue
        tokens = math.prod(tubes[i].grid(clip.shape[:3]))
        ax.set_title(f"{name(tubes[i])}, {tokens} tokens", fontsize="small")
        ax.spines[:].set(color=color_of(i), linewidth=2)
        windows = Windows(tubes[i], clip.shape[:3], color_of(i))
        panels.append((windows, *windows.draw(ax, clip[0], 0)))
    clock = figure.suptitle("frame 0", fontsize="small", y=0.005, va="bottom")
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laying out every frame would be slow

    def draw(frame):
        clock.set_text(f"frame {frame}, {frame / fps:.2f} s")
        for windows, picture, boxes in panels:
            windows.update(picture, boxes, clip[frame], frame)

    return FuncAnimation(figure, draw, frames=t, interval=1000 / fps, init_func=list)


class Windows:
    """Outlines of the windows of a tube that read a frame."""

    def __init__(self, tube: Tube, clip: Sequence[int], color: str, line=0.9):
        self.starts = tube.windows(clip).reshape(-1, 3)
        self.kernel, self.color, self.line = tube.kernel, color, line

    def draw(self, ax, picture, frame, **options):
        image = ax.imshow(picture, **options)
        boxes = PolyCollection([], ec=self.color, fc="none", lw=self.line)
        ax.add_collection(boxes, autolim=False)
        ax.set(xticks=[], yticks=[])
        self.update(image, boxes, picture, frame)
        return image, boxes

    def update(self, image, boxes, picture, frame):
        t, h, w = self.kernel
        first = self.starts[:, 0]
        corners = self.starts[(first <= frame) & (frame < first + t)][:, [2, 1]] - 0.5
        boxes.set_verts(corners[:, None] + [(0, 0), (w, 0), (w, h), (0, h)])
        image.set_data(picture)
        image.set_alpha(1.0 if len(corners) else PALE)


def name(tube: Tube) -> str:
    """Returns the name of a tube in figures, its kernel: 8x8x8."""
    return "x".join(map(str, tube.kernel))


def color_of(i: int) -> str:
    """Returns the color of tube i."""
    return COLORS[i % len(COLORS)]


def frames_read(clip: Sequence[int], tubes: Sequence[Tube], columns: int) -> np.ndarray:
    """Chooses the frames of a clip of shape (T, H, W) to show, at most `columns`.

    From each of as many equal parts of the clip comes the first frame that most tubes
    read: evenly spaced frames could miss all of a tube with a long temporal stride.

    Returns:
        Indices of frames, ascending.
    """
    t = clip[0]
    read = np.zeros(t, int)
    for i in tubes_for(tubes, t):
        starts = np.unique(tubes[i].windows(clip)[..., 0])
        frames = starts[:, None] + np.arange(tubes[i].kernel[0])
        read[np.unique(frames[frames < t])] += 1
    ends = np.linspace(0, t, min(columns, t) + 1).round().astype(int)
    return np.array([a + read[a:b].argmax() for a, b in itertools.pairwise(ends)])
