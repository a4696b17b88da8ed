"""Work directories of runs: made, checked, and used by one training at a time."""

import contextlib
import json
import os
import socket
import uuid
from collections.abc import Iterable

from etils import epath

from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.log import log
from sparse_tube_vit.storage import absolute, is_remote, locked, try_writing, writing


class UnusableWorkdir(TubeViTError, OSError):
    """A work directory that cannot be made, written to, or read back from."""


class WorkdirInUse(TubeViTError, OSError):
    """A work directory that another training uses."""


def check_workdir(workdir) -> None:
    """Raises UnusableWorkdir if libraries that write checkpoints misread the path."""
    path = absolute(workdir)
    if found := [character for character in "*?[\\" if character in path]:
        raise UnusableWorkdir(
            f"--workdir {path} has {' and '.join(found)} in its path, which make it a "
            "pattern, so that its checkpoints could not be read. Rename the folder, or "
            "choose another."
        )
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UnusableWorkdir(
            f"--workdir {path!a} is no path in UTF-8. Rename the folder, or choose "
            "another."
        ) from error


def make_workdir(workdir: epath.Path) -> list[epath.Path]:
    """Makes a run's work directory and checks that files can be written to it.

    Returns:
        The directories that it had to make, inner ones first.

    Raises:
        UnusableWorkdir: Its disk is full or read-only, it cannot be made, or its path
            is none for `check_workdir`.
    """
    check_workdir(workdir)
    made = []
    for directory in (workdir, workdir / "checkpoints"):
        try:
            if not directory.exists():
                made.insert(0, directory)
            try_writing(directory)
        except OSError as error:
            raise UnusableWorkdir(
                f"--workdir {directory} cannot be made or written to: {error}"
            ) from error
    return made


def check_deletion(workdir) -> None:
    """Raises UnusableWorkdir if orbax could not delete a bucket's old checkpoints.

    It asks whether the bucket has folders. Files can be written, read and deleted
    without that permission: a run would end only where it has more than it keeps.
    """
    path = absolute(workdir)
    if not path.startswith("gs://"):
        return
    bucket = path.removeprefix("gs://").partition("/")[0]
    cannot = f"--workdir {path}: old checkpoints could not be deleted there"
    try:
        from google.cloud import storage

        storage.Client().get_bucket(bucket)
    except ImportError as error:
        raise UnusableWorkdir(f'{cannot}: {error}. pip install ".[gcs]"') from error
    except Exception as error:  # the client has its own
        raise UnusableWorkdir(
            f"{cannot}, as gs://{bucket} itself cannot be looked up: {error}. If that "
            "is for want of the permission storage.buckets.get, "
            "roles/storage.legacyBucketReader has it."
        ) from error


def remove_empty(directories: Iterable[epath.Path]) -> None:
    """Removes those directories that a run has left empty. Buckets have none."""
    for directory in directories:
        if not is_remote(directory):
            with contextlib.suppress(OSError):
                os.rmdir(directory)


class WorkdirLock:
    """Keeps other trainings out of a work directory until it is closed.

    On a disk by a lock, which ends with this process, however it ends. Buckets have
    none: there, the last training to call `take_over` has the work directory, and
    `check` ends the one before, which may be on a machine that was taken away.

    Args:
        workdir: The work directory, local or gs://, which exists.

    Raises:
        WorkdirInUse: Another training has locked it.
        UnwritableOutput: The lock cannot be written.
    """

    def __init__(self, workdir):
        self._workdir, self._file = workdir, epath.Path(workdir) / ".training"
        self._holder = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "token": uuid.uuid4().hex,
        }
        with contextlib.ExitStack() as stack, writing(self._file):
            if not stack.enter_context(locked(workdir, wait_seconds=0)):
                raise self._in_use("Wait until it ends, stop it")
            if not is_remote(workdir):
                self._file.write_text(json.dumps(self._holder))
            self._lock = stack.pop_all()

    def take_over(self) -> None:
        """Has a training before end at its next checkpoint, in a bucket.

        To be called once the run is accepted: what is refused ends no other.

        Raises:
            UnwritableOutput: It cannot be written.
        """
        if is_remote(self._workdir):
            with writing(self._file):
                self._file.write_text(json.dumps(self._holder))

    def check(self) -> None:
        """Raises WorkdirInUse if another training has taken over, in a bucket."""
        if not is_remote(self._workdir):
            return
        try:
            text = self._file.read_text()
        except Exception as error:  # clients of buckets have their own
            log.warning(
                "Whether another training uses %s is unknown, as %s cannot be read: %r",
                self._workdir,
                self._file,
                error,
            )
            return
        if text != json.dumps(self._holder):
            raise self._in_use("Let that one go on")

    def close(self) -> None:
        """Lets other trainings in."""
        if not is_remote(self._workdir):
            self._file.unlink(missing_ok=True)
        self._lock.close()

    def _read(self):
        with contextlib.suppress(OSError, ValueError):
            holder = json.loads(self._file.read_text())
            return holder if isinstance(holder, dict) else {}
        return {}

    def _in_use(self, advice):
        holder = self._read()
        return WorkdirInUse(
            f"--workdir {self._workdir} is in use by another training, process "
            f"{holder.get('process', 'unknown')} on host "
            f"{holder.get('host', 'unknown')}. {advice}, or choose another --workdir."
        )
