"""Whether a prepared data set is what was prepared: every record, every frame.

Each record is read and decoded, and compared with the manifest that prepare wrote:
files, labels and their order, counts. What differs is found by id, with what to do.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath
from tqdm import tqdm

from sparse_tube_vit.datasets import manifest, reading
from sparse_tube_vit.datasets.manifest import OK, Row
from sparse_tube_vit.datasets.preparing import processes
from sparse_tube_vit.datasets.reading import Split

# Whose classes have the order of their sorted names, whatever order files list them in.
SORTED = (
    *("image_folder", "video_folder", "imagenet2012"),
    *("kinetics400", "kinetics600", "kinetics700"),
)
RECORDS_A_TASK = {"video": 8, "image": 256}


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that can be found in several places, and what to do about it.

    Attributes:
        what: Says what the places are, in the plural.
        advice: What to do.
        wrong: Whether the data set is not as prepared, or else it is odd only.
    """

    what: str
    advice: str
    wrong: bool = True


_AGAIN = "delete the data set and prepare it again"
_COPY = f"Copy the shards again from where they were prepared, or {_AGAIN}."
_COPY_BOTH = (
    "Shards and manifest.csv are of two preparations: copy both again from where they"
    f" were prepared, or {_AGAIN}."
)

OTHER_COUNT = Finding("shards that do not hold what dataset_info.json says", _COPY)
UNREADABLE = Finding("records that cannot be read", _COPY)
UNDECODABLE = Finding(
    "examples that do not decode", f"Mend or remove their files, then {_AGAIN}."
)
OTHER_FILE = Finding("examples whose file is not that of the manifest", _COPY_BOTH)
NO_ROW = Finding("records that are no example of the manifest", _COPY_BOTH)
NO_RECORD = Finding(
    "examples of the manifest that are in no record",
    f"Theirs cannot be read, or is of another preparation. {_COPY}",
)
OTHER_FRAMES = Finding(
    "examples that decode otherwise than when they were prepared",
    "Their files are as prepared, but another FFmpeg reads them: install PyAV as in"
    f" requirements.txt, or {_AGAIN}.",
)
OTHER_LABEL = Finding(
    "examples that have another label than in the manifest",
    f"One of the two was changed since: {_AGAIN}.",
)
OTHER_ORDER = Finding(
    "labels that stand for another class than in the manifest",
    "The class names beside dataset_info.json were changed, and what is predicted would"
    f" have the wrong name: copy them from where they were prepared, or {_AGAIN}.",
)
NOT_SORTED = Finding("class names out of sorted order", f"To have it, {_AGAIN}.")
SAME_ID = Finding(
    "ids that are there more than once",
    f"Give files names of their own, then {_AGAIN}.",
)
NO_MANIFEST = Finding(
    "no manifest",
    "TFDS itself prepared it: files, labels and what is missing could not be compared.",
    wrong=False,
)
NO_LABEL = Finding(
    "examples without a label",
    "They can be used for neither training nor evaluation.",
    wrong=False,
)
NO_EXAMPLE = Finding(
    "classes without an example in a split",
    "Expected where a part of the data set was prepared.",
    wrong=False,
)
LEAK = Finding(
    "files that are in several splits",
    "What is trained on is also tested on: remove them from one, or tell of them.",
    wrong=False,
)
TWINS = Finding(
    "files that are in a split more than once", "Each counts as often.", wrong=False
)


