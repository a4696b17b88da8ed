"""TensorBoard's files, read back by TensorBoard's own reader of records."""

import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.errors import OutOfRangeError
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

from sparse_tube_vit.training.tensorboard import EventFile, keep_events


def steps(path):
    """Steps of a whole file; one that is damaged or cut short is an error."""
    reader, found = PyRecordReader_New(str(path)), []
    while True:
        try:
            reader.GetNext()
        except OutOfRangeError:
            return found
        found.append(Event.FromString(reader.record()).step)


@pytest.fixture
def file(tmp_path):
    """Events of steps 1 to 4, after the record of the file's version."""
    events = EventFile(tmp_path)
    for step in range(1, 5):
        events.write_scalars(step, {"train/loss": 0.5, "train/accuracy": 0.25})
    return events.path


def test_every_event_is_in_the_file_once_it_is_written(file):
    assert steps(file) == [0, 1, 2, 3, 4]


def test_events_go_by_step_and_names(file):
    names = {"train/loss", "train/accuracy"}
    keep_events(file.parent, lambda step, found: set(found) == names and step < 3)
    assert steps(file) == [0, 1, 2]


@pytest.mark.parametrize("part", ["length", "content", "end"])
def test_what_follows_damage_is_removed(file, part):
    """A record is length (8 bytes), checksum (4), content, checksum (4)."""
    content, at = bytearray(file.read_bytes()), 0
    for _ in range(3):  # the version, steps 1 and 2
        at += 16 + int.from_bytes(content[at : at + 8], "little")
    if part == "end":  # zeros, of a machine that lost its power
        content[at:] = bytes(len(content) - at)
    else:
        content[at + {"length": 0, "content": 20}[part]] ^= 1
    file.write_bytes(content)
    keep_events(file.parent, lambda step, names: True)
    assert steps(file) == [0, 1, 2]
