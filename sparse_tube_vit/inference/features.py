"""Pooled features and tokens of files."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.inference import files
from sparse_tube_vit.inference.loaded import TrainedTubeViT
from sparse_tube_vit.video.opening import SUFFIXES


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


def with_tokens(
    tubevit: TrainedTubeViT,
    paths: Sequence[str],
    views: tuple[int, int] = (1, 1),
    batch_size: int | None = None,
) -> Iterator[files.Computed]:
    """Yields `Features` of files in order: `pooled` is the mean over views.

    Tokens are those of the central view.

    The group of each is its kind.

    Args:
        tubevit, paths, views, batch_size: As for `pooled`.

    Raises:
        SeveralKinds: By their suffixes, there are images and videos.
    """
    kinds = {}
    for path in paths:
        suffix = pathlib.PurePath(path).suffix.lower()
        of_suffix = [kind for kind, suffixes in SUFFIXES.items() if suffix in suffixes]
        if len(of_suffix) == 1:
            kinds.setdefault(*of_suffix, path)
    if len(kinds) > 1:
        one, other = kinds.values()
        raise SeveralKinds(
            f"Of {one} and {other} one is an image and one a video, which have "
            "different tokens. Give images and videos one after the other, or leave "
            "out --tokens."
        )

    def read(path):
        kind, clips = tubevit.read(path, views=(1, 1))
        if views != (1, 1):
            clips = np.concatenate([clips, tubevit.read(path, views=views)[1]])
        return kind, clips

    def of_batch(kind, videos):
        found = tubevit.features_of(videos[:, :1])
        if views == (1, 1):
            return found
        over_views = tubevit.pooled(videos[:, 1:])
        return [
            dataclasses.replace(x, pooled=y)
            for x, y in zip(found, over_views, strict=True)
        ]

    return files.compute(paths, read, of_batch, batch_size)
