"""Reading of prepared data sets: encoded clips and images by index.

Worker processes of the input import this module: it imports neither jax nor tensorflow,
and TFDS only when a data set is opened.
"""

import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
import operator
import re
import shlex
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from etils import epath

from sparse_tube_vit.datasets import manifest
from sparse_tube_vit.datasets.catalog import BUILDERS, OPTIONS
from sparse_tube_vit.datasets.processes import raise_limit_of_open_files
from sparse_tube_vit.datasets.times import ACTIONS, SPAN
from sparse_tube_vit.errors import DatasetError
from sparse_tube_vit.log import log
from sparse_tube_vit.storage import (
    UnreachableStorage,
    entries,
    file_size,
    is_remote,
    is_unavailable,
)

INFO = "dataset_info.json"  # written last: it marks a prepared data set
UNFINISHED = "preparing."  # prefix of files of a preparation that is not finished


class DatasetNotPrepared(DatasetError):
    """There is no prepared data set of this name."""


class UnknownSplit(DatasetError):
    """The data set has no split of this name."""


class UnsupportedDataset(DatasetError):
    """The TFDS data set is not one of labelled images or videos in ArrayRecord."""


class WrongClassNames(DatasetError):
    """The names of a data set's classes are absent, too few or too many."""


class UnreadableRecord(DatasetError, RuntimeError):
    """A record or its shard is damaged, or its label is no class."""


