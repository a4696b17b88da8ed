"""Clips and images: listed, read ahead in threads, computed in batches."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import numpy as np
from etils import epath
from tqdm import tqdm

from sparse_tube_vit.distributed.cpu import usable_cores
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.log import log
from sparse_tube_vit.models.scores import NonFiniteScores
from sparse_tube_vit.storage import (
    UnreachableStorage,
    file_size,
    files_below,
    is_remote,
    reaching,
)
from sparse_tube_vit.video.opening import SUFFIXES

_SUFFIXES = set.union(*SUFFIXES.values())

#: Bytes of files that are read at once, a larger one alone. Decoding takes twice that.
_BYTES_AT_ONCE = 2**32


class NoFiles(TubeViTError, FileNotFoundError):
    """A folder without a clip or an image."""


def expand(paths: Iterable) -> list[str]:
    """Returns files as they are, and all clips and images below folders.

    A folder without any is kept, and reported with the files that cannot be read.

    Args:
        paths: Files and folders, local or gs://; "-" stands for those that standard
            input names, one a line.

    Raises:
        NoFiles: The only path is of a folder that holds none.
        UnreadableFile: A folder cannot be listed.
    """
    files, paths = [], [*_with_input(paths)]
    for path in paths:
        if not _is_folder(path):
            files.append(os.fspath(path))
            continue
        below, unusable = files_below(path)
        for entry, reason in unusable.items():
            log.warning("%s is left out: %s", entry, reason)
        taken = [f for f in below if f.suffix.lower() in _SUFFIXES]
        if not taken:
            problem = (
                f"{path} holds no clip and no image: of its {len(below)} files none "
                f"ends in {', '.join(sorted(_SUFFIXES))}."
            )
            if len(paths) == 1:
                raise NoFiles(problem)
            log.warning("%s", problem)
            files.append(os.fspath(path))
            continue
        if len(taken) < len(below):
            log.warning(
                "%s: %d of %d files are left out, no clips or images by their names",
                path,
                len(below) - len(taken),
                len(below),
            )
        files += map(os.fspath, taken)
    return files


def _with_input(paths):
    for path in paths:
        if path == "-":
            lines = (line.rstrip(b"\r\n") for line in sys.stdin.buffer)
            yield from (os.fsdecode(line) for line in lines if line.strip())
        else:
            yield path


def _is_folder(path):
    if not is_remote(path):
        return os.path.isdir(path)
    try:
        with reaching(path):
            return epath.Path(path).is_dir()
    except UnreachableStorage:
        return False  # reading it tells why


def is_path(item) -> bool:
    """Returns whether an input is the path of a file, and no array."""
    return isinstance(item, str | os.PathLike)


def are_several(inputs) -> bool:
    """Returns whether these are several inputs, an iterable and no array."""
    return (
        isinstance(inputs, Iterable)
        and not is_path(inputs)
        and not isinstance(inputs, bytes | bytearray)
        and not hasattr(inputs, "__array__")
    )


@dataclasses.dataclass(frozen=True)
class Computed:
    """The result of an input, or why there is none.

    Attributes:
        path: The path of the file; "input 3" for the array of that index.
        group: As `compute`'s `read` gave it.
        result: As `compute`'s `of_batch` gave it.
        problem: The message, without the path, of a named error; "" if there is none.
    """

    path: str
    group: Hashable = None
    result: object = None
    problem: str = ""


class IncompleteResults(TubeViTError):
    """Some of several inputs have no result.

    Attributes:
        results: The results in the order of the inputs; None where there is none.
        problems: Why, by the index of the input.
    """

    def __init__(self, computed: Sequence[Computed]):
        self.results = [x.result for x in computed]
        self.problems = {i: x.problem for i, x in enumerate(computed) if x.problem}
        shown = [f"{computed[i].path}: {why}" for i, why in self.problems.items()]
        rest = len(shown) - 10
        more = [f"and {rest} more, in the error's `problems`"] if rest > 0 else []
        super().__init__(
            "\n  ".join(
                [
                    f"{len(shown)} of {len(computed)} inputs have no result; those of "
                    "the others are in the error's `results`:",
                    *shown[:10],
                    *more,
                ]
            )
        )


def collect(computed: Iterable[Computed], total: int) -> list:
    """Returns the results of all of several inputs.

    Shows a progress bar on stderr, in a terminal or a notebook alone.

    Raises:
        IncompleteResults: After the last of them, if some have none.
    """
    notebook = type(sys.stderr).__module__.startswith("ipykernel")
    hidden = not (notebook or sys.stderr.isatty())
    computed = [*tqdm(computed, total=total, unit=" inputs", disable=hidden)]
    if any(x.problem for x in computed):
        raise IncompleteResults(computed)
    return [x.result for x in computed]


def compute(
    inputs: Sequence,
    read: Callable[[object], tuple[Hashable, np.ndarray]],
    of_batch: Callable[[Hashable, np.ndarray], Sequence],
    batch_size: int | None = None,
) -> Iterator[Computed]:
    """Yields the results of inputs in order, in batches, read ahead in threads.

    Inputs of one group share batches, all of one size. A group that has waited for four
    batches of others is computed with what it has. At most four batches are read ahead:
    their views fill memory. Progress is logged every ten seconds.

    Args:
        inputs: Paths of files, or arrays.
        read: Maps an input to (group, views), views being (V, T, H, W, 3), of one shape
            and dtype in a group.
        of_batch: Maps a group and its (B, V, T, H, W, 3) to B results.
        batch_size: B; None: 4, or the number of inputs if that is smaller.
    """
    size = batch_size or min(4, len(inputs))
    groups = collections.defaultdict(list)  # group -> [(number, video)], oldest first
    done, first = {}, 0  # number -> Computed; the first that is not yielded

    def compute_batch(group):
        numbers, videos = zip(*groups.pop(group), strict=True)

        def results(videos):
            missing = size - len(videos)
            try:
                return of_batch(group, np.stack([*videos, *[videos[-1]] * missing]))
            except NonFiniteScores as error:  # of any one of them
                if len(videos) == 1:
                    return [error]
                return [results([video])[0] for video in videos]
            except TubeViTError as error:  # no tube reads such, say
                return [error] * size

        for number, result in zip(numbers, results(videos), strict=False):
            finish(number, result, group)

    def finish(number, result, group=None):
        item = inputs[number]
        path = os.fspath(item) if is_path(item) else f"input {number}"
        if isinstance(result, TubeViTError):
            problem = str(result).removeprefix(f"{path}: ")
            done[number] = Computed(path, problem=problem)
        else:
            done[number] = Computed(path, group, result)

    logged = time.monotonic()
    for number, outcome in enumerate(_ahead(read, inputs, 4 * size)):
        if time.monotonic() - logged > 10:
            log.info("%d of %d files", number, len(inputs))
            logged = time.monotonic()
        if isinstance(outcome, TubeViTError):
            finish(number, outcome)
        else:
            group, video = outcome
            groups[group].append((number, video))
            if len(groups[group]) == size:
                compute_batch(group)
            elif number - first >= 4 * size:
                compute_batch(next(iter(groups)))
        while first in done:
            yield done.pop(first)
            first += 1
    for group in list(groups):
        compute_batch(group)
    yield from (done[number] for number in sorted(done))


class UntilInterrupted:
    """An iterator that Ctrl-C ends, so that what is done by then can be written.

    Attributes:
        interrupted: Whether it was.
    """

    def __init__(self, items: Iterable):
        self._items, self.interrupted = iter(items), False

    def __iter__(self):
        return self

    def __next__(self):
        if self.interrupted:
            raise StopIteration
        try:
            return next(self._items)
        except KeyboardInterrupt:
            self.interrupted = True
            log.warning("Interrupted: what follows is left out")
            raise StopIteration from None


def _ahead(read, inputs, most):
    """Yields what `read` returns or raises for each input, in order.

    Args:
        read, inputs: As for `compute`.
        most: Number of inputs to read ahead, where there are cores for them.
    """

    room = _Room(_BYTES_AT_ONCE)

    def attempt(item):
        with room.taken(_size(item)):
            try:
                return read(item)
            except TubeViTError as error:
                return error

    threads = usable_cores()
    with concurrent.futures.ThreadPoolExecutor(threads) as executor:
        pending = collections.deque()
        for item in inputs:
            pending.append(executor.submit(attempt, item))
            if len(pending) > min(most, 2 * threads):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


class _Room:
    """Room for the files that threads read: others wait until it is free.

    Args:
        size: Bytes.
    """

    def __init__(self, size):
        self._size = self._free = size
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, size):
        size = min(size, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()


def _size(item):
    """Returns the bytes of a file; 0 for arrays, and where reading it tells why."""
    try:
        return file_size(item) if is_path(item) else 0
    except Exception:  # clients of buckets have their own
        return 0
