"""Listing of the clips of official annotation files, which name them by id.

Files are matched by their stem, in any folder below one directory and in any container.
Several paths to one file, as where class folders of links lie beside the files, are one
match. Of several files, one below a folder `replacement` counts: those are distributed
beside the corrupted files that they replace.
"""

import collections
import csv
import dataclasses
import io
import os
import pathlib
import re
from collections.abc import Iterable, Iterator

from etils import epath

from sparse_tube_vit import storage
from sparse_tube_vit.datasets.builders import builder
from sparse_tube_vit.datasets.catalog import OFFICIAL_CLASSES
from sparse_tube_vit.datasets.manifest import Row
from sparse_tube_vit.errors import DatasetError
from sparse_tube_vit.video.opening import SUFFIXES


class BadAnnotations(DatasetError):
    """The annotation files are missing, malformed or contradictory."""


class MissingVideos(DatasetError):
    """No listed clip is there, or several files match one clip."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A clip in an annotation file.

    Attributes:
        where: Place in the file, for messages: "file:line".
        split: Split of the clip.
        name: Unique identifier.
        label: Class name, or class names in a multi-label data set.
        stems: Possible names of its file, without suffix.
        untrimmed: Name of the file of the whole video, tried after `stems`. It is also
            one of `stems` if no other clip is from that video.
        span: Start and end in seconds of the clip in that video.
        actions: (class name, start, end) of each action, in seconds.
    """

    where: str
    split: str
    name: str
    label: builder.Label
    stems: tuple[str, ...]
    untrimmed: str | None = None
    span: tuple[float, float] | None = None
    actions: tuple[builder.Action, ...] = ()

    def left_out(self, reason: str) -> Row:
        """Returns the manifest's row of the clip when it is left out."""
        return Row(self.split, self.name, label=self.label, status=reason)


def list_clips(
    videos,
    entries: Iterable[Entry],
    class_names: Iterable[str],
    left_out: Iterable[Row] = (),
    notes: Iterable[str] = (),
) -> builder.Listing:
    """Lists the entries' clips below a directory.

    Entries without a file, or with a broken link, and all but the first entry of a clip
    are added to `left_out`; a split without any clip adds a note, and so do files that
    replace others.

    Args:
        videos: Directory of the clips.
        entries: Entries of the annotation files.
        class_names: Class names in the order of the labels.
        left_out: Rows of clips that are left out for other reasons.
        notes: Remarks for the user.

    Raises:
        BadAnnotations: A clip is listed again with another label. One of several labels
            may be: the first entry counts.
        MissingVideos: No clip is there, or several files match one.
        UnreadableFile: A folder cannot be listed.
    """
    files, names = _Files(videos), []
    splits, left_out, notes = {}, list(left_out), list(notes)
    for entry in _without_repeats(entries, left_out):
        names.append(entry.name)
        examples = splits.setdefault(entry.split, [])
        path = files.of(entry)
        if path is None:
            left_out.append(entry.left_out(files.why_absent(entry)))
            continue
        span = None
        if path.stem == entry.untrimmed:
            shared = entry.untrimmed not in entry.stems
            span = builder.Span(*entry.span, shared)
        examples.append(
            builder.ListedExample(entry.name, entry.label, path, span, entry.actions)
        )
    if not any(splits.values()):
        raise MissingVideos(
            f"none of the {len(names)} listed clips is in {videos}, such as"
            f" {next(iter(names), 'none')}. Give the directory that holds the clips, in"
            " folders or not"
        )
    if files.replaced:
        notes.append(f"{files.replaced:,} clips are those of a folder `replacement`")
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


def _without_repeats(entries, left_out: list[Row]) -> Iterator[Entry]:
    """Yields the first entry of each clip; adds the others to `left_out`.

    Raises:
        BadAnnotations: One of them has another label, where a clip has one.
    """
    first = {}
    for entry in entries:
        before = first.setdefault(entry.name, entry)
        if before is entry:
            yield entry
            continue
        if isinstance(entry.label, str) and entry.label != before.label:
            raise BadAnnotations(
                f"{entry.where}: {entry.name} is {entry.label!r}, but"
                f" {before.label!r} in {before.where}; list it once"
            )
        differs = "" if entry.label == before.label else " with other labels"
        reason = f"listed again in {entry.where}{differs}; {before.where} counts"
        left_out.append(entry.left_out(reason))


