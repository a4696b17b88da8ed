"""Folders of clips or images: `video_folder/NAME` and `image_folder/NAME`.

Three layouts are read:

* `DIR/<class>/<file>`: one split, `train`.
* `DIR/<split>/<class>/<file>`.
* A list of `relative/path,split` lines beside either; the class of a file is the
  folder that holds it.

Labels count the sorted class names; the classes are the union over the splits.
`hold_out` makes the `test` split of a folder that has none.
"""

import collections
import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Mapping

from etils import epath

from sparse_tube_vit import storage
from sparse_tube_vit.datasets.builders import builder
from sparse_tube_vit.datasets.manifest import Row
from sparse_tube_vit.errors import DatasetError
from sparse_tube_vit.video.decode import SUFFIXES


class NoClassFolders(DatasetError):
    """The directory is not laid out in class folders."""


class EmptyClassFolder(DatasetError):
    """A class folder holds no file that can be taken."""


class BadSplitList(DatasetError):
    """A line of the split list is malformed or names a file that is not there."""


class TooFewExamples(DatasetError):
    """There is one class, or one has too few examples to be learnt and tested."""


class ImageFolder(builder.Builder):
    """Images in class folders, given `read_folder`'s listing."""

    name = "image_folder"
    kind = "image"


class VideoFolder(builder.Builder):
    """Clips in class folders, given `read_folder`'s listing."""

    name = "video_folder"
    kind = "video"


def read_folder(directory, kind: str, split_list=None) -> builder.Listing:
    """Lists the files of a directory in one of the layouts above.

    An example's id is its path below `directory`. Files that do not have a suffix of
    their kind are in the listing's `left_out`.

    Args:
        directory: Directory of class folders, or of split folders with class folders.
        kind: "image" or "video".
        split_list: File of `relative/path,split` lines; empty lines and lines that
            begin with # do not count. Only listed files are taken.

    Raises:
        NoClassFolders: There are no class folders, folders where files belong, or
            names that TFDS cannot keep.
        EmptyClassFolder: A class folder without a file of this kind.
        BadSplitList: It is no text, a line is malformed, or a file is listed twice or
            does not exist.
    """
    directory = epath.Path(directory)
    if not directory.is_dir():
        raise NoClassFolders(f"{directory} is not a directory")
    if split_list is None:
        listed, left_out = _find(directory, kind)
    else:
        listed, left_out = _read_split_list(directory, kind, epath.Path(split_list))
    splits = {}
    for split, path in listed:
        if not re.fullmatch(r"[\w-]+", split) or split.lower() == "all":
            raise NoClassFolders(
                f"{split!r} cannot name a split: letters, digits, - and _ can, `all`"
                " cannot"
            )
        name = path.relative_to(directory).as_posix()
        example = builder.ListedExample(name, path.parent.name, path)
        splits.setdefault(split, []).append(example)
    class_names = tuple(sorted({path.parent.name for _, path in listed}))
    for name in class_names:
        if re.search(r"[\r\n]", name) or name != name.strip():
            raise NoClassFolders(
                f"{name!r} cannot name a class: TFDS keeps names on lines of their own,"
                " without spaces around them; rename that folder"
            )
    return builder.Listing(
        class_names=class_names,
        splits=splits,
        left_out=tuple(Row("", name, status=reason) for name, reason in left_out),
    )


def folder_kind(directory) -> str:
    """Whether a folder holds "image"s, or "video"s too; a GIF may be either."""
    suffixes = {path.suffix.lower() for path in storage.files_below(directory)}
    videos = suffixes & (SUFFIXES["video"] - SUFFIXES["image"])
    images = suffixes & (SUFFIXES["image"] - SUFFIXES["video"])
    return "image" if images and not videos else "video"


def digests(listing: builder.Listing) -> dict[str, str]:
    """SHA-256 of every file of a listing in hexadecimal, by its id.

    Raises: UnreadableFile.
    """
    return {
        example.id: hashlib.sha256(
            builder.load(builder.Builder, example.source)
        ).hexdigest()
        for examples in listing.splits.values()
        for example in examples
    }


