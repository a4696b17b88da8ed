"""Files of clips and images: listed, read ahead in threads, computed in batches."""

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
    """Returns files as they are, and all clips and images below folders.

    Raises:
        NoFiles: A folder has none.
        UnreadableFile: A folder cannot be listed.
    """
    files = []
    for path in map(epath.Path, paths):
        if not path.is_dir():
            files.append(os.fspath(path))
            continue
        below, unusable = files_below(path)
        for entry, reason in unusable.items():
            log.warning("%s is left out: %s", entry, reason)
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
    """Reads files ahead in threads and computes results in batches.

    Files of one group share batches, all of one size. Progress is logged every ten
    seconds.

    Args:
        files: Paths.
        read: Maps a path to (group, views), views being (V, T, H, W, 3).
        of_batch: Maps a group and its (B, V, T, H, W, 3) to B results.
        batch_size: B; None: 4, or the number of files if that is smaller.

    Returns:
        ({index: (group, result)}, {index: problem}) by the files' indices. A problem is
        the message, without the path, of a named error of `read` or `of_batch`.
    """
    size = batch_size or min(4, len(files))
    groups = collections.defaultdict(list)  # group -> [(number, video)]
    results, problems = {}, {}

    def skip(number, error):
        problems[number] = str(error).removeprefix(f"{files[number]}: ")

    def compute_batch(group):
        numbers, videos = zip(*groups.pop(group), strict=True)
        missing = size - len(videos)
        try:
            batch = of_batch(group, np.stack([*videos, *[videos[-1]] * missing]))
        except TubeViTError as error:  # no tube reads such, say
            for number in numbers:
                skip(number, error)
            return
        for number, result in zip(numbers, batch, strict=False):
            results[number] = group, result

    logged = time.monotonic()
    for number, outcome in enumerate(_ahead(read, files)):
        if time.monotonic() - logged > 10:
            log.info("%d of %d files", number, len(files))
            logged = time.monotonic()
        if isinstance(outcome, TubeViTError):
            skip(number, outcome)
            continue
        group, video = outcome
        groups[group].append((number, video))
        if len(groups[group]) == size:
            compute_batch(group)
    for group in list(groups):
        compute_batch(group)
    return results, problems


def _ahead(read, files):
    """Yields what `read` returns or raises for each file, in order, reading ahead."""

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
