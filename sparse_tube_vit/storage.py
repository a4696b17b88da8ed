"""Files that commands write: each is there whole or not at all."""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from typing import IO

from etils import epath

from sparse_tube_vit.errors import TubeViTError, UnwritableOutput

Write = Callable[[Callable[[IO[bytes]], object]], None]


@contextlib.contextmanager
def whole_file(path) -> Iterator[Write]:
    """Context of the work whose result goes to a file; gives what writes it.

    That it can be written is found out here, before the work. It is written beside its
    place, which it takes by being renamed: what was there stays until then. Links stay
    links: the place is where they lead.

    Args:
      path: of the file, local or gs://; its directory must be there.

    Returns:
      A function that takes another, which is given the binary file to write to.

    Raises:
      UnwritableOutput: here, or when it is written.
    """
    place = epath.Path(path if is_remote(path) else os.path.realpath(path))
    new = place.parent / f".{place.name}.{uuid.uuid4().hex}"

    def write(content):
        with _naming(path):
            with new.open("wb") as file:
                content(file)
            new.replace(place)

    try:
        with _naming(path):
            if os.path.exists(place) and not os.path.isfile(place):
                raise OSError("there is something else, no file")
            new.write_bytes(b"")
        yield write
    finally:
        with contextlib.suppress(OSError):  # the directory may be what is wrong
            new.unlink(missing_ok=True)


def write_whole(path, content: bytes) -> None:
    """Writes what is there already to a `whole_file`."""
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
    """Whether the path is a URL, as gs://BUCKET/FILE is."""
    return "://" in os.fspath(path)


def absolute(path) -> str:
    """The path from the root of its disk; a URL as it is.

    epath would look for a URL in the current directory.
    """
    return os.fspath(path) if is_remote(path) else os.path.abspath(path)


def files_below(directory) -> list[epath.Path]:
    """Returns all files in a directory and the folders in it, in sorted order."""
    found = epath.Path(directory).walk()
    return sorted(folder / file for folder, _, files in found for file in files)


class UnreadableFile(TubeViTError, OSError):
    """A file of a clip or an image that is not there or cannot be read."""


def read_file(path) -> bytes:
    """A file of a clip or an image, local or gs://.

    Raises:
      UnreadableFile: it is not there, or may not be read.
    """
    try:
        return epath.Path(path).read_bytes()
    except (OSError, ImportError) as error:  # gs:// needs a package of its own
        why = getattr(error, "strerror", None) or error
        raise UnreadableFile(f"{why}.") from error


def make_workdir(workdir: epath.Path) -> None:
    """Makes a run's directory; raises UnusableWorkdir unless it takes what is written.

    One that is there may be on a disk that is full, or mounted to be read.
    """
    for directory in (workdir, workdir / "checkpoints"):
        probe = directory / f".written_{uuid.uuid4().hex}"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            try:
                probe.write_text("\n")
            finally:  # a full disk may take its name alone
                probe.unlink(missing_ok=True)
        except OSError as error:
            raise UnusableWorkdir(
                f"--workdir {directory} cannot be made or written to: {error}"
            ) from error


class UnusableWorkdir(TubeViTError, OSError):
    """The work directory cannot be made or written to."""
