"""Paths and URLs, and files that are written whole or not at all.

URLs are gs://, s3:// and az://, which epath reads and writes: gs:// by tensorflow where
it is installed, else all of them by fsspec and its packages (gcsfs for gs://). Models
and weights are read from hf:// too, see `checkpoints.hub`.
"""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from etils import epath

from sparse_tube_vit.errors import TubeViTError, UnwritableOutput

Write = Callable[[Callable[[IO[bytes]], object]], None]


@contextlib.contextmanager
def whole_file(path) -> Iterator[Write]:
    """Opens a file for a result that is computed within the context.

    Raises before the work if the file cannot be written. The content goes to a
    temporary file in the same directory, which is then renamed: until then the old file
    stays. Links are followed.

    Args:
        path: The file, local or gs://. Its directory must exist.

    Yields:
        A function that takes a function of a binary file, which writes the content.

    Raises:
        UnwritableOutput: On entering, or when the content is written.
    """
    target = epath.Path(path if is_remote(path) else os.path.realpath(path))
    new = target.parent / f".{target.name}.{uuid.uuid4().hex}"

    def write(content):
        with _naming(path):
            with new.open("wb") as file:
                content(file)
            new.replace(target)

    try:
        with _naming(path):
            if os.path.exists(target) and not os.path.isfile(target):
                raise OSError("there is something else, no file")
            new.write_bytes(b"")
        yield write
    finally:
        with contextlib.suppress(OSError):  # the directory may be what is wrong
            new.unlink(missing_ok=True)


def write_whole(path, content: bytes) -> None:
    """Writes a file as `whole_file`, from content that is already known."""
    with whole_file(path) as write:
        write(lambda file: file.write(content))


@contextlib.contextmanager
def _naming(path):
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise UnwritableOutput(f"{path} cannot be written: {why}") from error


def is_remote(path) -> bool:
    """Returns whether the path is a URL, such as gs://BUCKET/FILE."""
    return "://" in os.fspath(path)


def absolute(path) -> str:
    """Returns a local path in absolute form, a URL unchanged.

    `epath.Path.resolve` would take a URL for a path below the current directory.
    """
    return os.fspath(path) if is_remote(path) else os.path.abspath(path)


def files_below(directory) -> list[epath.Path]:
    """Returns all files in a directory and its subdirectories, sorted."""
    root, files = epath.Path(directory), []
    top = None
    for folder, _, names in root.walk():
        top = top or folder  # `root`, which fsspec gives without its scheme
        files += [root / folder.relative_to(top) / name for name in names]
    return sorted(files)


class UnreachableStorage(TubeViTError, OSError):
    """A URL of an unknown kind, or a bucket or hub that cannot be listed or read."""


@contextlib.contextmanager
def reaching(path) -> Iterator[None]:
    """Turns errors of whatever reads a URL into UnreachableStorage.

    Named errors, and all errors of local paths, pass through.
    """
    try:
        yield
    except TubeViTError:
        raise
    except Exception as error:  # tensorflow, fsspec and its packages have their own
        if not is_remote(path):
            raise
        why = str(error).strip() or type(error).__name__
        raise UnreachableStorage(f"{path} cannot be read: {why}") from error


@contextlib.contextmanager
def on_disk(path, items: Sequence[str] | None = None) -> Iterator[Path]:
    """Gives a local path to a file or folder; of a remote one, to a temporary copy.

    Args:
        path: An epath.Path, local or remote.
        items: Names of the files and subfolders of a folder to copy; those that do not
            exist are skipped. None if `path` is a file.
    """
    if not is_remote(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as temporary:
        copy, pairs = Path(temporary, path.name), []
        if items is None:
            pairs.append((path, copy))
        for source in (path / item for item in items or ()):
            for file in files_below(source) if source.is_dir() else [source]:
                if file.exists():
                    pairs.append((file, copy / file.relative_to(path)))
        for _, target in pairs:
            target.parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda pair: pair[0].copy(pair[1]), pairs))
        yield copy


class UnreadableFile(TubeViTError, OSError):
    """A clip or image file that is missing or cannot be read."""


def read_file(path) -> bytes:
    """Reads a clip or image file, local or gs://.

    Raises:
        UnreadableFile: It is missing or cannot be read.
    """
    try:
        return epath.Path(path).read_bytes()
    except (OSError, ImportError) as error:  # gs:// needs a package of its own
        why = getattr(error, "strerror", None) or error
        raise UnreadableFile(f"{why}.") from error


def make_workdir(workdir: epath.Path) -> None:
    """Makes a run's work directory and checks that files can be written to it.

    Raises:
        UnusableWorkdir: Its disk is full or read-only, or it cannot be made.
    """
    for directory in (workdir, workdir / "checkpoints"):
        probe = directory / f".written_{uuid.uuid4().hex}"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            try:
                probe.write_text("\n")
            finally:  # a full disk may take the name, but no content
                probe.unlink(missing_ok=True)
        except OSError as error:
            raise UnusableWorkdir(
                f"--workdir {directory} cannot be made or written to: {error}"
            ) from error


class UnusableWorkdir(TubeViTError, OSError):
    """A work directory that cannot be made or written to."""
