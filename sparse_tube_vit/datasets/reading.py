"""Reading of prepared data sets: encoded clips and images by index.

Worker processes of the input import this module: it imports neither jax nor tensorflow,
and TFDS only when a data set is opened.
"""

import dataclasses
import functools
import operator
import re
import shlex

import numpy as np
from etils import epath

from sparse_tube_vit.datasets.catalog import BUILDERS, OPTIONS
from sparse_tube_vit.errors import DatasetError

INFO = "dataset_info.json"  # written last: it marks a prepared data set
UNFINISHED = "preparing."  # prefix of files of a preparation that is not finished


class DatasetNotPrepared(DatasetError):
    """There is no prepared data set of this name."""


class UnknownSplit(DatasetError):
    """The data set has no split of this name."""


class UnsupportedDataset(DatasetError):
    """The TFDS data set is not one of labelled images or videos in ArrayRecord."""


@dataclasses.dataclass(frozen=True)
class Split:
    """A split of a prepared data set, a random-access source for grain.

    `split[i]` is the record `{"id": str, "label": int, kind: bytes}`, the encoded file
    by its kind. In a multi-label data set the label is multi-hot, uint8 (C,). A split
    is pickled without open files; every process opens them on its first read.

    Attributes:
        name: Name of the data set, for example "ucf101/split1".
        split: Name of the split, for example "train".
        directory: Directory of the prepared data set.
        kind: "video" or "image".
        class_names: Class names in the order of the labels.
        length: Number of examples.
        multi_label: Whether an example has any number of labels instead of one.
    """

    name: str
    split: str
    directory: str
    kind: str
    class_names: tuple[str, ...]
    length: int
    multi_label: bool = False

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Shape of a label: () or, in a multi-label data set, (C,)."""
        return (len(self.class_names),) if self.multi_label else ()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index) -> dict:
        index = operator.index(index)
        if not 0 <= index < self.length:
            raise IndexError(
                f"example {index} of {self.name} {self.split}, which has {self.length}"
            )
        record = self._source[index]
        # TFDS's own image data sets have a file name, or no name at all.
        name = record.get("id", record.get("file_name", f"{self.split}-{index}"))
        return {
            "id": name.decode() if isinstance(name, bytes) else str(name),
            "label": self._label(record),
            self.kind: record[self.kind],
        }

    def _label(self, record):
        if not self.multi_label:
            return int(record["label"])
        multi_hot = np.zeros(self.label_shape, np.uint8)
        multi_hot[np.asarray(record["labels"], int)] = 1
        return multi_hot

    @functools.cached_property
    def _source(self):
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(self.directory)
        # tfds.features.Image would decode; the input needs the encoded file.
        decoders = {}
        if isinstance(builder.info.features[self.kind], tfds.features.Image):
            decoders = {self.kind: tfds.decode.SkipDecoding()}
        return builder.as_data_source(self.split, decoders=decoders or None)

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k != "_source"}


def open_split(dataset: str, split: str, data_dir, kind: str = "") -> Split:
    """Opens a split of a data set in ArrayRecord, prepared here or by TFDS.

    Args:
        dataset: Name below `data_dir`, with the TFDS config if there is one, and the
            version if it is not the highest: "ucf101/split1", "video_folder/mine",
            "imagenet2012/5.1.0".
        split: Name of the split, or a TFDS slice such as "train[:10%]".
        data_dir: Directory of prepared data sets.
        kind: "video" or "image" if it must be of that kind.

    Raises:
        DatasetNotPrepared: There is no such data set; names the command to prepare it.
        UnknownSplit: There is no such split; names those that there are.
        UnsupportedDataset: The data set is of another kind or format, or TFDS cannot
            open it.
    """
    directory, info = _open(dataset, data_dir)
    stored, label, multi_label = _features(dataset, directory, info)
    if kind and stored != kind:
        raise UnsupportedDataset(
            f"{dataset} in {directory} holds {stored}s; the config says that its kind"
            f" is {kind!r}"
        )
    if split.split("[")[0] not in info.splits:
        raise UnknownSplit(
            f"{dataset} in {directory} has no split {split!r};"
            f" it has {', '.join(info.splits)}"
        )
    return Split(
        name=dataset,
        split=split,
        directory=str(directory),
        kind=stored,
        class_names=tuple(label.names),
        length=info.splits[split].num_examples,
        multi_label=multi_label,
    )


def split_names(dataset: str, data_dir) -> tuple[str, ...]:
    """Returns the names of a data set's splits; raises as `open_split`."""
    _, info = _open(dataset, data_dir)
    return tuple(info.splits)


