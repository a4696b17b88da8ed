"""What all builders share: labelled encoded files, written by TFDS as ArrayRecord."""

import abc
import collections
import contextlib
import dataclasses
import fcntl
import functools
import io
import pathlib
import sys
import tempfile
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

#: A class name, or any number of them where a data set is multi-label.
Label = str | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Listing:
    """What was found to be written, before anything is.

    Attributes:
        class_names: In the order of the labels.
        splits: For each split its examples as (id, label, file).
        left_out: What was not taken, as (name, reason).
        notes: What else to tell whoever prepares it.
    """

    class_names: tuple[str, ...]
    splits: dict[str, list[tuple[str, Label, pathlib.Path]]]
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


class EncodedExamples(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Examples of an id, a label and an encoded image or video.

    The bytes of the file are stored as they are, never frames. Subclasses say what
    the examples are; they are not registered with TFDS, which has a ucf101 of its own.
    One whose examples have any number of labels sets `multi_label`.
    """

    multi_label = False

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded. TFDS would look for checksums beside this module, and
    # needs importlib_resources for that, which it does not install on Python 3.11.
    url_infos = None

    def __init__(self, **kwargs):
        with _quiet():  # TFDS warns of what is not there yet: directory, config.
            super().__init__(**kwargs)
        # How many examples of each class this process has written, by split.
        self.counts: dict[str, collections.Counter] = {}

    @property
    @abc.abstractmethod
    def kind(self) -> str:
        """ "image" or "video", the name of the feature that holds the file."""

    @property
    @abc.abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of their labels."""

    @property
    @abc.abstractmethod
    def split_names(self) -> tuple[str, ...]:
        """The splits that `examples` knows."""

    @abc.abstractmethod
    def examples(self, split: str) -> Iterator[tuple[str, Label, bytes]]:
        """Yields (id, label, encoded file) for every example of the split."""

    def _info(self) -> tfds.core.DatasetInfo:
        encoded_file = tfds.features.Tensor(shape=(), dtype=np.object_)
        label = tfds.features.ClassLabel(names=self.class_names)
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    **(
                        {"labels": tfds.features.Sequence(label)}
                        if self.multi_label
                        else {"label": label}
                    ),
                    self.kind: encoded_file,
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.split_names}

    def _generate_examples(self, split):
        self.counts[split] = collections.Counter()
        key = "labels" if self.multi_label else "label"
        for name, label, encoded in self.examples(split):
            self.counts[split].update(label if self.multi_label else [label])
            yield name, {"id": name, key: label, self.kind: encoded}


class ListedFiles(EncodedExamples, skip_registration=True):
    """Examples that lie in files; a `config` becomes part of the data set's path."""

    def __init__(self, *, listing: Listing, data_dir, config: str | None = None):
        self.listing = listing
        # TFDS's own way of pickling a builder knows nothing of the listing.
        self._again = functools.partial(
            type(self), config=config, listing=listing, data_dir=data_dir
        )
        if config is not None:
            config = tfds.core.BuilderConfig(name=config)
        super().__init__(config=config, data_dir=data_dir)

    def __reduce__(self):
        return self._again, ()

    @property
    def class_names(self):
        return self.listing.class_names

    @property
    def split_names(self):
        return tuple(self.listing.splits)

    def examples(self, split):
        for name, label, path in self.listing.splits[split]:
            yield name, label, path.read_bytes()


def write(builder: EncodedExamples) -> bool:
    """Writes the data set as ArrayRecord; safe against other processes doing the same.

    Returns:
        True if it was written, False if it was there already.
    """
    directory = pathlib.Path(builder.data_dir)
    directory.parent.mkdir(parents=True, exist_ok=True)
    # TFDS writes into a directory of random name and renames it, but the name comes
    # from `random`, which two forks or two seeded processes share: one at a time.
    with open(directory.parent / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if directory.exists():
            return False
        with tempfile.TemporaryDirectory() as downloads, _quiet():
            builder.download_and_prepare(
                download_dir=downloads, file_format="array_record"
            )
    return True


@contextlib.contextmanager
def _quiet():
    """Keeps TFDS's announcements off stdout, and its bars off what is no terminal."""
    tfds.display_progress_bar(sys.stderr.isatty())
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