@dataclasses.dataclass
class Report:
    """What was found in a data set.

    Attributes:
        name: The data set, for example "ucf101/split1".
        splits: All of its splits, train first.
        counts: Lines that say how much there is.
        found: For each finding its places.
        first: For each class the first example that decodes, of train if there is one:
            its split, index and row.
    """

    name: str
    splits: tuple[Split, ...]
    counts: list[str] = dataclasses.field(default_factory=list)
    found: dict[Finding, list[str]] = dataclasses.field(default_factory=dict)
    first: dict[str, tuple[Split, int, Row]] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> str:
        """ "video" or "image"."""
        return self.splits[0].kind

    @property
    def directory(self) -> epath.Path:
        """Where the data set is."""
        return epath.Path(self.splits[0].directory)

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the labels."""
        return self.splits[0].class_names

    def add(self, finding: Finding, place: str) -> None:
        """Takes down that something was found in a place."""
        self.found.setdefault(finding, []).append(place)

    @property
    def findings(self) -> list[tuple[str, str, list[str]]]:
        """(what, advice, places), what is wrong first."""
        ordered = sorted(self.found.items(), key=lambda item: not item[0].wrong)
        return [
            (f"{'wrong' if f.wrong else 'warning'}: {f.what} ({len(p):,})", f.advice, p)
            for f, p in ordered
        ]

    @property
    def wrong(self) -> int:
        """In how many places something is wrong, warnings aside."""
        return sum(
            len(places) for finding, places in self.found.items() if finding.wrong
        )

    def __str__(self):
        lines = [f"{self.name} in {self.directory}", *(f"  {c}" for c in self.counts)]
        for what, advice, places in self.findings:
            lines += [f"  {what}. {advice}", *(f"    {place}" for place in places)]
        return "\n".join(lines)


def verify(dataset: str, data_dir, workers: int = 0) -> Report:
    """Decodes a prepared data set and compares it with its manifest.

    Args:
        dataset: As for `reading.open_split`.
        data_dir: Directory that holds prepared data sets.
        workers: Processes that decode; 0: this one.

    Raises:
        DatasetNotPrepared, UnsupportedDataset: As `reading.open_split`.
        BadManifest: The manifest cannot be read.
        WorkerDied: A process that decodes was killed.
    """
    names = reading.split_names(dataset, data_dir)
    names = sorted(names, key=lambda name: name != "train")  # train first
    splits = (reading.open_split(dataset, name, data_dir) for name in names)
    report = Report(dataset, tuple(splits))
    path = report.directory / manifest.NAME
    # Read first: better a bad one now than after hours.
    listed = list(manifest.read(path)) if path.exists() else None
    _check_order(report)
    _check_shards(report)
    rows = list(_decode(report, workers))
    _count(report, rows)
    _check_ids(report, rows)
    if listed is None:
        report.add(NO_MANIFEST, str(path))
    else:
        _compare(report, rows, listed)
    _find_twins(report, rows)
    return report


def _check_order(report):
    names = report.class_names
    falls = [i for i, (a, b) in enumerate(itertools.pairwise(names)) if a > b]
    order = "in an order of their own" if falls else "in sorted order"
    report.counts.append(f"{len(names):,} classes, {order}")
    if report.name.partition("/")[0] in SORTED:
        for i in falls:
            place = f"label {i} is {names[i]!r}, label {i + 1} is {names[i + 1]!r}"
            report.add(NOT_SORTED, place)


def _check_shards(report):
    splits = tfds.builder_from_directory(report.directory).info.splits
    for split in splits.values():
        for path, expected in zip(split.filepaths, split.shard_lengths, strict=True):
            try:
                found = ArrayRecordReader(str(path)).num_records()
            except Exception as error:  # array_record has no errors of its own
                report.add(OTHER_COUNT, f"{path.name}: {error}")
                continue
            if found != expected:
                report.add(OTHER_COUNT, f"{path.name}: {found} records, not {expected}")


def _decode(report, workers) -> Iterator[Row]:
    """Yields the row of every record that can be read."""
    tasks = [
        (split, range(len(split))[start : start + RECORDS_A_TASK[split.kind]])
        for split in report.splits
        for start in range(0, len(split), RECORDS_A_TASK[split.kind])
    ]
    bar = tqdm(
        desc=f"Decoding {report.name}",
        total=sum(map(len, report.splits)),
        unit=report.kind,
        disable=None,  # where stderr is no terminal
    )
    with bar, mapping(min(workers, len(tasks))) as mapped:
        for (split, indices), rows in zip(tasks, mapped(_rows, tasks), strict=True):
            for index, row in zip(indices, rows, strict=True):
                if isinstance(row, str):
                    report.add(UNREADABLE, f"{split.split} record {index}: {row}")
                    continue
                if row.status != OK:
                    report.add(UNDECODABLE, f"{row.split} {row.id}: {row.status}")
                else:
                    for label in _labels(row):
                        report.first.setdefault(label, (split, index, row))
                yield row
            bar.update(len(indices))


@contextlib.contextmanager
def mapping(workers: int) -> Iterator[Callable]:
    """Gives a `map` over so many worker processes, or over none.

    Raises:
        WorkerDied: One of them was killed.
    """
    if not workers:
        yield map
        return
    with processes.pool(workers) as pool:
        yield pool.map


@functools.cache
def open_once(split: Split) -> Split:
    """The first such split that came, which has its files open; tasks bring copies."""
    return split


def _rows(task: tuple[Split, range]) -> list[Row | str]:
    """The row of each record, or why it cannot be read."""
    split, indices = open_once(task[0]), task[1]
    rows = []
    for index in indices:
        try:
            example = split[index]
        except Exception as error:  # whatever array_record, protobuf or TFDS raise
            rows.append(f"{type(error).__name__}: {error}")
            continue
        label = _class_names(split, example["label"])
        row = Row.of(split.split, example["id"], label, example[split.kind], split.kind)
        rows.append(row)
    return rows


def _class_names(split, label):
    """A label as the manifest has it; None if it is no class."""
    if split.multi_label:
        return tuple(split.class_names[i] for i in np.flatnonzero(label))
    return split.class_names[label] if 0 <= label < len(split.class_names) else None


def _labels(row: Row) -> tuple[str, ...]:
    if row.label is None:
        return ()
    return row.label if isinstance(row.label, tuple) else (row.label,)


def _count(report, rows):
    by_split = collections.defaultdict(list)
    for row in rows:
        by_split[row.split].append(row)
    for split in report.splits:
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
        report.counts.append(line)
        for name, count in per_class.items():
            if not count and any(per_class.values()):
                report.add(NO_EXAMPLE, f"{split.split}: {name}")
        if without := sum(not _labels(row) for row in rows):
            report.add(NO_LABEL, f"{split.split}: {without:,} examples")


def _check_ids(report, rows):
    for (split, name), n in collections.Counter((r.split, r.id) for r in rows).items():
        if n > 1:
            report.add(SAME_ID, f"{split} {name}: {n} times")


def _compare(report, rows, listed):
    left_out = sum(row.status != OK for row in listed)
    report.counts.append(
        f"manifest: {len(listed) - left_out:,} examples, {left_out:,} left out"
    )
    expected = {
        (r.split, r.id): r for r in sorted(listed, key=lambda r: r.status == OK)
    }
    pairs = []
    for row in rows:
        place, other = f"{row.split} {row.id}", expected.pop((row.split, row.id), None)
        if other is None:
            report.add(NO_ROW, place)
        elif other.status != OK:
            report.add(NO_ROW, f"{place}: left out there, {other.status}")
        else:
            pairs.append((row, other))
    for row in expected.values():
        if row.status == OK:
            report.add(NO_RECORD, f"{row.split} {row.id}")
    for row, other in pairs:
        place = f"{row.split} {row.id}"
        if row.sha256 != other.sha256:
            report.add(OTHER_FILE, f"{place}: SHA-256 {row.sha256}, not {other.sha256}")
        elif row.status == OK:
            differences = [
                f"{column} {getattr(row, column)}, not {getattr(other, column)}"
                for column in manifest.DECODED
                if getattr(row, column) != getattr(other, column)
            ]
            if differences:
                report.add(OTHER_FRAMES, f"{place}: {'; '.join(differences)}")
    _compare_labels(report, pairs)


def _compare_labels(report, pairs):
    """Finds classes that go by another name in the manifest, and single examples."""
    listed = collections.defaultdict(collections.Counter)
    for row, other in pairs:
        listed[row.label][other.label] += 1
    renamed = set()
    for i, name in enumerate(report.class_names):
        names = listed.get(name, ())
        if len(names) == 1 and name not in names:
            ((other, count),) = names.items()
            place = f"label {i} is {name!r}; its {count:,} examples are {other!r} there"
            report.add(OTHER_ORDER, place)
            renamed.add(name)
    for row, other in pairs:
        if row.label not in renamed and set(_labels(row)) != set(_labels(other)):
            place = f"{row.split} {row.id}: {row.label!r}, not {other.label!r}"
            report.add(OTHER_LABEL, place)


def _find_twins(report, rows):
    files = collections.defaultdict(list)
    for row in rows:
        files[row.sha256].append(row)
    for same in files.values():
        if len(same) > 1:
            place = " = ".join(f"{r.split} {r.id} ({r.label})" for r in same)
            across = len({row.split for row in same}) > 1
            report.add(LEAK if across else TWINS, place)
