"""`charades`: Charades from its official files, multi-label.

The annotations directory holds Charades_v1_train.csv, Charades_v1_test.csv and
Charades_v1_classes.txt, whose order of 157 classes is the order of the labels. Videos
are called `<id>`, in any folders. A video's labels are its actions, whose times are
stored, so that a stream can label a clip by the actions that it shows.

Videos without any action are left out: the official evaluation ranks them last for all
classes, so that they do not affect the result.
"""

import pathlib
import re

from sparse_tube_vit.datasets.builders import builder
from sparse_tube_vit.datasets.builders.annotations import (
    BadAnnotations,
    Entry,
    check_class_count,
    list_clips,
    read_csv,
    read_text,
)

SPLITS = ("train", "test")
COLUMNS = ("id", "actions")
NUMBER = r"(-?\d+(?:\.\d+)?)"
ACTION = re.compile(rf"(c\d{{3}}) {NUMBER} {NUMBER}")  # class, start, end in seconds


class Charades(builder.Builder):
    """Charades, of the listing that `read` returns."""

    name = "charades"
    kind = "video"
    multi_label = True

    @classmethod
    def read(cls, videos, annotations) -> builder.Listing:
        """Lists the videos of train and test.

        Videos without any action or without a file are in `left_out`. A classes file of
        fewer classes adds a note.

        Raises:
            BadAnnotations: A file is missing or malformed, an action's class is not in
                the classes file.
            MissingVideos: No video is there, or several files match one.
        """
        annotations = pathlib.Path(annotations)
        path = annotations / "Charades_v1_classes.txt"
        class_names = _read_classes(path)
        entries, left_out = [], []
        for split in SPLITS:
            rows = read_csv(annotations / f"Charades_v1_{split}.csv", COLUMNS)
            for where, fields in rows:
                name, actions = fields["id"], _actions(where, fields["actions"])
                codes = {code for code, _, _ in actions}
                if not name:
                    raise BadAnnotations(f"{where}: no id")
                if unknown := codes - set(class_names):
                    raise BadAnnotations(
                        f"{where}: {', '.join(sorted(unknown))} not in {path}"
                    )
                labels = tuple(n for code, n in class_names.items() if code in codes)
                actions = tuple(
                    (class_names[c], start, end) for c, start, end in actions
                )
                entry = Entry(where, split, name, labels, (name,), actions=actions)
                if labels:
                    entries.append(entry)
                else:
                    left_out.append(entry.left_out(f"no action in {where}"))
        notes = check_class_count(path, len(class_names), cls.name)
        return list_clips(videos, entries, class_names.values(), left_out, notes)


def _read_classes(path: pathlib.Path) -> dict[str, str]:
    """Returns the name of each class by its code, such as c000."""
    names = {}
    for i, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        code, _, name = line.strip().partition(" ")
        name = name.strip()  # columns may be aligned
        if not re.fullmatch(r"c\d{3}", code) or not name:
            raise BadAnnotations(f"{path}:{i}: expected `c000 name`, got {line!r}")
        if code in names or name in names.values():
            raise BadAnnotations(f"{path}:{i}: class {code} {name} is there twice")
        names[code] = name
    if not names:
        raise BadAnnotations(f"{path} names no class")
    return names


def _actions(where: str, actions: str) -> list[tuple[str, float, float]]:
    """Returns (class, start, end) of `c092 11.90 21.20;c147 0.00 12.60`."""
    found = []
    for action in filter(None, actions.split(";")):
        match = ACTION.fullmatch(action)
        if not match:
            raise BadAnnotations(f"{where}: expected `class start end`, got {action!r}")
        found.append((match[1], float(match[2]), float(match[3])))
    return found
