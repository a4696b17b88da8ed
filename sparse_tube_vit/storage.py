"""Paths and URLs, and files that are written whole or not at all.

URLs are gs://, s3:// and az://, which epath reads and writes by fsspec and its packages
(gcsfs for gs://, or tensorflow where it is installed). Models and weights are read from
hf:// too, see `checkpoints.hub`.
"""

import contextlib
import dataclasses
import io
import math
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from etils import epath

from sparse_tube_vit.errors import TubeViTError, UnwritableOutput
from sparse_tube_vit.log import log

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

#: Kinds of URLs that files are read from.
SCHEMES = ("gs", "s3", "az")

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
    new = temporary(target)

    def write(content):
        with writing(path):
            if is_remote(path):  # which puts a file whole; and np.savez cannot seek
                content(buffer := io.BytesIO())
                target.write_bytes(buffer.getvalue())
            else:
                with new.open("wb") as file:
                    content(file)
                new.replace(target)

    with contextlib.ExitStack() as stack:
        with writing(path):
            if os.path.exists(target) and not os.path.isfile(target):
                raise OSError("there is something else, no file")
            stack.callback(_remove, new)
            new.write_bytes(b"")
            if is_remote(path):
                _remove(new)
            else:
                stack.enter_context(locked(new, wait_seconds=0))
        yield write


def _remove(file):
    with contextlib.suppress(OSError):  # the directory may be what is wrong
        file.unlink(missing_ok=True)


_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{32}")


def temporary(path):
    """Returns a hidden path in the same directory, for `remove_leftovers`."""
    return path.parent / f".{path.name}.{uuid.uuid4().hex}"


@contextlib.contextmanager
def locked(
    path, wait_seconds: float = math.inf, required: bool = False
) -> Iterator[bool]:
    """Locks a file or folder until the context, or this process, ends.

    `remove_leftovers` leaves what is locked. Buckets and Windows have no locks.

    Args:
        path: The file or folder, which exists.
        wait_seconds: Time to wait for a process that has it locked.
        required: Whether to raise where nothing can be locked, as on some network
            disks; otherwise it counts as locked, with a warning.

    Yields:
        Whether it is locked now; False if another has it locked.

    Raises:
        OSError: The file or folder cannot be opened for writing, or not be locked.
    """
    if is_remote(path) or not fcntl:
        yield True
        return
    # NFS locks only what is open for writing, which a folder cannot be.
    in_folder = os.path.isdir(path)
    file = os.path.join(path, ".lock") if in_folder else path
    flags = os.O_RDWR | (os.O_CREAT if in_folder else 0)
    end = time.monotonic() + wait_seconds
    while (lock := _lock(file, flags, required)) is None and time.monotonic() < end:
        time.sleep(0.2)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            if in_folder:
                _remove(Path(file))
            os.close(lock)


def _lock(file, flags, required):
    """Returns the descriptor of a locked file, or None if another has it locked."""
    descriptor = os.open(file, flags, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        if required:
            os.close(descriptor)
            raise
        log.warning("%s cannot be locked: %s", file, error)
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(descriptor), os.stat(file)):
            return descriptor
    os.close(descriptor)
    return _lock(file, flags, required)  # whoever had it locked has removed it


def remove_leftovers(directory) -> None:
    """Removes temporary files and folders of local writers that were killed.

    What cannot be locked is left: its writer may live.

    Args:
        directory: Where `temporary` paths were written; it need not exist.
    """
    if is_remote(directory) or not fcntl or not os.path.isdir(directory):
        return
    for path in Path(directory).iterdir():
        if not _TEMPORARY.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError):  # it is gone, or not ours
            with locked(path, wait_seconds=0, required=True) as unused:
                pass
            # NFS keeps a file that is open: the lock of a folder, say.
            if unused:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_whole(path, content: bytes) -> None:
    """Writes a file as `whole_file`, from content that is already known."""
    with whole_file(path) as write:
        write(lambda file: file.write(content))


