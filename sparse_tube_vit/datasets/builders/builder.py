"""What all builders share: examples of an id, a label and an encoded file."""

import dataclasses
import os
from typing import NamedTuple

import tensorflow_datasets as tfds
from etils import epath

from sparse_tube_vit.datasets.manifest import Row
from sparse_tube_vit.storage import UnreadableFile

#: A class name, or any number of them where a data set is multi-label.
Label = str | tuple[str, ...]


class Example(NamedTuple):
    """An example that is to be written.

    Attributes:
        id: Unlike every other of its split.
        label: Its class, or its classes where the data set is multi-label.
        source: What the builder's `load` gives the encoded file of; mostly its path.
    """

    id: str
    label: Label
    source: str | os.PathLike


@dataclasses.dataclass(frozen=True)
class Listing:
    """What was found to be written, before anything is.

    Attributes:
        class_names: In the order of the labels.
        splits: For each split its examples.
        left_out: What was not taken; `status` says why.
        notes: What else to tell whoever prepares it.
    """

    class_names: tuple[str, ...]
    splits: dict[str, list[Example]]
    left_out: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()


class Builder:
    """A data set that can be written, of encoded images or videos.

    The bytes of the files are stored, never frames. Subclasses say what the examples
    are; `writing.write` writes them as TFDS would, and TFDS reads them.

    Attributes:
        name: Of the data set, such as "ucf101".
        kind: "image" or "video", the name of the feature that holds the file.
        multi_label: Whether an example has any number of labels instead of one.
        listing: The examples.
        config: Which of several data sets of that name, such as "split1", or None.
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
        """The name to open it by, such as "ucf101/split1"."""
        return f"{self.name}/{self.config}" if self.config else self.name

    @property
    def directory(self) -> epath.Path:
        """Where it is written."""
        return self.data_dir / self.dataset / self.VERSION

    @staticmethod
    def load(source: str) -> bytes:
        """Returns the encoded file of an example, in any process on any machine."""
        return epath.Path(source).read_bytes()

    def info(self):
        """Returns a tfds.core.DatasetInfo without splits."""
        import numpy as np

        label = tfds.features.ClassLabel(names=self.listing.class_names)
        info = tfds.core.DatasetInfo(
            builder=tfds.core.DatasetIdentity(
                name=self.name,
                config_name=self.config,
                version=tfds.core.Version(self.VERSION),
                data_dir=os.fspath(self.directory),
                module_name=type(self).__module__,
            ),
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    **(
                        {"labels": tfds.features.Sequence(label)}
                        if self.multi_label
                        else {"label": label}
                    ),
                    self.kind: tfds.features.Tensor(shape=(), dtype=np.object_),
                }
            ),
        )
        info.set_file_format("array_record")
        return info


def load(builder: Builder | type[Builder], source) -> bytes:
    """The encoded file that the builder has for a source; raises UnreadableFile."""
    try:
        return builder.load(source)
    except OSError as error:
        # It may be one file, or the whole file system for a moment: not to be skipped.
        raise UnreadableFile(
            f"{source}: {error}. Finished shards are kept: when it can be read again,"
            " run the same command. To leave it out, put an empty file in its place"
        ) from None
