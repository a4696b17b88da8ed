"""Similarity of the position embeddings of tokens."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from sparse_tube_vit.figures.canvas import new_figure
from sparse_tube_vit.figures.tubes import color_of, name
from sparse_tube_vit.models.tubes import Tube, tubes_for

#: Most moments shown of a tube.
_MOMENTS = 6


def similarity(embeddings: np.ndarray) -> np.ndarray:
    """Returns cosines (N, N) of embeddings (N, D); 0 for an embedding of zeros."""
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = embeddings / np.where(norms > 0, norms, 1)
    return unit @ unit.T


def position_similarity(
    embeddings: np.ndarray,
    tubes: Sequence[Tube],
    clip: Sequence[int],
) -> Figure:
    """Draws the cosine similarity of position embeddings.

    On the left all pairs of tokens, tube by tube. On the right one token, in the middle
    of the first tube, with the tokens of every tube at their places: a row a tube, a
    column a moment, evenly spaced where there are more than 6.

    Args:
        embeddings: As the model adds them to the tokens, (N, D).
        tubes: The model's tubes.
        clip: Its shape (T, H, W).
    """
    read = tubes_for(tubes, clip[0])
    grids = [tubes[i].grid(clip) for i in read]
    ends = np.cumsum([math.prod(grid) for grid in grids])
    cosines = similarity(np.asarray(embeddings, np.float64))
    columns = min(_MOMENTS, max(grid[0] for grid in grids))
    figure = new_figure(5.2 + 1.15 * columns, max(4.4, 1.35 * len(read)))
    left, right = figure.subfigures(1, 2, width_ratios=(5, 1.15 * columns))

    ax = left.subplots()
    options = {"cmap": "viridis", "vmin": cosines.min(), "vmax": 1}
    image = ax.imshow(cosines, interpolation="nearest", **options)
    for end in ends[:-1]:
        ax.axhline(end - 0.5, color="k", lw=0.6)
        ax.axvline(end - 0.5, color="k", lw=0.6)
    middles = ends - np.diff(ends, prepend=0) / 2
    names = [name(tubes[i]) for i in read]
    ax.set_xticks(middles, names, rotation=30, fontsize="small")
    ax.set_yticks(middles, names, fontsize="small")
    left.colorbar(image, ax=ax, label="cosine similarity", shrink=0.8)

    nt, nh, nw = grids[0]
    middle = (nt // 2 * nh + nh // 2) * nw + nw // 2
    _, y, x = tubes[read[0]].centres(clip)[middle]
    figure.suptitle(
        f"Position embeddings of {len(embeddings)} tokens: all pairs; and the token at "
        "+ with every token at its place",
        fontsize="small",
    )
    axes = right.subplots(len(read), columns, squeeze=False)
    for row, i, grid, end in zip(axes, read, grids, ends, strict=True):
        places = tubes[i].centres(clip).reshape(*grid, 3)
        maps = cosines[middle][end - math.prod(grid) : end].reshape(grid)
        step = np.array(tubes[i].stride[1:])
        first = places[0, 0, 0, 1:] - step / 2
        last = places[0, -1, -1, 1:] + step / 2
        moments = np.linspace(0, grid[0] - 1, min(columns, grid[0])).round().astype(int)
        for ax, k in itertools.zip_longest(row, moments):
            if k is None:
                ax.set_axis_off()
                continue
            extent = (first[1], last[1], last[0], first[0])
            ax.imshow(maps[k], extent=extent, interpolation="nearest", **options)
            ax.set(xlim=(0, clip[2]), ylim=(clip[1], 0), xticks=[], yticks=[], fc="0.9")
            ax.set_title(f"frame {places[k, 0, 0, 0]:g}", fontsize="x-small", pad=2)
            if i == read[0] and k == nt // 2:
                ax.plot(x, y, "r+")
        row[0].set_ylabel(name(tubes[i]), color=color_of(i), fontsize="small")
    return figure
