"""Pooled features and tokens of files."""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np

from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.inference import files
from sparse_tube_vit.inference.loaded import TrainedTubeViT
from sparse_tube_vit.storage import read_file
from sparse_tube_vit.video.limits import Limits
from sparse_tube_vit.video.opening import kind_of


class SeveralKinds(TubeViTError, ValueError):
    """Images and videos have different tokens: one array cannot hold them."""


def pooled(
    tubevit: TrainedTubeViT,
    paths: Sequence[str],
    views: tuple[int, int] = (1, 1),
    batch_size: int | None = None,
    kind: str | None = None,
) -> Iterator[files.Computed]:
    """Yields the pooled features (D,) of files in order, averaged over views.

    The group of each is its kind.

    Args:
        tubevit: A loaded model.
        paths: Files.
        views: (temporal, spatial) views of videos.
        batch_size: Files per batch; None: 4, or the number of files if smaller.
        kind: As for `TrainedTubeViT.read`.
    """

    def read(path):
        return tubevit.read(path, views=views, kind=kind)

    def of_batch(kind, videos):
        return tubevit.pooled(videos)

    return files.compute(paths, read, of_batch, batch_size)


def check_one_kind(paths: Sequence[str], limits: Limits) -> None:
    """Raises SeveralKinds if the files are images and videos; unreadable ones pass."""
    first = {}
    for path in paths:
        with contextlib.suppress(TubeViTError):
            first.setdefault(kind_of(read_file(path), limits), path)
    if len(first) > 1:
        raise _several_kinds(*first.values())


def _several_kinds(one, other):
    return SeveralKinds(
        f"Of {one} and {other} one is an image and one a video, which have different "
        "tokens. Give images and videos one after the other, or leave out --tokens."
    )


def tokens(
    tubevit: TrainedTubeViT, paths: Sequence[str], batch_size: int | None = None
) -> dict[str, np.ndarray]:
    """Computes the tokens (N, n, D) of files of one kind, with tube, time and place.

    Args:
        tubevit: The model.
        paths: The files.
        batch_size: As for `pooled`.

    Raises:
        SeveralKinds: There are images and videos.
    """
    each = tubevit.features(paths, batch_size)
    first = each[0]
    for path, other in zip(paths, each, strict=True):
        if other.tokens.shape != first.tokens.shape:
            raise _several_kinds(paths[0], path)
    return {
        "tokens": np.stack([x.tokens for x in each]),
        "tube": first.tube,
        "time": first.time,
        "place": first.place,
    }
