"""Files that commands write: each is there whole or not at all."""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from typing import IO

from etils import epath

from sparse_tube_vit.errors import UnwritableOutput
from sparse_tube_vit.paths import is_remote

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
