"""Features of files and folders."""

import contextlib
from collections.abc import Sequence

import numpy as np

from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.inference import files
from sparse_tube_vit.inference.clips import kind_of
from sparse_tube_vit.inference.loaded import TrainedTubeViT
from sparse_tube_vit.storage import read_file


class SeveralKinds(TubeViTError, ValueError):
    """Images and videos have different tokens: one array cannot hold them."""


def pooled(
    tubevit: TrainedTubeViT,
    paths: list[str],
    views: tuple[int, int] = (1, 1),
    batch_size: int | None = None,
) -> tuple[np.ndarray, list[str], dict[int, str]]:
    """Pooled features of files, averaged over views.

    Args:
      tubevit: a loaded model.
      paths: of files.
      views: (temporal, spatial) of videos.
      batch_size: files at a time; None: 4, or as many as there are.

    Returns:
      (pooled, kinds, problems): (N, D) float32 and N kinds, of zeros and "" where a
      file cannot be read; and by its number why.
    """
    found = np.zeros((len(paths), tubevit.model.options.width), np.float32)
    kinds = [""] * len(paths)

    def read(path):
        return tubevit.read(path, given=views)

    def of_batch(kind, videos):
        return tubevit.pooled(videos)

    computed, problems = files.compute(paths, read, of_batch, batch_size)
    for number, (kind, features) in computed.items():
        found[number], kinds[number] = features, kind
    return found, kinds, problems


def check_one_kind(paths: Sequence[str]) -> None:
    """Raises SeveralKinds if there are images and videos among the files.

    What cannot be read is neither.
    """
    first = {}
    for path in paths:
        with contextlib.suppress(TubeViTError):
            first.setdefault(kind_of(read_file(path)), path)
    if len(first) > 1:
        raise _several_kinds(*first.values())


def _several_kinds(one, other):
    return SeveralKinds(
        f"Of {one} and {other} one is an image and one a video, which have different "
        "tokens. Give images and videos one after the other, or leave out --tokens."
    )


def tokens(tubevit: TrainedTubeViT, paths: Sequence[str]) -> dict[str, np.ndarray]:
    """Tokens (N, n, D) of files of one kind, and each one's tube, time and place.

    Raises:
      SeveralKinds: there are images and videos.
    """
    each = []
    for path in paths:
        each.append(tubevit.features(path))
        first = each[0]
        if each[-1].tokens.shape != first.tokens.shape:
            raise _several_kinds(paths[0], path)
    return {
        "tokens": np.stack([x.tokens for x in each]),
        "tube": first.tube,
        "time": first.time,
        "place": first.place,
    }