def hold_out(
    listing: builder.Listing, share: float, digests: Mapping[str, str]
) -> builder.Listing:
    """Moves about this share of every class from split `train` to a split `test`.

    A file's digest alone decides. So the same files are held out under other names and
    beside more files, and copies of a file are never on both sides. Where no file of a
    class, or every one, would be held out, the first or last by digest changes sides.

    Args:
        listing: Of one split, `train`.
        share: Between 0 and 1.
        digests: Of its files, as of `digests`.

    Raises:
        TooFewExamples: A class has less than two different files.
    """
    classes = collections.defaultdict(list)
    for example in listing.splits["train"]:
        classes[example.label].append(example)
    splits = {"train": [], "test": []}
    for label, examples in classes.items():
        found = sorted({digests[example.id] for example in examples})
        if len(found) < 2:
            count = f"{len(examples)} copies of one" if len(examples) > 1 else "one"
            raise TooFewExamples(
                f"class {label!r} has {count} file ({examples[0].id}); it takes two,"
                " one to train on and one to test on"
            )
        count = sum(int(digest[:8], 16) < share * 16**8 for digest in found)
        held_out = found[: min(max(count, 1), len(found) - 1)]
        for example in examples:
            split = "test" if digests[example.id] in held_out else "train"
            splits[split].append(example)
    return dataclasses.replace(listing, splits=splits)


def _find(directory: epath.Path, kind: str):
    """Returns [(split, file)], [(name, reason it was left out)]."""
    folders = _folders(directory)
    if any(_folders(folder) for folder in folders):
        splits = {folder.name: folder for folder in folders}
    else:
        splits = {"train": directory}
    listed, left_out = [], []
    for split, folder in splits.items():
        classes = _folders(folder)
        if not classes:
            raise NoClassFolders(
                f"{folder} holds no class folders; expected"
                f" {directory}/<class>/<file> or {directory}/<split>/<class>/<file>"
            )
        # Files beside class folders have no class.
        left_out += [
            (path.relative_to(directory).as_posix(), "not in a class folder")
            for path in {*_files(directory), *_files(folder)}
        ]
        for class_folder in classes:
            if nested := _folders(class_folder):
                raise NoClassFolders(
                    f"{nested[0]} is a folder in what should be a class folder;"
                    f" expected files in {class_folder}"
                )
            files = _files(class_folder)
            taken = [f for f in files if not unfit(f.name, kind)]
            if not taken:
                raise EmptyClassFolder(
                    f"{class_folder} holds no {kind} (of {len(files)} files, none ends"
                    f" in {', '.join(sorted(SUFFIXES[kind]))}); fill it or remove it"
                )
            listed += [(split, path) for path in taken]
            left_out += [
                (path.relative_to(directory).as_posix(), unfit(path.name, kind))
                for path in files
                if unfit(path.name, kind)
            ]
    return listed, sorted(set(left_out))


def _read_split_list(directory: epath.Path, kind: str, split_list: epath.Path):
    """Returns [(split, file)], [(name, reason it was left out)]."""
    if not split_list.is_file():
        raise BadSplitList(f"{split_list} does not exist")
    listed, left_out, seen = [], [], set()
    try:
        text = split_list.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadSplitList(f"{split_list} is not in UTF-8: {error}") from None
    for i, line in enumerate(text.splitlines(), start=1):
        where = f"{split_list}:{i}"
        if not line.strip() or line.startswith("#"):
            continue
        # The last comma, so that a path may hold one.
        name, comma, split = (field.strip() for field in line.rpartition(","))
        relative = pathlib.PurePosixPath(name)
        if not comma or not name or not split or not relative.parent.name:
            raise BadSplitList(
                f"{where}: expected `class/file,split`, got {line.strip()!r}"
            )
        if not (directory / relative).is_file():
            raise BadSplitList(f"{where}: {directory / relative} does not exist")
        if relative in seen:
            raise BadSplitList(f"{where}: {relative} is listed twice")
        seen.add(relative)
        if reason := unfit(name, kind):
            left_out.append((name, reason))
        else:
            listed.append((split, directory / relative))
    if not listed:
        raise BadSplitList(f"{split_list} lists no {kind}")
    return listed, left_out


def unfit(name: str, kind: str) -> str:
    """Why a file of this name is left out; "" if it is not."""
    suffix = pathlib.PurePosixPath(name).suffix
    if suffix.lower() not in SUFFIXES[kind]:
        return f"{suffix or 'no suffix'} is not a known {kind} suffix"
    try:
        name.encode()
    except UnicodeEncodeError:  # as TFDS has to encode it
        return "its name is not in UTF-8"
    return ""


def _folders(directory: epath.Path) -> list[epath.Path]:
    return sorted(
        p for p in directory.iterdir() if p.is_dir() and not p.name.startswith(".")
    )


def _files(directory: epath.Path) -> list[epath.Path]:
    # Links that lead nowhere too, which then cannot be read.
    return sorted(p for p in directory.iterdir() if not p.is_dir())