@dataclasses.dataclass(frozen=True)
class Split:
    """A split of a prepared data set, a random-access source for grain.

    `split[i]` is the record `{"id": str, "label": int, kind: bytes}`, the encoded file
    by its kind. In a multi-label data set the label is multi-hot, uint8 (C,). A split
    is pickled without open files; every process opens shards as it reads them, and
    nothing else. Reading a record raises UnreadableRecord if it is damaged or its label
    is no class.

    A record of a part of a longer video also has `SPAN`, (start, end) in seconds, and
    one of a data set that is `timed` has `ACTIONS`, float32 (n, 3).

    Attributes:
        name: Name of the data set, for example "ucf101/split1".
        split: Name of the split, for example "train".
        directory: Directory of the prepared data set.
        kind: "video" or "image".
        class_names: Class names in the order of the labels.
        shards: TFDS's instructions which records of which files are the split's.
        parse: Turns the bytes of a record into its features, as TFDS.
        multi_label: Whether an example has any number of labels instead of one.
        timed: Whether the times of labels are stored.
    """

    name: str
    split: str
    directory: str
    kind: str
    class_names: tuple[str, ...]
    shards: tuple
    parse: Callable[[bytes], dict] = dataclasses.field(compare=False, repr=False)
    multi_label: bool = False
    timed: bool = False
    _opened: dict = dataclasses.field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Shape of a label: () or, in a multi-label data set, (C,)."""
        return (len(self.class_names),) if self.multi_label else ()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index) -> dict:
        record = self.read(index)
        if not self.multi_label and not 0 <= record["label"] < len(self.class_names):
            raise self._unusable(
                index,
                f"has the label {record['label']}, but the {len(self.class_names)}"
                " classes are numbered from 0",
                "Neither training nor evaluation can use it.",
            )
        return record

    def read(self, index) -> dict:
        """Returns a record as `split[index]`, also where its label is no class.

        TFDS gives examples without a label the label -1.

        Raises:
            UnreadableRecord: It is damaged.
            UnreachableStorage: It exists, but cannot be fetched: a retry may succeed.
        """
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(
                f"example {index} of {self.name} {self.split}, which has {len(self)}"
            )
        try:
            return self._example(index, self.parse(self._encoded(index)))
        except Exception as error:  # whatever array_record, protobuf or TFDS raise
            if is_unavailable(error):
                raise UnreachableStorage(
                    f"{self.name} in {self.directory}: {self.split} record {index} "
                    f"cannot be read: {error}"
                ) from error
            raise self._unreadable(index, error) from error

    def _example(self, index, record):
        # TFDS's own image data sets have a file name, or no name at all.
        name = record.get("id", record.get("file_name", f"{self.split}-{index}"))
        times = {}
        if len(span := record.get(SPAN, ())):
            times[SPAN] = tuple(map(float, span))
        if self.timed:
            times[ACTIONS] = np.asarray(record[ACTIONS], np.float32)
        return {
            "id": name.decode() if isinstance(name, bytes) else str(name),
            "label": self._label(record),
            **times,
            self.kind: record[self.kind],
        }

    def _label(self, record):
        if not self.multi_label:
            return int(record["label"])
        multi_hot, labels = np.zeros(self.label_shape, np.uint8), record["labels"]
        for label in np.asarray(labels, int):
            if not 0 <= label < len(self.class_names):
                raise ValueError(f"its label {label} is no class")
            multi_hot[label] = 1
        return multi_hot

    def shard(self, index: int) -> str:
        """Returns in words which record of which shard has an index."""
        number, index = self._locate(index)
        shard = self.shards[number]
        return f"number {shard.skip + index} of {epath.Path(shard.filename).name}"

    def fingerprint(self) -> dict:
        """Returns version, number of examples and their digest by the manifest, if any.

        A data set that is prepared again from other files has others. TFDS's own have
        no manifest.

        Raises:
            BadManifest: The manifest is damaged.
        """
        version = epath.Path(self.directory).name
        return {"version": version, "examples": len(self), "digest": self._digest}

    @functools.cached_property
    def _digest(self):
        path = epath.Path(self.directory) / manifest.NAME
        return path.exists() and manifest.digest(path)

    def digests(self) -> dict:
        """Returns `fingerprint`, and a digest of records, by which copies are compared.

        The digest of `records` covers the size and the first record of every shard. In
        a bucket there is one copy, and no such digest.

        Raises:
            UnreadableRecord: One of these records is damaged, or a shard is absent.
        """
        if is_remote(self.directory):
            return self.fingerprint()
        every, firsts = hashlib.sha256(), [0, *self._ends[:-1]]

        def size_of(shard, first):
            try:
                return file_size(shard.filename)
            except OSError as error:
                raise self._unreadable(first, error) from error

        with ThreadPoolExecutor(16) as pool:  # a network's file system may be slow
            sizes = pool.map(size_of, self.shards, firsts)
            for shard, size in zip(self.shards, sizes, strict=True):
                name = epath.Path(shard.filename).name
                every.update(f"{name} {shard.take} {size}\n".encode())
            for start in range(0, len(firsts), 64):
                # A copy closes its shards as it goes: a system has few open files.
                copy = dataclasses.replace(self)
                for record in pool.map(copy.read, firsts[start : start + 64]):
                    every.update(f"{record['id']} {record['label']}\n".encode())
                    every.update(record[self.kind])
        return self.fingerprint() | {"records": every.hexdigest()}

    def _unreadable(self, index, error):
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        return self._unusable(
            index,
            f"cannot be read: {why}",
            "Copy that shard again from where it was prepared.",
        )

    def _unusable(self, index, why, advice):
        return UnreadableRecord(
            f"{self.name} in {self.directory}: {self.split} record {index},"
            f" {self.shard(index)}, {why}. {advice} To list all such records:"
            f" {self._verify}"
        )

    @property
    def _verify(self):
        directory, parts = epath.Path(self.directory), epath.Path(self.name).parts
        version = 0 if directory.parts[-len(parts) :] == parts else 1
        data_dir = directory.parents[len(parts) - 1 + version]
        return (
            f"sparse-tube-vit verify {self.name}"
            f" --data_dir {shlex.quote(str(data_dir))}"
        )

    @functools.cached_property
    def _ends(self):
        """Number of examples up to the end of each shard."""
        return [*itertools.accumulate(shard.take for shard in self.shards)]

    def _locate(self, index):
        """Returns the shard that has an example, and which one of the shard's it is."""
        number = bisect.bisect_right(self._ends, index)
        return number, index - (self._ends[number - 1] if number else 0)

    def _encoded(self, index):
        number, index = self._locate(index)
        # One source of all shards would open them one after the other, and threads wait
        # for each other's.
        source = self._opened.get(number)
        return (source or self._open(number))[index]

    def _open(self, number):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        raise_limit_of_open_files()
        source = ArrayRecordDataSource([self.shards[number]])
        return self._opened.setdefault(number, source)  # another thread's, if first

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_opened": {}}


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
        UnknownSplit: There is no such split, or it has no examples.
        UnsupportedDataset: The data set is of another kind or format, or TFDS cannot
            or must not open it.
        WrongClassNames: The names of the classes are absent, too few or too many.
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
    if not (shards := tuple(info.splits[split].file_instructions)):
        raise UnknownSplit(f"{dataset} in {directory} has no examples in {split!r}")
    return Split(
        name=dataset,
        split=split,
        directory=str(directory),
        kind=stored,
        class_names=tuple(label.names),
        shards=shards,
        parse=_parser(info.features),
        multi_label=multi_label,
        timed=multi_label and ACTIONS in info.features,
    )


def _parser(features):
    """Returns what TFDS does with a record's bytes, the file in it still encoded."""
    import tensorflow_datasets as tfds

    decoders = {  # the example stays encoded; other pictures are not used
        name: tfds.decode.SkipDecoding()
        for name, feature in features.items()
        if isinstance(feature, tfds.features.Image)
    }
    return functools.partial(features.deserialize_example_np, decoders=decoders)


def unfinished_files(directory: epath.Path) -> list[epath.Path]:
    """Returns the files of a preparation in a directory that is not finished."""
    return [path for path in entries(directory) if path.name.startswith(UNFINISHED)]


def split_names(dataset: str, data_dir) -> tuple[str, ...]:
    """Returns the names of a data set's splits; raises as `open_split`."""
    _, info = _open(dataset, data_dir)
    return tuple(info.splits)


