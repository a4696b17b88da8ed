"""`ucf101/split1`, `split2` and `split3`: UCF101 from its official lists.

The annotations directory holds classInd.txt, trainlist0N.txt and testlist0N.txt, the
videos directory the clips, in any folders and containers.
"""

import pathlib

from sparse_tube_vit.datasets.builders import builder
from sparse_tube_vit.datasets.builders.annotations import (
    BadAnnotations,
    Entry,
    list_clips,
    read_text,
)
from sparse_tube_vit.datasets.manifest import Row

SPLITS = (1, 2, 3)


class Ucf101(builder.Builder):
    """UCF101 by one of its official splits, of the listing that `read` returns."""

    name = "ucf101"
    kind = "video"

    @classmethod
    def read(cls, videos, annotations, split: int = 1) -> builder.Listing:
        """Lists the clips of an official split, 1, 2 or 3.

        classInd.txt may hold a subset of the classes. Clips of other classes and clips
        without a file are in `left_out`.

        Raises:
            BadAnnotations: A list is missing or malformed, or a label differs from
                classInd.txt.
            MissingVideos: No clip is there, or several files match one.
        """
        annotations = pathlib.Path(annotations)
        numbers = _read_classes(annotations / "classInd.txt")
        entries, left_out = [], []
        for part in ("train", "test"):
            path = annotations / f"{part}list0{split}.txt"
            for where, clip, number in _read_list(path):
                label, stem = clip.parent.name, clip.stem
                if label not in numbers:
                    reason = f"class {label} is not in classInd.txt"
                    left_out.append(Row(part, stem, label=label, status=reason))
                    continue
                if number not in (None, numbers[label]):
                    raise BadAnnotations(
                        f"{where} gives {label} the label {number}, classInd.txt gives"
                        f" it {numbers[label]}; use the lists of one release"
                    )
                entries.append(Entry(where, part, stem, label, (stem,)))
        class_names = sorted(numbers, key=numbers.get)
        return list_clips(videos, entries, class_names, left_out)


def _read_lines(path: pathlib.Path):
    """Yields ("file:line", fields) for the lines that are not empty."""
    for i, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            yield f"{path}:{i}", line.split()


def _read_classes(path: pathlib.Path) -> dict[str, int]:
    """Returns the number of each class, from 1."""
    numbers = {}
    for where, fields in _read_lines(path):
        if len(fields) != 2 or not fields[0].isdigit():
            raise BadAnnotations(f"{where}: expected `number class`, got {fields}")
        number, label = int(fields[0]), fields[1]
        if label in numbers or number in numbers.values():
            raise BadAnnotations(f"{where}: class {number} {label} is there twice")
        numbers[label] = number
    if not numbers:
        raise BadAnnotations(f"{path} names no class")
    return numbers


def _read_list(path: pathlib.Path):
    """Yields ("file:line", clip, number or None); test lists have no numbers."""
    for where, fields in _read_lines(path):
        clip = pathlib.PurePosixPath(fields[0])
        if len(fields) > 2 or not clip.parent.name:
            raise BadAnnotations(
                f"{where}: expected `Class/clip.avi` and perhaps a number, got {fields}"
            )
        if len(fields) == 2 and not fields[1].isdigit():
            raise BadAnnotations(f"{where}: {fields[1]!r} is no label number")
        yield where, clip, int(fields[1]) if len(fields) == 2 else None
