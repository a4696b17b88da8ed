"""`kinetics400`, `kinetics600` and `kinetics700`: Kinetics from its official CSV files.

The annotations directory holds a CSV for each of train, val (validate, validation) and
perhaps test, such as `train.csv`, `val.txt` or `kinetics700_2020_validate.csv`, with
the columns label, youtube_id, time_start, time_end and split. Beside a list of test,
one of `holdout_test` is ignored. Clips are called `<id>`, `<id>_<start>_<end>` or
`<id>_<start>_<end>` with six digits each, in any folders; the label is that of the CSV.

A file that is called `<id>` may be the whole video: only the seconds from start to end
are used. It must be the whole video where several clips are of it.

Labels number the sorted class names of train and validation. This is the common order
of Kinetics-400. Kinetics-600 and 700 come without an order, and checkpoints of other
projects may have another: map their outputs by class name. The names are stored with
the data set and with every checkpoint.
"""

import collections

from sparse_tube_vit.datasets.builders import builder
from sparse_tube_vit.datasets.builders.annotations import (
    BadAnnotations,
    Entry,
    check_class_count,
    find_file,
    list_clips,
    read_csv,
)

# Spellings of the splits, in file names and in the column.
SPLITS = {
    "train": ("train",),
    "validation": ("val", "validate", "validation"),
    "test": ("test", "holdout_test"),
}


class Kinetics(builder.Builder):
    """Base class of the three sizes, of the listing that `read` returns."""

    kind = "video"

    @classmethod
    def read(cls, videos, annotations) -> builder.Listing:
        """Lists the clips of train, validation and, if it has labels, test.

        Clips without a file are in `left_out`. The id of an example is
        `<youtube_id>_<start>_<end>`, six digits each. Lists of fewer classes add a
        note.

        Raises:
            BadAnnotations: A list is missing or malformed, has more classes than the
                data set, or gives a clip two labels.
            MissingVideos: No clip is there, or several files match one.
        """
        listed = [s for split in SPLITS for s in _read_list(annotations, split)]
        spans = {(s.youtube_id, s.start, s.end) for s in listed}
        times = collections.Counter(youtube_id for youtube_id, *_ in spans)
        segments = [segment for segment in listed if segment.label]
        notes = []
        held_out = _find_list(annotations, "test", held_out=True)
        if held_out and _find_list(annotations, "test"):
            notes.append(f"left out the clips of {held_out}: there is a list of test")
        if unlabelled := len(listed) - len(segments):
            notes.append(f"left out {unlabelled} clips of test that have no label")
        class_names = {s.label for s in segments if s.split != "test"}
        notes += check_class_count(annotations, len(class_names), cls.name)
        entries = []
        for where, split, label, youtube_id, start, end in segments:
            if label not in class_names:
                raise BadAnnotations(
                    f"{where}: class {label!r} is neither in train nor in"
                    " validation; use the files of one release"
                )
            name = f"{youtube_id}_{start:06d}_{end:06d}"
            stems = {name: None, f"{youtube_id}_{start}_{end}": None}
            whole = {}
            if times[youtube_id] == 1:  # else it may be any segment of that video
                stems[youtube_id] = None
            if 0 <= start < end:
                whole = {"untrimmed": youtube_id, "span": (start, end)}
            entries.append(Entry(where, split, name, label, (*stems,), **whole))
        return list_clips(videos, entries, sorted(class_names), notes=notes)


class Kinetics400(Kinetics):
    """Kinetics-400."""

    name = "kinetics400"


class Kinetics600(Kinetics):
    """Kinetics-600."""

    name = "kinetics600"


class Kinetics700(Kinetics):
    """Kinetics-700 of 2019 or 2020."""

    name = "kinetics700"


# A segment of a YouTube video, from `start` to `end` in whole seconds.
Segment = collections.namedtuple("Segment", "where split label youtube_id start end")


def _find_list(annotations, split: str, held_out: bool = False):
    """Returns the list of a split, or of its held-out part, or None."""
    pattern = rf"(.*[_-])?({'|'.join(SPLITS[split])})\.(csv|txt)"
    pattern = ("(?=.*holdout_)" if held_out else "(?!.*holdout_)") + pattern
    return find_file(annotations, pattern, f"the {split} list")


def _read_list(annotations, split: str):
    """Yields the segments of a split; only test may be missing or without labels."""
    path = _find_list(annotations, split) or _find_list(annotations, split, True)
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
        yield Segment(where, split, label, fields["youtube_id"], start, end)
