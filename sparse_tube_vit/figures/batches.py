"""All frames of the batches that the model gets."""

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from sparse_tube_vit.figures.canvas import DPI, new_figure
from sparse_tube_vit.training.inspection import StepExample

#: Width and height of a page in pixels.
_PAGE = (1900, 1900)

#: Most lines above an example.
_LINES = 6


def batch_grids(
    examples: Sequence[StepExample],
    columns: int = 16,
) -> list[Figure]:
    """Draws all frames of examples with their targets, on as many pages as needed.

    Frames larger than 128 pixels are halved until they are not, those smaller than 64
    enlarged by a whole factor; all others are shown pixel by pixel.

    Args:
        examples: With videos of one shape.
        columns: Frames side by side.
    """
    t, side, _, _ = examples[0].video.shape
    while side > 128:
        side = math.ceil(side / 2)
    side *= max(1, 64 // side)
    columns = min(columns, t)
    letters = max(20, columns * side // 7)
    texts = [_text(example, letters) for example in examples]
    above = 15 * max(map(len, texts)) + 6
    width = max(columns * (side + 2), 7 * letters) + 8
    height = above + math.ceil(t / columns) * (side + 2) + 12
    across, down = (max(1, p // n) for p, n in zip(_PAGE, (width, height), strict=True))
    across = min(across, len(examples))
    figures = []
    for first in range(0, len(examples), across * down):
        some = range(len(examples))[first : first + across * down]
        h, w = height * math.ceil(len(some) / across), width * across
        canvas = np.full((h, w, 3), 255, np.uint8)
        figure = new_figure(w / DPI, h / DPI, layout=None)
        for i, e in enumerate(some):
            top, left = height * (i // across), width * (i % across) + 4
            for k, frame in enumerate(examples[e].video):
                y, x = (n * (side + 2) for n in divmod(k, columns))
                canvas[top + above + y :, left + x :][:side, :side] = _resized(
                    frame, side
                )
            figure.text(
                left / w,
                1 - (top + 4) / h,
                "\n".join(texts[e]),
                va="top",
                fontsize=7,
                color="#d62728" if examples[e].problem else "black",
            )
        figure.figimage(canvas, origin="upper")
        figures.append(figure)
    return figures


def _text(example, letters):
    lines = [example.target, *example.ids]
    lines += [f"weight 0: {example.problem}"] if example.problem else []
    return [part for s in lines for part in textwrap.wrap(s, letters)][:_LINES]


def _resized(frame, side):
    return np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.BOX))