class GrowingFile:
    """A file to append to, which is made if it is not there.

    On a disk it has what was appended at once. Buckets cannot append: there the file is
    put anew in the background, and what comes meanwhile goes with the next put.

    Args:
        path: The file, local or a URL.
    """

    def __init__(self, path):
        self.path = epath.Path(path)
        self._content = b""
        self._put, self._written = None, 0  # in the background, and its length
        if is_remote(path):
            self._thread = ThreadPoolExecutor(1)
            with reaching(path):
                self._content = self.path.read_bytes() if self.path.exists() else b""

    def append(self, content: bytes) -> None:
        """Appends to the file. A put that failed is made again, with a warning.

        Raises:
            UnwritableOutput: The file on a disk cannot be written.
        """
        if not is_remote(self.path):
            with writing(self.path), self.path.open("ab") as file:
                file.write(content)
            return
        self._content += content
        if self._put is None or self._put.done():
            self._finish_put()
            self._start_put()

    def flush(self) -> None:
        """Waits until the file has all that was appended.

        Raises:
            UnwritableOutput: The file cannot be written, tried twice.
        """
        if self._put is not None and not self._finish_put():
            self._start_put()
            with writing(self.path):
                self._put.result()

    def _start_put(self):
        self._written = len(self._content)
        self._put = self._thread.submit(self.path.write_bytes, self._content)

    def _finish_put(self):
        """Waits for the put; returns whether the file has all that was appended."""
        if self._put is None:
            return False
        try:
            with writing(self.path):
                self._put.result()
        except UnwritableOutput as error:
            log.warning("%s It is tried again.", error)
            return False
        return self._written == len(self._content)


@contextlib.contextmanager
def writing(path) -> Iterator[None]:
    """Turns errors of whatever writes a file or folder into UnwritableOutput."""
    try:
        yield
    except TubeViTError:
        raise
    except Exception as error:  # clients of buckets have their own
        if not (isinstance(error, OSError) or is_remote(path)):
            raise
        why = getattr(error, "strerror", None) or error
        raise UnwritableOutput(f"{path} cannot be written: {why}") from error


def try_writing(directory) -> None:
    """Makes a directory if there is none, and writes and removes a file in it.

    Raises:
        OSError, or a bucket's client's error: It cannot.
    """
    directory = epath.Path(directory)
    probe = temporary(directory / "written")
    directory.mkdir(parents=True, exist_ok=True)
    try:
        probe.write_text("\n")
    finally:  # a full disk may take the name, but no content
        probe.unlink(missing_ok=True)


def is_remote(path) -> bool:
    """Returns whether the path is a URL, such as gs://BUCKET/FILE."""
    return "://" in os.fspath(path)


def absolute(path) -> str:
    """Returns a local path in absolute form, a URL unchanged.

    `epath.Path.resolve` would take a URL for a path below the current directory.
    """
    return os.fspath(path) if is_remote(path) else os.path.abspath(path)


def entries(directory) -> list[epath.Path]:
    """Returns the files and folders in a directory that may not exist.

    `epath.Path.glob` would take the directory's name for a part of the pattern.
    """
    directory = epath.Path(directory)
    return [*directory.iterdir()] if directory.is_dir() else []


def file_size(path) -> int:
    """Returns the size of a file in bytes."""
    if is_remote(path):
        return epath.Path(path).stat().length
    return os.path.getsize(path)  # epath's needs a name for the owner


@dataclasses.dataclass
class Folder:
    """The entries of a folder, sorted.

    Attributes:
        path: The folder.
        folders: Its subfolders, links to folders among them.
        files: Its files, links to files among them.
        left_out: Reasons by path of the other entries.
    """

    path: epath.Path
    folders: list[epath.Path] = dataclasses.field(default_factory=list)
    files: list[epath.Path] = dataclasses.field(default_factory=list)
    left_out: dict[epath.Path, str] = dataclasses.field(default_factory=dict)