def _open(dataset: str, data_dir):
    """Returns the directory of a prepared data set, and TFDS's info."""
    directory = prepared_directory(dataset, data_dir)
    if directory is None:
        root = epath.Path(data_dir) / dataset
        if begun := [x for version in entries(root) for x in unfinished_files(version)]:
            raise DatasetNotPrepared(
                f"{dataset} is not prepared to the end: give the command that began it"
                f" again, and it goes on. It was begun in {begun[0].parent}"
            )
        raise DatasetNotPrepared(
            f"{dataset} is not prepared: no {INFO} in {root} or a version"
            f" directory below it. {_how_to_prepare(dataset, data_dir)}"
        )
    try:
        return directory, open_builder(directory).info
    except UnsupportedDataset:
        raise
    except Exception as error:  # whatever TFDS, etils or protobuf raise
        raise UnsupportedDataset(
            f"TFDS cannot open {dataset} in {directory}: {str(error) or repr(error)}."
            " Copy dataset_info.json, features.json and the other files that are no"
            " shards again from where it was prepared, or delete it and prepare it"
            " again"
        ) from error


def open_builder(directory):
    """Returns TFDS's builder of a prepared data set.

    Raises:
        UnsupportedDataset: As for `check_features`.
        Exception: Whatever TFDS raises on files that are damaged or absent.
    """
    import tensorflow_datasets as tfds

    check_features(directory)
    return tfds.builder_from_directory(directory)


_TFDS = "tensorflow_datasets."
# Keys of features.json whose values TFDS imports, in the spellings that it reads.
_CLASS_KEYS = {
    "features.json": ("pythonClassName", "python_class_name", "type"),
    INFO: ("pythonClassName", "python_class_name"),
}


def check_features(directory) -> None:
    """Checks that TFDS imports only its own modules to read a data set.

    TFDS imports whatever class the description of a data set names: a foreign data set
    could run a module beside it.

    Raises:
        UnsupportedDataset: A feature is of a class that is not TFDS's.
        ValueError: A file is not JSON.
    """
    for name, keys in _CLASS_KEYS.items():
        path = epath.Path(directory) / name
        unvisited = [json.loads(path.read_text())] if path.exists() else []
        while unvisited:
            value = unvisited.pop()
            if isinstance(value, list):
                unvisited += value
            elif isinstance(value, dict):
                unvisited += value.values()
                for key in keys:
                    cls = value.get(key, "")
                    own = not isinstance(cls, str) or cls.startswith(_TFDS)
                    if cls and not own:
                        raise UnsupportedDataset(
                            f"{path} has a feature of class {cls}, which is not"
                            " TFDS's own: reading the data set would run foreign code."
                            " Prepare it yourself"
                        )


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
            " encoded file; prepare it with sparse-tube-vit prepare"
        )
    _check_names(dataset, directory, label, "labels" if multi_label else "label")
    if info.file_format.value != "array_record":
        raise UnsupportedDataset(
            f"{dataset} in {directory} is stored as {info.file_format.value}; prepare"
            ' it again with TFDS\'s file_format="array_record"'
        )
    return kinds[0], label, multi_label


def _check_names(dataset, directory, label, key):
    """Raises WrongClassNames unless TFDS has read a name of its own for every class."""
    path = directory / f"{key}.labels.txt"
    if not path.exists():
        if dataset.partition("/")[0] not in BUILDERS:
            log.warning("%s has no class names: its classes have numbers", dataset)
            return
        raise WrongClassNames(
            f"{path} is absent, which names the {label.num_classes} classes of"
            f" {dataset}. {_COPY_NAMES}"
        )
    try:
        names = [line.strip() for line in path.read_text().split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise WrongClassNames(f"{path} is damaged: {error}. {_COPY_NAMES}") from None
    if names != label.names or len({*names}) != label.num_classes:
        raise WrongClassNames(
            f"{path} has {len(names)} class names, {len({*names})} different ones, but"
            f" {dataset} has {label.num_classes} classes. {_COPY_NAMES}"
        )


_COPY_NAMES = (
    "Copy it again from where the data set was prepared, or delete the data set and"
    " prepare it again"
)


def _how_to_prepare(dataset: str, data_dir) -> str:
    name, _, config = dataset.partition("/")
    if name not in BUILDERS:
        return (
            f"Prepare {name} with TFDS (file_format='array_record') or use one of"
            f" {', '.join(BUILDERS)}."
        )
    made = ""
    if name.endswith("_folder") and re.search(r"-[0-9a-f]{8}$", config):
        made = (
            f"If configs/finetune.py made it of a folder, copy {data_dir}/{dataset} "
            "from where that ran, or train on the folder here. Else "
        )
    required, _ = OPTIONS[name]
    values = {"name": config or "NAME"}
    options = [f"--{option} {values.get(option, 'DIR')}" for option in required]
    if name == "ucf101":
        split = re.match(r"split(\d)$", config)
        options.insert(0, f"--split {split[1] if split else 1}")
    command = ["sparse-tube-vit prepare", name, *options]
    command += ["--data_dir", shlex.quote(str(data_dir))]
    prepare = "prepare" if made else "Prepare"
    return f"{made}{prepare} it with: {' '.join(command)}"
