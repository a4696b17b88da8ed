"""Data sets on disk: encoded clips and images with a label and an id, read by index.

`open_split` is the reading side. Worker processes of the input pipeline import it, so
it imports neither jax nor tensorflow, and TFDS only once a data set is opened.
"""

import dataclasses
import functools
import operator
import re
import shlex

import numpy as np
from etils import epath

from sparse_tube_vit.datasets.builders import BUILDERS
from sparse_tube_vit.errors import DatasetError

INFO = "dataset_info.json"  # written last: it marks a prepared data set
UNFINISHED = "preparing."  # prefix of files of a preparation that is not finished


class DatasetNotPrepared(DatasetError):
    """The data set is not where it was looked for."""


class UnknownSplit(DatasetError):
    """The data set has no split of this name."""


class UnsupportedDataset(DatasetError):
    """A TFDS data set that is not labelled images or videos in ArrayRecord."""


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a prepared data set, a random-access source for grain.

    `split[i]` is `{"id": str, "label": int, kind: bytes}` where the bytes are the
    encoded file and `kind` is "video" or "image". In a multi-label data set the label
    is multi-hot, uint8 (C,). Pickles to its few fields; every process opens the files
    itself, on its first read.

    Attributes:
        name: The data set, for example "ucf101/split1".
        split: The split, for example "train".
        directory: The prepared directory.
        kind: "video" or "image".
        class_names: The name of every label, in the order of the labels.
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
        """Shape of an example's label: () or, in a multi-label data set, (C,)."""
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
        # TFDS's own image data sets carry a file name, or no name at all.
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
        # tfds.features.Image would decode; the input pipeline wants the file.
        decoders = {}
        if isinstance(builder.info.features[self.kind], tfds.features.Image):
            decoders = {self.kind: tfds.decode.SkipDecoding()}
        return builder.as_data_source(self.split, decoders=decoders or None)

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k != "_source"}


def open_split(dataset: str, split: str, data_dir, kind: str = "") -> Split:
    """Opens a split of a data set that TFDS has prepared in ArrayRecord.

    Args:
        dataset: Name below `data_dir`, with the TFDS config where there is one and
            the version where the highest is not wanted: "ucf101/split1",
            "video_folder/mine", "imagenet2012/5.1.0".
        split: Split name, or a TFDS slice such as "train[:10%]".
        data_dir: Directory that holds prepared data sets.
        kind: "video" or "image" where it must be of that kind.

    Raises:
        DatasetNotPrepared: Nothing prepared there; says how to prepare it.
        UnknownSplit: No such split; says which there are.
        UnsupportedDataset: It holds no labelled images or videos in ArrayRecord, or
            not those asked for, or TFDS cannot open it.
    """
    directory, info = _open(dataset, data_dir)
    found, label, multi_label = _features(dataset, directory, info)
    if kind and found != kind:
        raise UnsupportedDataset(
            f"{dataset} in {directory} holds {found}s; the config says that its kind is"
            f" {kind!r}"
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
        kind=found,
        class_names=tuple(label.names),
        length=info.splits[split].num_examples,
        multi_label=multi_label,
    )


def split_names(dataset: str, data_dir) -> tuple[str, ...]:
    """The splits of a data set; raises DatasetNotPrepared as `open_split`."""
    _, info = _open(dataset, data_dir)
    return tuple(info.splits)


def _open(dataset: str, data_dir):
    """Returns the prepared directory and TFDS's info."""
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
    except Exception as error:  # of many kinds, as of TFDS, etils and protobuf
        raise UnsupportedDataset(
            f"TFDS cannot open {dataset} in {directory}: {str(error) or repr(error)}."
            " Copy dataset_info.json, features.json and the other files that are no"
            " shards again from where it was prepared, or delete it and prepare it"
            " again"
        ) from error


def prepared_directory(dataset: str, data_dir) -> epath.Path | None:
    """Returns the directory of `dataset`'s highest version, None if not prepared."""
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
    """Returns "video" or "image", the ClassLabel, and whether there are several.

    Raises UnsupportedDataset.
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
    options = {
        "image_folder": f"--name {config or 'NAME'} --images DIR",
        "imagenet2012": "--images DIR",
        "moving_shapes": "",
        "video_folder": f"--name {config or 'NAME'} --videos DIR",
        "ucf101": f"--split {config.removeprefix('split') or 1} --videos DIR"
        " --annotations DIR",
    }.get(name, "--videos DIR --annotations DIR")
    return (
        f"Prepare it with: python -m sparse_tube_vit.prepare {name} {options}".rstrip()
        + f" --data_dir {shlex.quote(str(data_dir))}"
    )