def _open(dataset: str, data_dir):
    """Returns the directory of a prepared data set, and TFDS's info."""
    directory = prepared_directory(dataset, data_dir)
    if directory is None:
        root = epath.Path(data_dir) / dataset
        if begun := list(root.glob(f"*/{UNFINISHED}*")):
            raise DatasetNotPrepared(
                f"{dataset} is not prepared to the end: give the command that began it"
                f" again, and it goes on. It was begun in {begun[0].parent}"
            )
        raise DatasetNotPrepared(
            f"{dataset} is not prepared: no {INFO} in {root} or a version"
            f" directory below it. {_how_to_prepare(dataset, data_dir)}"
        )
    import tensorflow_datasets as tfds

    try:
        return directory, tfds.builder_from_directory(directory).info
    except Exception as error:  # whatever TFDS, etils or protobuf raise
        raise UnsupportedDataset(
            f"TFDS cannot open {dataset} in {directory}: {str(error) or repr(error)}."
            " Copy dataset_info.json, features.json and the other files that are no"
            " shards again from where it was prepared, or delete it and prepare it"
            " again"
        ) from error


def prepared_directory(dataset: str, data_dir) -> epath.Path | None:
    """Returns the directory of a data set's highest prepared version, or None."""
    root = epath.Path(data_dir) / dataset
    if (root / INFO).exists():
        return root
    if not root.is_dir():
        return None
    versions = [
        d
        for d in root.iterdir()
        if re.fullmatch(r"\d+\.\d+\.\d+", d.name) and (d / INFO).exists()
    ]
    return max(
        versions, key=lambda d: [int(n) for n in d.name.split(".")], default=None
    )


def _features(dataset: str, directory: epath.Path, info):
    """Returns the kind, the ClassLabel, and whether the data set is multi-label.

    Raises:
        UnsupportedDataset: The data set has other features, or another format.
    """
    import tensorflow_datasets as tfds

    kinds = [kind for kind in ("video", "image") if kind in info.features]
    label, labels = (dict(info.features).get(key) for key in ("label", "labels"))
    multi_label = label is None and isinstance(labels, tfds.features.Sequence)
    if multi_label:
        label = labels.feature
    if not kinds or not isinstance(label, tfds.features.ClassLabel):
        raise UnsupportedDataset(
            f"{dataset} in {directory} has the features {', '.join(info.features)};"
            " a `label` (ClassLabel) or `labels` (Sequence of ClassLabel), and a"
            " `video` or an `image` are needed"
        )
    feature = info.features[kinds[0]]
    if not isinstance(feature, tfds.features.Image) and feature.shape != ():
        raise UnsupportedDataset(
            f"{dataset} in {directory} stores `{kinds[0]}` as {feature}, not as the"
            " encoded file; prepare it with python -m sparse_tube_vit.prepare"
        )
    if info.file_format.value != "array_record":
        raise UnsupportedDataset(
            f"{dataset} in {directory} is stored as {info.file_format.value}; prepare"
            ' it again with TFDS\'s file_format="array_record"'
        )
    return kinds[0], label, multi_label


def _how_to_prepare(dataset: str, data_dir) -> str:
    name, _, config = dataset.partition("/")
    if name not in BUILDERS:
        return (
            f"Prepare {name} with TFDS (file_format='array_record') or use one of"
            f" {', '.join(BUILDERS)}."
        )
    required, _ = OPTIONS.get(name, ((), ()))
    values = {"name": config or "NAME"}
    options = [f"--{option} {values.get(option, 'DIR')}" for option in required]
    if name == "ucf101":
        options.insert(0, f"--split {config.removeprefix('split') or 1}")
    command = ["python -m sparse_tube_vit.prepare", name, *options]
    return (
        f"Prepare it with: {' '.join(command)} --data_dir {shlex.quote(str(data_dir))}"
    )
