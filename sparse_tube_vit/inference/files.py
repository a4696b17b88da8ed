"""Files of clips and images by their paths, read ahead in threads and in batches."""

import collections
import concurrent.futures
import os
import time
from collections.abc import Callable, Hashable, Iterable

import numpy as np
from etils import epath

from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.log import log
from sparse_tube_vit.storage import files_below
from sparse_tube_vit.video.decode import SUFFIXES

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


def compute(
    files: list[str],
    read: Callable[[str], tuple[Hashable, np.ndarray]],
    of_batch: Callable[[Hashable, np.ndarray], np.ndarray],
    batch_size: int | None = None,
) -> tuple[dict[int, tuple[Hashable, np.ndarray]], dict[int, str]]:
    """Reads files ahead in threads and computes on batches of them, bad ones left out.

    All batches of a group have one size. Every ten seconds the log tells how far it is.

    Args:
      files: paths.
      read: a path to (group, (V, T, H, W, 3)).
      of_batch: a group and its (B, V, T, H, W, 3) to B results.
      batch_size: B; None: 4, or as many as there are files where they are fewer.

    Returns:
      ({number: (group, result)}, {number: why there is none}) by the files' numbers.
      It is the message of the named error of `read` or `of_batch`, without the path.
    """
    size = batch_size or min(4, len(files))
    groups = collections.defaultdict(list)  # group -> [(number, video)]
    found, problems = {}, {}

    def miss(number, error):
        problems[number] = str(error).removeprefix(f"{files[number]}: ")

    def compute_batch(group):
        numbers, videos = zip(*groups.pop(group), strict=True)
        missing = size - len(videos)
        try:
            results = of_batch(group, np.stack([*videos, *[videos[-1]] * missing]))
        except TubeViTError as error:  # no tube reads such, say
            for number in numbers:
                miss(number, error)
            return
        for number, result in zip(numbers, results, strict=False):
            found[number] = group, result

    told = time.monotonic()
    for number, seen in enumerate(_ahead(read, files)):
        if time.monotonic() - told > 10:
            log.info("%d of %d files", number, len(files))
            told = time.monotonic()
        if isinstance(seen, TubeViTError):
            miss(number, seen)
            continue
        group, video = seen
        groups[group].append((number, video))
        if len(groups[group]) == size:
            compute_batch(group)
    for group in list(groups):
        compute_batch(group)
    return found, problems


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