def walk(directory) -> Iterator[Folder]:
    """Yields a folder and all folders below it, each before its subfolders.

    Links to folders are followed. Left out are links that lead nowhere or back to a
    folder that holds them, everything that is neither a folder nor a file, hidden
    folders, and what macOS adds to archives (`__MACOSX`, `._*`). A folder that is
    absent is empty.

    Raises:
        UnreadableFile: A folder cannot be listed.
    """
    if is_remote(directory):
        yield from _walk_remote(epath.Path(directory))
        return
    stack = [(epath.Path(directory), frozenset())]
    while stack:
        path, above = stack.pop()
        folder = Folder(path)
        try:
            above |= {_identity(os.stat(path))}
            found = sorted(os.scandir(path), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            found = []  # as in a bucket, which has no folders
        except OSError as error:
            raise UnreadableFile(f"{path} cannot be listed: {error.strerror}") from None
        for each in found:
            entry = path / each.name
            try:  # only links need a request for each: listing tells the others' kind
                status = os.stat(each) if each.is_symlink() else None
                is_folder = stat.S_ISDIR(status.st_mode) if status else each.is_dir()
                is_file = stat.S_ISREG(status.st_mode) if status else each.is_file()
            except OSError as error:
                why = dead_link(entry) or f"it cannot be read: {error.strerror}"
                folder.left_out[entry] = why
                continue
            if is_folder:
                why = _unwanted(each.name, folder=True)
                if status and _identity(status) in above:
                    why = f"a link back to {os.path.realpath(entry)}, which holds it"
                entries = folder.folders
            else:
                why = _unwanted(each.name)
                if not is_file:
                    why = "no regular file"
                entries = folder.files
            if why:
                folder.left_out[entry] = why
            else:
                entries.append(entry)
        yield folder
        stack += [(entry, above) for entry in reversed(folder.folders)]


def _walk_remote(root):
    top, unwanted = None, set()
    for path, folders, files in root.walk():
        top = top or path  # `root`, which fsspec gives without its scheme
        path = root / path.relative_to(top)
        if unwanted.intersection([path, *path.parents]):
            continue
        folder = Folder(path)
        kinds = (folder.folders, folders, True), (folder.files, files, False)
        for entries, names, is_folder in kinds:
            for name in sorted(names):
                if why := _unwanted(name, is_folder):
                    folder.left_out[path / name] = why
                else:
                    entries.append(path / name)
        unwanted |= folder.left_out.keys()
        yield folder


def _identity(status):
    return status.st_dev, status.st_ino


def _unwanted(name, folder=False):
    """Returns the reason why a name is left out, or ""."""
    if name.startswith("._") or (folder and name == "__MACOSX"):
        return "not a file of its own: macOS adds it to archives"
    return "a hidden folder" if folder and name.startswith(".") else ""


def dead_link(path) -> str:
    """Returns in words where a link that leads nowhere leads, "" for other paths."""
    if not os.path.islink(path) or os.path.exists(path):
        return ""
    return f"a link to {os.readlink(path)}, which is absent"


def files_below(directory) -> tuple[list[epath.Path], dict[epath.Path, str]]:
    """Returns all files in a directory and its subdirectories, as `walk` finds them.

    Returns:
        (files, left_out): paths, sorted, and reasons by path.

    Raises:
        UnreadableFile: A folder cannot be listed.
    """
    files, left_out = [], {}
    for folder in walk(directory):
        files += folder.files
        left_out |= folder.left_out
    return sorted(files), left_out


class UnreachableStorage(TubeViTError, OSError):
    """A URL of an unknown kind, or a file that cannot be fetched from storage."""


#: Messages of tensorstore and Google Cloud Storage for files that cannot be fetched,
#: then of array_record's client of it, which tells an absent file in the same words.
_UNAVAILABLE = "PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED"
_OF_ARRAY_RECORD = "Permanent error|Retry policy exhausted|CURL error"
_ABSENT = r'"code": 404|No such object|NoSuchKey|NOT_FOUND'


def is_unavailable(error: Exception) -> bool:
    """Returns whether storage failed, and the file may exist: a retry may succeed."""
    absent = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
    if isinstance(error, OSError):
        return not isinstance(error, absent)
    if type(error).__module__.startswith(("aiohttp.", "google.auth.")):
        return True
    if re.fullmatch("401|403|408|429|5..", str(getattr(error, "code", ""))):
        return True  # gcsfs's HttpError
    text = str(error)
    if re.search(_OF_ARRAY_RECORD, text):
        return not re.search(_ABSENT, text)
    return bool(re.search(_UNAVAILABLE, text))


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
            for file in files_below(source)[0] if source.is_dir() else [source]:
                if file.exists():
                    pairs.append((file, copy / file.relative_to(path)))
        for _, target in pairs:
            target.parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda pair: pair[0].copy(pair[1]), pairs))
        yield copy


def why_unread(path) -> str:
    """Returns why files of a URL of this kind are not read, or ""."""
    scheme, separator, _ = os.fspath(path).partition("://")
    if not separator or scheme in SCHEMES:
        return ""
    return (
        f"{scheme}:// is not read: download it and give a path, or give a URL of "
        f"{', '.join(SCHEMES)}."
    )


class UnreadableFile(TubeViTError, OSError):
    """A clip or image file that is missing or cannot be read."""


def read_file(path) -> bytes:
    """Reads a clip or image file, local or gs://.

    Raises:
        UnreadableFile: It is missing or cannot be read.
    """
    if why := why_unread(path):
        raise UnreadableFile(why)
    try:
        return epath.Path(path).read_bytes()
    except Exception as error:  # clients of buckets have their own
        if not (isinstance(error, OSError) or is_remote(path)):
            raise
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadableFile(f"{why.rstrip('.')}.") from error
