"""Kinetics from its official CSV files: `kinetics400`, `kinetics600`, `kinetics700`.

The annotations directory holds a CSV for each of train, val (validate, validation) and
perhaps test, such as `train.csv` or `kinetics700_2020_validate.csv`, with the columns
label, youtube_id, time_start, time_end and split. Clips are called `<id>`,
`<id>_<start>_<end>` or `<id>_<start>_<end>` with six digits each, in any folders: the
label is the CSV's, whatever a folder is called.

Labels count the sorted class names of train and validation, for all three. For
Kinetics-400 this is what everyone does. For 600 and 700 no order came with the data,
and some projects' checkpoints have orders of their own: map their outputs by class
name. The sorted order follows from the CSV files alone, whoever prepares the data; the
names are stored with the data set and with every checkpoint.
"""

import collections

from sparse_tube_vit.datasets.builders import builder
from sparse_tube_vit.datasets.builders.annotations import (
    BadAnnotations,
    Entry,
    count_classes,
    find,
    find_file,
    read_csv,
)

# The names of a split, in file names and in the column.
SPLITS = {
    "train": ("train",),
    "validation": ("val", "validate", "validation"),
    "test": ("test",),
}


class Kinetics(builder.Builder):
    """What the three sizes share."""

    kind = "video"
    classes: int

    @classmethod
    def read(cls, videos, annotations) -> builder.Listing:
        """Reads the lists of train, validation and, where it has labels, test.

        Listed clips that are not among the videos are in the listing's `left_out`. The
        id of an example is `<youtube_id>_<start>_<end>`, six digits each. Lists of
        fewer classes are read too, with a note.

        Raises:
            BadAnnotations: A list is missing or malformed, has more classes than the
                data set, or lists a clip twice.
            MissingVideos: None of the clips is there, or one could be several files.
        """
        listed = [r for split in SPLITS for r in _read_list(annotations, split)]
        times = collections.Counter(row.youtube_id for row in listed)
        rows = [row for row in listed if row.label]
        notes = []
        if unlabelled := len(listed) - len(rows):
            notes.append(f"left out {unlabelled} clips of test that have no label")
        class_names = {row.label for row in rows if row.split != "test"}
        notes += count_classes(annotations, len(class_names), cls.classes)
        entries = []
        for row in rows:
            if row.label not in class_names:
                raise BadAnnotations(
                    f"{row.where}: class {row.label!r} is neither in train nor in"
                    " validation; use the files of one release"
                )
            name = f"{row.youtube_id}_{row.start:06d}_{row.end:06d}"
            stems = {name: None, f"{row.youtube_id}_{row.start}_{row.end}": None}
            if times[row.youtube_id] == 1:  # else it may be any clip of that video
                stems[row.youtube_id] = None
            entries.append(Entry(row.where, row.split, name, row.label, (*stems,)))
        return find(videos, entries, sorted(class_names), notes=notes)


class Kinetics400(Kinetics):
    """Kinetics-400, given `read`'s listing."""

    name = "kinetics400"
    classes = 400


class Kinetics600(Kinetics):
    """Kinetics-600, given `read`'s listing."""

    name = "kinetics600"
    classes = 600


class Kinetics700(Kinetics):
    """Kinetics-700 of 2019 or of 2020, given `read`'s listing."""

    name = "kinetics700"
    classes = 700


Row = collections.namedtuple("Row", "where split label youtube_id start end")


def _read_list(annotations, split: str):
    """Yields the rows of a split; only test may be missing or lack labels."""
    spellings = "|".join(SPLITS[split])
    path = find_file(annotations, rf"(.*[_-])?({spellings})\.csv", f"the {split} list")
    if path is None and split == "test":
        return
    if path is None:
        raise BadAnnotations(
            f"no {split} list in {annotations}, such as {SPLITS[split][0]}.csv; give"
            " the directory of Kinetics' official CSV files"
        )
    columns = ("youtube_id", "time_start", "time_end")
    columns += () if split == "test" else ("label",)
    for where, fields in read_csv(path, columns):
        label = fields.get("label", "").strip()
        if not label and split != "test":
            raise BadAnnotations(f"{where}: a clip of {split} without a label")
        if fields.get("split", "") not in ("", *SPLITS[split]):
            raise BadAnnotations(
                f"{where}: split {fields['split']!r} in a list of {split}"
            )
        if not fields["youtube_id"]:
            raise BadAnnotations(f"{where}: no youtube_id")
        try:
            start, end = (round(float(fields[f"time_{x}"])) for x in ("start", "end"))
        except (ValueError, OverflowError):
            raise BadAnnotations(
                f"{where}: time_start {fields['time_start']!r} and time_end"
                f" {fields['time_end']!r} are not both seconds"
            ) from None
        yield Row(where, split, label, fields["youtube_id"], start, end)
