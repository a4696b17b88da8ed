"""The base class of builders, and listings of the examples that they write."""

import contextlib
import dataclasses
import os
from typing import NamedTuple

from etils import epath

from sparse_tube_vit.datasets.manifest import Row
from sparse_tube_vit.storage import UnreadableFile

#: A class name, or any number of them in a multi-label data set.
Label = str | tuple[str, ...]
#: A class name, and start and end in seconds.
Action = tuple[str, float, float]


class Span(NamedTuple):
    """The part of a video that is a clip.

    Attributes:
        start: Start in seconds.
        end: End in seconds.
        shared: Whether other clips are of the same video.
    """

    start: float
    end: float
    shared: bool = False


class ListedExample(NamedTuple):
    """An example to write.

    Attributes:
        id: Identifier, unique within the split.
        label: Class name, or class names in a multi-label data set.
        source: Argument of the builder's `load`, usually the path of the file.
        span: Where the file may be the whole video, the part that is the clip.
        actions: (class name, start, end) of each action of a video, in seconds.
    """

    id: str
    label: Label
    source: str | os.PathLike
    span: Span | None = None
    actions: tuple[Action, ...] = ()


@dataclasses.dataclass(frozen=True)
class Listing:
    """The contents of a data set before it is written.

    Attributes:
        class_names: Class names in the order of the labels.
        splits: Examples of each split.
        left_out: Rows of files that are not written; their `status` is the reason.
        notes: Remarks for the user, one line each.
    """

    class_names: tuple[str, ...]
    splits: dict[str, list[ListedExample]]
    left_out: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()


class Builder:
    """A data set of encoded images or videos.

    Files are stored as they are encoded, never as frames. Subclasses list the
    examples; `preparing` writes them.

    Attributes:
        name: Name of the data set, such as "ucf101", one of `catalog.BUILDERS`, by
            which other processes import the class.
        kind: "image" or "video", the name of the feature that holds the file.
        multi_label: Whether an example has any number of labels instead of one.
        listing: The examples.
        config: Name of one of several variants, such as "split1", or None.
    """

    name: str
    kind: str
    multi_label = False
    VERSION = "1.0.0"

    def __init__(self, *, listing: Listing, data_dir, config: str | None = None):
        self.listing, self.config = listing, config
        self.data_dir = epath.Path(data_dir)

    @property
    def dataset(self) -> str:
        """The name for `open_split`, such as "ucf101/split1"."""
        return f"{self.name}/{self.config}" if self.config else self.name

    @property
    def directory(self) -> epath.Path:
        """The directory of the prepared data set."""
        return self.data_dir / self.dataset / self.VERSION

    @staticmethod
    def load(source: str) -> bytes:
        """Returns the encoded file of an example, in any process on any machine."""
        return epath.Path(source).read_bytes()


def load(builder: Builder | type[Builder], source) -> bytes:
    """Returns the encoded file of a source.

    Raises:
        UnreadableFile: The file cannot be read.
    """
    with reading(source):
        return builder.load(source)


@contextlib.contextmanager
def reading(source):
    """Raises UnreadableFile where a source's file cannot be read: none is skipped."""
    try:
        yield
    except OSError as error:  # of one file, or the file system for a moment
        raise UnreadableFile(
            f"{source}: {error}. Finished shards are kept: when it can be read again,"
            " run the same command. To leave it out, put an empty file in its place"
        ) from None
