"""Files of clips and images by their paths, read ahead in threads and in batches."""

import collections
import concurrent.futures
import dataclasses
import os
import time
from collections.abc import Callable, Hashable, Iterable, Iterator

import numpy as np
from etils import epath

from sparse_tube_vit.datasets.encoded import files_below
from sparse_tube_vit.datasets.folders import SUFFIXES
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.log import log

_SUFFIXES = set.union(*SUFFIXES.values())


class NoFiles(TubeViTError, FileNotFoundError):
    """A folder without a clip or an image."""


def expand(paths: Iterable) -> list[str]:
    """The files of paths: folders give all clips and images in and below them.

    Raises:
      NoFiles: a folder has none.
    """
    files = []
    for path in map(epath.Path, paths):
        if not path.is_dir():
            files.append(os.fspath(path))
            continue
        below = files_below(path)
        taken = [f for f in below if f.suffix.lower() in _SUFFIXES]
        if not taken:
            raise NoFiles(
                f"{path} holds no clip and no image: of its {len(below)} files none "
                f"ends in {', '.join(sorted(_SUFFIXES))}."
            )
        if len(taken) < len(below):
            log.warning(
                "%s: %d of %d files are left out, no clips or images by their names",
                path,
                len(below) - len(taken),
                len(below),
            )
        files += map(os.fspath, taken)
    return files


@dataclasses.dataclass(frozen=True)
class Batch:
    """Files of one group and shape.

    Attributes:
      numbers: of the files, in the order that they were given in.
      group: what `read` says of each of them.
      videos: (B, V, T, H, W, 3), the files' first; the rest repeats the last of them.
    """

    numbers: list[int]
    group: Hashable
    videos: np.ndarray


def batches(
    files: list[str],
    read: Callable[[str], tuple[Hashable, np.ndarray]],
    batch_size: int,
    problems: dict[int, TubeViTError],
) -> Iterator[Batch]:
    """Reads files ahead in threads; all batches of a group have one size.

    Every ten seconds the log tells how far it is.

    Args:
      files: paths.
      read: a path to (group, (V, T, H, W, 3)).
      batch_size: of all batches.
      problems: takes the named error of every file that `read` raises one for.
    """
    groups = collections.defaultdict(list)  # group -> [(number, video)]

    def batch(group):
        numbers, videos = zip(*groups.pop(group), strict=True)
        missing = batch_size - len(videos)
        videos = np.stack([*videos, *[videos[-1]] * missing])
        return Batch(list(numbers), group, videos)

    told = time.monotonic()
    for number, found in enumerate(_ahead(read, files)):
        if time.monotonic() - told > 10:
            log.info("%d of %d files", number, len(files))
            told = time.monotonic()
        if isinstance(found, TubeViTError):
            problems[number] = found
            continue
        group, video = found
        groups[group].append((number, video))
        if len(groups[group]) == batch_size:
            yield batch(group)
    for group in list(groups):
        yield batch(group)


def _ahead(read, files):
    """What `read` returns or raises of every file, in order; a few are read ahead."""

    def attempt(path):
        try:
            return read(path)
        except TubeViTError as error:
            return error

    threads = os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(threads) as executor:
        pending = collections.deque()
        for path in files:
            pending.append(executor.submit(attempt, path))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