class _Files:
    """The files of videos below a directory, by stem.

    Attributes:
        replaced: Number of clips that were found as replacements of other files.
    """

    def __init__(self, directory):
        self._paths, self._absent = collections.defaultdict(list), {}
        self.replaced = 0
        below, unusable = storage.files_below(directory)
        for path in (*below, *unusable):
            if path.suffix.lower() not in SUFFIXES["video"]:
                continue
            if path in unusable:
                self._absent[path.stem] = f"{path} is {unusable[path]}"
            else:
                self._paths[path.stem].append(path)

    def of(self, entry: Entry) -> epath.Path | None:
        """Returns the file of an entry, or None.

        Raises:
            MissingVideos: Several files match.
        """
        matches = [p for stem in entry.stems for p in self._paths.get(stem, ())]
        matches = matches or self._paths.get(entry.untrimmed, [])
        if len(matches) > 1:
            matches = _distinct(matches)
            replacements = [path for path in matches if _is_replacement(path)]
            if len(matches) > 1 and len(replacements) == 1:
                matches = replacements
                self.replaced += 1
        if len(matches) > 1:
            raise MissingVideos(
                f"{entry.name} could be {' or '.join(map(str, matches))}; keep one of"
                " them"
            )
        return matches[0] if matches else None

    def why_absent(self, entry: Entry) -> str:
        """Returns the reason why an entry has no file."""
        return next(
            (self._absent[stem] for stem in entry.stems if stem in self._absent),
            f"listed in {entry.where}, but no such video",
        )


def _distinct(paths: list[epath.Path]) -> list[epath.Path]:
    """Returns one path to each file, if possible one without links."""
    files = {}
    for path in sorted(paths, key=lambda p: os.path.realpath(p) != storage.absolute(p)):
        files.setdefault(os.path.realpath(path), path)
    return list(files.values())


def _is_replacement(path: epath.Path) -> bool:
    folders = pathlib.PurePath(os.path.realpath(path)).parent.parts
    return any(folder.startswith("replacement") for folder in folders)


def find_file(annotations, pattern: str, what: str) -> pathlib.Path | None:
    """Returns the one file of a directory that matches a pattern, or None.

    Args:
        annotations: The directory.
        pattern: Regular expression of the whole name.
        what: Description of the file, for messages.

    Raises:
        BadAnnotations: There is no such directory, or several files match.
    """
    directory = pathlib.Path(annotations)
    if not directory.is_dir():
        raise BadAnnotations(f"{annotations} is not a directory")
    matches = [
        path
        for path in sorted(directory.iterdir())
        if re.fullmatch(pattern, path.name) and not path.name.startswith(".")
    ]
    if len(matches) > 1:
        raise BadAnnotations(
            f"{what} could be {' or '.join(map(str, matches))}; keep one of them"
        )
    return matches[0] if matches else None


def read_text(path: pathlib.Path) -> str:
    """Returns the text of a file.

    Raises:
        BadAnnotations: The file is missing or not in UTF-8.
    """
    if not path.is_file():
        raise BadAnnotations(
            f"{path} is missing; give the directory of the official annotation files"
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadAnnotations(f"{path} is not in UTF-8: {error}") from None


def read_csv(path: pathlib.Path, columns: Iterable[str]) -> Iterator[tuple[str, dict]]:
    """Yields ("file:line", fields by column) for each row below the header.

    Fields are separated by commas, or by tabs if the header has no comma.

    Raises:
        BadAnnotations: A column is missing, or a row has another length.
    """
    text = read_text(path)
    delimiter = "," if "," in text.partition("\n")[0] else "\t"
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    header = reader.fieldnames or []
    if missing := [column for column in columns if column not in header]:
        raise BadAnnotations(
            f"{path}:1: no column {', '.join(missing)}; it has {', '.join(header)}"
        )
    try:
        for fields in reader:
            where = f"{path}:{reader.line_num}"
            # DictReader marks rows that are too long or too short by None.
            if None in fields or None in fields.values():
                raise BadAnnotations(f"{where}: not one field for each column")
            yield where, fields
    except csv.Error as error:
        raise BadAnnotations(f"{path}: after line {reader.line_num}: {error}") from None


def check_class_count(where, count: int, name: str) -> list[str]:
    """Returns a note if classes are missing, as in a subset for trying things out.

    Args:
        where: The file that lists the classes.
        count: Their number.
        name: The data set's name, as in `catalog.OFFICIAL_CLASSES`.

    Raises:
        BadAnnotations: There are more classes than the data set has.
    """
    official = OFFICIAL_CLASSES[name]
    if count > official:
        raise BadAnnotations(
            f"{where}: {count} classes; the data set has {official}. Give its own"
            " annotation files"
        )
    if count < official:
        return [f"{count} of the {official} official classes are in {where}"]
    return []
