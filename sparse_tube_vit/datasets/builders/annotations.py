"""What the data sets of official annotation files share: listed clips, found by name.

An annotation file lists clips by id. The files lie below one directory, in folders or
not, and are found by their stem: a re-encoded clip in another container is found too.
"""

import collections
import csv
import dataclasses
import io
import os
import pathlib
import re
from collections.abc import Iterable, Iterator

from sparse_tube_vit import storage
from sparse_tube_vit.datasets.builders import builder
from sparse_tube_vit.datasets.manifest import Row
from sparse_tube_vit.errors import DatasetError
from sparse_tube_vit.video import decode


class BadAnnotations(DatasetError):
    """The annotation files are missing, malformed or contradict themselves."""


class MissingVideos(DatasetError):
    """None of the listed clips is there, or several files have a clip's name."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A clip that an annotation file lists.

    Attributes:
        where: The place in the file, for messages: "file:line".
        split: The split it belongs to.
        name: Its id, unlike every other.
        label: Its class, or its classes where a data set is multi-label.
        stems: What its file may be called, without suffix.
    """

    where: str
    split: str
    name: str
    label: builder.Label
    stems: tuple[str, ...]

    def left_out(self, reason: str) -> Row:
        """Its row in the manifest if it is not taken."""
        return Row(self.split, self.name, label=self.label, status=reason)


def find(
    videos,
    entries: Iterable[Entry],
    class_names: Iterable[str],
    left_out: Iterable[Row] = (),
    notes: Iterable[str] = (),
) -> builder.Listing:
    """Lists the entries' clips that are below the directory `videos`.

    Entries whose clip is not there, or is a link that leads nowhere, are added to
    `left_out`, and a note for a split that has none of its clips.

    Raises:
        BadAnnotations: A clip is listed twice.
        MissingVideos: None of the clips is there, or one could be any of several files.
    """
    files = collections.defaultdict(list)
    for path in storage.files_below(videos):
        if path.suffix.lower() in decode.SUFFIXES["video"]:
            files[path.stem].append(path)
    splits, left_out, notes, seen = {}, list(left_out), list(notes), {}
    for entry in entries:
        if entry.name in seen:
            raise BadAnnotations(
                f"{entry.where}: {entry.name} is listed twice, before in"
                f" {seen[entry.name]}; list it once"
            )
        seen[entry.name] = entry.where
        found = [path for stem in entry.stems for path in files.get(stem, ())]
        if len(found) > 1:
            raise MissingVideos(
                f"{entry.name} could be {' or '.join(map(str, found))}; keep one of"
                " them"
            )
        examples = splits.setdefault(entry.split, [])
        if not found:
            reason = f"listed in {entry.where}, but no such video"
            left_out.append(entry.left_out(reason))
        elif os.path.islink(found[0]) and not os.path.exists(found[0]):
            reason = f"{found[0]} is a link to {os.readlink(found[0])}, which is absent"
            left_out.append(entry.left_out(reason))
        else:
            examples.append(builder.ListedExample(entry.name, entry.label, found[0]))
    if not any(splits.values()):
        raise MissingVideos(
            f"none of the {len(seen)} listed clips is in {videos}, such as"
            f" {next(iter(seen))}. Give the directory that holds the clips, in folders"
            " or not"
        )
    notes += [
        f"no split {split}: none of its clips is in {videos}"
        for split, examples in splits.items()
        if not examples
    ]
    return builder.Listing(
        class_names=tuple(class_names),
        splits={split: examples for split, examples in splits.items() if examples},
        left_out=tuple(left_out),
        notes=tuple(notes),
    )


def find_file(annotations, pattern: str, what: str) -> pathlib.Path | None:
    """Returns the one file of the directory whose name matches, None if none does.

    Raises BadAnnotations if several do.
    """
    directory = pathlib.Path(annotations)
    if not directory.is_dir():
        raise BadAnnotations(f"{annotations} is not a directory")
    found = [p for p in sorted(directory.iterdir()) if re.fullmatch(pattern, p.name)]
    if len(found) > 1:
        raise BadAnnotations(
            f"{what} could be {' or '.join(map(str, found))}; keep one of them"
        )
    return found[0] if found else None


def read(path: pathlib.Path) -> str:
    """Returns the text of a file; raises BadAnnotations if it is missing or no text."""
    if not path.is_file():
        raise BadAnnotations(
            f"{path} is missing; give the directory of the official annotation files"
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadAnnotations(f"{path} is not in UTF-8: {error}") from None


def read_csv(path: pathlib.Path, columns: Iterable[str]) -> Iterator[tuple[str, dict]]:
    """Yields ("file:line", the fields by column) for each row below the header.

    Raises BadAnnotations for a file without these columns or a row of another length.
    """
    reader = csv.DictReader(io.StringIO(read(path)))
    found = reader.fieldnames or []
    if missing := [column for column in columns if column not in found]:
        raise BadAnnotations(
            f"{path}:1: no column {', '.join(missing)}; it has {', '.join(found)}"
        )
    try:
        for fields in reader:
            where = f"{path}:{reader.line_num}"
            # DictReader's signs of a row that is too long or too short.
            if None in fields or None in fields.values():
                raise BadAnnotations(f"{where}: not one field for each column")
            yield where, fields
    except csv.Error as error:
        raise BadAnnotations(f"{path}: after line {reader.line_num}: {error}") from None


def count_classes(where, found: int, official: int) -> list[str]:
    """Notes that classes are missing, as in a subset made to try things out.

    Raises BadAnnotations for more than the data set has: they are another's.
    """
    if found > official:
        raise BadAnnotations(
            f"{where}: {found} classes; the data set has {official}. Give its own"
            " annotation files"
        )
    if found < official:
        return [f"{found} of the {official} official classes are in {where}"]
    return []
