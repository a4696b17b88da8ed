"""TensorBoard's files of scalars, written and cut without tensorflow.

clu's own writer of scalars imports tensorflow, which is two thirds of an installation;
`EventFile` has the part of its interface (`clu.metric_writers.MetricWriter`) that
training uses, on the protocol buffers and records of the package tensorboard.
"""

import io
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping

from etils import epath
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from sparse_tube_vit import storage

_PATTERN = "events.out.tfevents.*"


class EventFile:
    """A new file of events in a work directory, local or at a URL.

    Attributes:
        path: The file.
    """

    def __init__(self, workdir: epath.Path):
        name = f"{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self.path = epath.Path(workdir) / _PATTERN.replace("*", name)
        self._file = storage.GrowingFile(self.path)
        self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes values of a step by name, as `storage.GrowingFile.append`.

        Raises:
            UnwritableOutput: The file cannot be written.
        """
        summary = Summary()
        for name, value in scalars.items():
            summary.MergeFrom(scalar_pb(name, value))
        self._append(Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Waits until the file has all that was written; raises as `write_scalars`."""
        self._file.flush()

    def _append(self, event):
        self._file.append(_records([event.SerializeToString()]))


def keep_events(workdir: epath.Path, is_kept: Callable[[int, list[str]], bool]) -> None:
    """Removes events from the files of a work directory.

    What follows a record that was cut short, when the run was killed, goes as well.

    Args:
        workdir: The run's work directory.
        is_kept: Returns whether an event of (step, names of scalars) stays.

    Raises:
        UnwritableOutput: A file cannot be written.
    """
    for path in epath.Path(workdir).glob(_PATTERN):
        content, kept = path.read_bytes(), []
        for record in _read_records(content):
            event = Event.FromString(record)
            names = [value.tag for value in event.summary.value]
            if not names or is_kept(event.step, names):  # the first has the version
                kept.append(record)
        if (new := _records(kept)) != content:
            storage.write_whole(path, new)


def _records(messages):
    file = io.BytesIO()
    for message in messages:
        RecordWriter(file).write(message)
    return file.getvalue()


def _read_records(content: bytes) -> Iterator[bytes]:
    """Yields records: length (8 bytes), checksum (4), content, checksum (4).

    It ends before the first that is cut short or damaged.
    """
    at = 0
    while at + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        end = at + 12 + length
        record = content[at + 12 : end]
        if content[at : end + 4] != _records([record]):
            return
        yield record
        at = end + 4
