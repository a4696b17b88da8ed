"""Verification of a prepared data set: every record, every frame.

Each record is read, decoded as `prepare` did, and compared with the manifest: files,
labels and their order, counts. Problems are listed by example, with advice.
"""

import collections
import dataclasses
import enum
import functools
import itertools
from collections.abc import Iterator

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from sparse_tube_vit.datasets import manifest, processes, reading
from sparse_tube_vit.datasets.catalog import SORTED
from sparse_tube_vit.datasets.manifest import OK, Row
from sparse_tube_vit.datasets.preparing.progress import Progress
from sparse_tube_vit.datasets.reading import Split
from sparse_tube_vit.datasets.times import SPAN
from sparse_tube_vit.storage import UnreachableStorage
from sparse_tube_vit.video import inspection

RECORDS_A_TASK = {"video": 8, "image": 256}

_AGAIN = "delete the data set and prepare it again"
_COPY = f"Copy the shards again from where they were prepared, or {_AGAIN}."
_COPY_BOTH = (
    "Shards and manifest.csv are of two preparations: copy both again from where they"
    f" were prepared, or {_AGAIN}."
)


class Problem(enum.Enum):
    """A kind of problem: description in the plural, advice, and "error" or "warning".

    An error means that the data set is not what was prepared; a warning, that it is
    unusual.
    """

    def __init__(self, description: str, advice: str, severity: str = "error"):
        self.description, self.advice = description, advice
        self.is_error = severity == "error"

    OTHER_COUNT = "shards that do not hold what dataset_info.json says", _COPY
    UNREADABLE = "records that cannot be read", _COPY
    UNDECODABLE = (
        "examples that do not decode",
        f"Mend or remove their files, then {_AGAIN}.",
    )
    OTHER_FILE = "examples whose file is not that of the manifest", _COPY_BOTH
    NO_ROW = "records that are no example of the manifest", _COPY_BOTH
    NO_RECORD = (
        "examples of the manifest that are in no record",
        f"Their records cannot be read, or are of another preparation. {_COPY}",
    )
    OTHER_FRAMES = (
        "examples that decode otherwise than when they were prepared",
        "Their files are as prepared, but another FFmpeg reads them: install PyAV as in"
        f" requirements.txt, or {_AGAIN}.",
    )
    OTHER_LABEL = (
        "examples that have another label than in the manifest",
        f"One of the two was changed since: {_AGAIN}.",
    )
    OTHER_ORDER = (
        "labels that stand for another class than in the manifest",
        "The class names beside dataset_info.json were changed, and what is predicted"
        " would have the wrong name: copy them from where they were prepared, or"
        f" {_AGAIN}.",
    )
    NOT_SORTED = "class names out of sorted order", f"To have it, {_AGAIN}."
    SAME_ID = (
        "ids that are there more than once",
        f"Give files names of their own, then {_AGAIN}.",
    )
    NO_MANIFEST = (
        "no manifest",
        "TFDS itself prepared it: files, labels and what is missing could not be"
        " compared.",
        "warning",
    )
    NO_LABEL = (
        "examples without a label",
        "They can be used for neither training nor evaluation.",
        "warning",
    )
    NO_EXAMPLE = (
        "classes without an example in a split",
        "Expected where a part of the data set was prepared.",
        "warning",
    )
    LEAK = (
        "files that are in several splits",
        "Training examples are also tested on: remove them from one split, or say so "
        "beside the accuracy.",
        "warning",
    )
    DUPLICATE = (
        "files that are in a split more than once",
        "Each copy counts.",
        "warning",
    )


@dataclasses.dataclass
class Verification:
    """The result of verifying a data set.

    Attributes:
        name: Name of the data set, for example "ucf101/split1".
        splits: All of its splits, train first.
        counts: Lines with the numbers of classes, examples and frames.
        problems: For each problem its places.
        first_examples: For each class its first example that decodes, of train if there
            is one: split, index and row.
    """

    name: str
    splits: tuple[Split, ...]
    counts: list[str] = dataclasses.field(default_factory=list)
    problems: dict[Problem, list[str]] = dataclasses.field(default_factory=dict)
    first_examples: dict[str, tuple[Split, int, Row]] = dataclasses.field(
        default_factory=dict
    )

    @property
    def kind(self) -> str:
        """Kind of the examples, "video" or "image"."""
        return self.splits[0].kind

    @property
    def directory(self) -> epath.Path:
        """The directory of the prepared data set."""
        return epath.Path(self.splits[0].directory)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of the labels."""
        return self.splits[0].class_names

    def add(self, problem: Problem, place: str) -> None:
        """Adds a place where there is a problem."""
        self.problems.setdefault(problem, []).append(place)

    @property
    def sections(self) -> list[tuple[str, str, list[str]]]:
        """(heading, advice, places) of each problem, errors first."""
        ordered = sorted(self.problems.items(), key=lambda item: not item[0].is_error)
        return [
            (
                f"{'wrong' if p.is_error else 'warning'}: {p.description}"
                f" ({len(places):,})",
                p.advice,
                places,
            )
            for p, places in ordered
        ]

    @property
    def errors(self) -> int:
        """Number of places with an error."""
        return sum(
            len(places) for problem, places in self.problems.items() if problem.is_error
        )

    def __str__(self):
        lines = [f"{self.name} in {self.directory}", *(f"  {c}" for c in self.counts)]
        for heading, advice, places in self.sections:
            lines += [f"  {heading}. {advice}", *(f"    {place}" for place in places)]
        return "\n".join(lines)


def verify(dataset: str, data_dir, workers: int = 0) -> Verification:
    """Decodes a prepared data set and compares it with its manifest.

    Args:
        dataset: Name as for `reading.open_split`.
        data_dir: Directory of prepared data sets.
        workers: Number of processes that decode; 0: this one.

    Raises:
        DatasetNotPrepared, UnsupportedDataset: As for `reading.open_split`.
        BadManifest: The manifest cannot be read.
        WorkerDied: A process that decodes was killed.
    """
    names = reading.split_names(dataset, data_dir)
    names = sorted(names, key=lambda name: name != "train")  # train first
    splits = (reading.open_split(dataset, name, data_dir) for name in names)
    result = Verification(dataset, tuple(splits))
    path = result.directory / manifest.NAME
    # Read first, so that a bad manifest is reported before hours of decoding.
    listed = list(manifest.read(path)) if path.exists() else None
    _check_order(result)
    _check_shards(result)
    rows = list(_decode(result, workers))
    _count(result, rows)
    for (split, name), n in collections.Counter((r.split, r.id) for r in rows).items():
        if n > 1:
            result.add(Problem.SAME_ID, f"{split} {name}: {n} times")
    if listed is None:
        result.add(Problem.NO_MANIFEST, str(path))
    else:
        _compare(result, rows, listed)
    _find_duplicates(result, rows)
    return result


def _check_order(result):
    names = result.class_names
    falls = [i for i, (a, b) in enumerate(itertools.pairwise(names)) if a > b]
    order = "in an order of their own" if falls else "in sorted order"
    result.counts.append(f"{len(names):,} classes, {order}")
    if result.name.partition("/")[0] in SORTED:
        for i in falls:
            place = f"label {i} is {names[i]!r}, label {i + 1} is {names[i + 1]!r}"
            result.add(Problem.NOT_SORTED, place)


def _check_shards(result):
    splits = reading.open_builder(result.directory).info.splits
    for split in splits.values():
        for path, expected in zip(split.filepaths, split.shard_lengths, strict=True):
            try:
                records = ArrayRecordReader(str(path)).num_records()
            except Exception as error:  # array_record has no errors of its own
                result.add(Problem.OTHER_COUNT, f"{path.name}: {error}")
                continue
            if records != expected:
                place = f"{path.name}: {records} records, not {expected}"
                result.add(Problem.OTHER_COUNT, place)


def _decode(result, workers) -> Iterator[Row]:
    """Yields the row of every record that can be read."""
    tasks = [
        (split, range(len(split))[start : start + RECORDS_A_TASK[split.kind]])
        for split in result.splits
        for start in range(0, len(split), RECORDS_A_TASK[split.kind])
    ]
    total = sum(map(len, result.splits))
    with Progress(total, f" {result.kind}s", f"Decoding {result.name}") as progress:
        of_tasks = processes.run(_rows, tasks, workers, progress.update)
        for (split, indices), rows in zip(tasks, of_tasks, strict=True):
            for index, row in zip(indices, rows, strict=True):
                if isinstance(row, str):
                    place = f"{split.split} record {index}: {row}"
                    place += f" ({split.shard(index)})"
                    result.add(Problem.UNREADABLE, place)
                    continue
                if row.status != OK:
                    place = f"{row.split} {row.id}: {row.status}"
                    result.add(Problem.UNDECODABLE, place)
                else:
                    for label in _labels(row):
                        result.first_examples.setdefault(label, (split, index, row))
                yield row


@functools.cache
def open_once(split: Split) -> Split:
    """Returns the first equal split, whose files are open: tasks hold copies."""
    return split


def _rows(task: tuple[Split, range], count) -> list[Row | str]:
    """Returns the row of each record, or the error in reading it."""
    split, rows = open_once(task[0]), []
    for index in task[1]:
        try:
            example = split.read(index)
        except (reading.UnreadableRecord, UnreachableStorage) as error:
            rows.append(f"{type(error.__cause__).__name__}: {error.__cause__}")
        else:
            label, encoded = example["label"], example[split.kind]
            label = _class_names(split, label)
            row = Row.of(split.split, example["id"], label, encoded, split.kind)
            rows.append(dataclasses.replace(row, span=example.get(SPAN)))
        count()
    return rows


def _class_names(split, label):
    """Returns a label as the manifest has it; None if it is no class."""
    if split.multi_label:
        return tuple(split.class_names[i] for i in np.flatnonzero(label))
    return split.class_names[label] if 0 <= label < len(split.class_names) else None


def _labels(row: Row) -> tuple[str, ...]:
    if row.label is None:
        return ()
    return row.label if isinstance(row.label, tuple) else (row.label,)


def _count(result, rows):
    by_split = collections.defaultdict(list)
    for row in rows:
        by_split[row.split].append(row)
    for split in result.splits:
        rows = by_split[split.split]
        per_class = dict.fromkeys(split.class_names, 0)
        for row in rows:
            for label in _labels(row):
                per_class[label] += 1
        line = (
            f"{split.split}: {len(split):,} {split.kind}s,"
            f" {min(per_class.values()):,} to {max(per_class.values()):,} a class"
        )
        if split.kind == "video":
            frames = sum(row.decoded_frames or 0 for row in rows)
            minutes = sum(row.seconds or 0 for row in rows) / 60
            line += f"; {frames:,} frames, {minutes:,.1f} minutes"
        result.counts.append(line)
        for name, count in per_class.items():
            if not count and any(per_class.values()):
                result.add(Problem.NO_EXAMPLE, f"{split.split}: {name}")
        if without := sum(not _labels(row) for row in rows):
            result.add(Problem.NO_LABEL, f"{split.split}: {without:,} examples")


def _compare(result, rows, listed):
    """Compares rows of decoded records with those of the manifest."""
    left_out = sum(row.status != OK for row in listed)
    result.counts.append(
        f"manifest: {len(listed) - left_out:,} examples, {left_out:,} left out"
    )
    expected = {
        (r.split, r.id): r for r in sorted(listed, key=lambda r: r.status == OK)
    }
    pairs = []
    for row in rows:
        place, other = f"{row.split} {row.id}", expected.pop((row.split, row.id), None)
        if other is None:
            result.add(Problem.NO_ROW, place)
        elif other.status != OK:
            result.add(Problem.NO_ROW, f"{place}: left out there, {other.status}")
        else:
            pairs.append((row, other))
    for row in expected.values():
        if row.status == OK:
            result.add(Problem.NO_RECORD, f"{row.split} {row.id}")
    for row, other in pairs:
        place = f"{row.split} {row.id}"
        if row.sha256 != other.sha256:
            place += f": SHA-256 {row.sha256}, not {other.sha256}"
            result.add(Problem.OTHER_FILE, place)
        elif row.status == OK:
            differences = [
                f"{column} {getattr(row, column)}, not {getattr(other, column)}"
                for column in inspection.DECODED
                if getattr(row, column) != getattr(other, column)
            ]
            if differences:
                result.add(Problem.OTHER_FRAMES, f"{place}: {'; '.join(differences)}")
    _compare_labels(result, pairs)


def _compare_labels(result, pairs):
    """Finds classes with another name in the manifest, then examples of other labels.

    Examples of such a class count once, as the class.
    """
    listed = collections.defaultdict(collections.Counter)
    for row, other in pairs:
        listed[row.label][other.label] += 1
    renamed = set()
    for i, name in enumerate(result.class_names):
        names = listed.get(name, ())
        if len(names) == 1 and name not in names:
            ((other, count),) = names.items()
            place = f"label {i} is {name!r}; its {count:,} examples are {other!r} there"
            result.add(Problem.OTHER_ORDER, place)
            renamed.add(name)
    for row, other in pairs:
        if row.label not in renamed and set(_labels(row)) != set(_labels(other)):
            place = f"{row.split} {row.id}: {row.label!r}, not {other.label!r}"
            result.add(Problem.OTHER_LABEL, place)


def _find_duplicates(result, rows):
    """Finds examples of equal files, and of the same part of them."""
    by_file = collections.defaultdict(list)
    for row in rows:
        by_file[row.sha256, row.span].append(row)
    for same in by_file.values():
        if len(same) > 1:
            place = " = ".join(f"{r.split} {r.id} ({r.label})" for r in same)
            across = len({row.split for row in same}) > 1
            result.add(Problem.LEAK if across else Problem.DUPLICATE, place)
