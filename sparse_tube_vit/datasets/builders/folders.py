"""`video_folder/NAME` and `image_folder/NAME`: folders of clips or images.

There are three layouts:

* `DIR/<class>/<file>`: one split, `train`.
* `DIR/<split>/<class>/<file>`.
* Either of them with a list of `relative/path,split` lines; a file's class is the
  folder that holds it.

Labels number the sorted class names of all splits together. `hold_out` makes the split
`test` of a folder that has none.
"""

import collections
import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from sparse_tube_vit import storage
from sparse_tube_vit.datasets.builders import builder
from sparse_tube_vit.datasets.manifest import Row
from sparse_tube_vit.errors import DatasetError
from sparse_tube_vit.log import log
from sparse_tube_vit.video.limits import UndecodableClip
from sparse_tube_vit.video.opening import SUFFIXES, kind_of

#: Names of the split to test on; the first that a folder has is used.
TEST_SPLITS = ("test", "val", "validation")


class NoClassFolders(DatasetError):
    """The directory has not the layout of class folders."""


class EmptyClassFolder(DatasetError):
    """A class folder holds no file of its kind."""


class BadSplitList(DatasetError):
    """The split list is malformed or names a file that is not there."""


class TooFewExamples(DatasetError):
    """There is only one class, or one has too few examples to train and test on."""


class ImageFolder(builder.Builder):
    """Images in class folders."""

    name = "image_folder"
    kind = "image"

    @classmethod
    def read(cls, images, split_list=None) -> builder.Listing:
        """Lists a folder, as `read_folder`."""
        return read_folder(images, cls.kind, split_list)


class VideoFolder(builder.Builder):
    """Clips in class folders."""

    name = "video_folder"
    kind = "video"

    @classmethod
    def read(cls, videos, split_list=None) -> builder.Listing:
        """Lists a folder, as `read_folder`."""
        return read_folder(videos, cls.kind, split_list)


def read_folder(directory, kind: str, split_list=None) -> builder.Listing:
    """Lists the files of a directory in one of the layouts above.

    An example's id is its path below `directory`. Files without a suffix of their kind
    and what `storage.walk` leaves out, such as links that lead nowhere, are in
    `left_out`.

    Args:
        directory: Directory of class folders, or of split folders with class folders.
        kind: "image" or "video".
        split_list: File of `relative/path,split` lines; empty lines and lines that
            begin with # are ignored. Only its files are listed.

    Raises:
        NoClassFolders: There are no class folders, folders where files belong, or
            names that TFDS cannot store.
        UnreadableFile: A folder cannot be listed.
        EmptyClassFolder: A class folder holds no file of this kind.
        BadSplitList: The list is not in UTF-8, a line is malformed, or a file is listed
            twice or does not exist.
    """
    directory = epath.Path(directory)
    if not directory.is_dir():
        raise NoClassFolders(f"{directory} is not a directory")
    if split_list is None:
        listed, left_out = _walk(directory, kind)
    else:
        listed, left_out = _read_split_list(directory, kind, epath.Path(split_list))
    nested = (
        f". Folders of {directory} that hold folders are taken for splits; classes are"
        f" {directory}/<class>/<file>"
    )
    splits = {}
    for split, path in listed:
        if not re.fullmatch(r"[\w-]+", split) or split.lower() == "all":
            raise NoClassFolders(
                f"{split!r} cannot name a split: letters, digits, - and _ can, `all`"
                " cannot" + ("" if split_list else nested)
            )
        name = path.relative_to(directory).as_posix()
        example = builder.ListedExample(name, path.parent.name, path)
        splits.setdefault(split, []).append(example)
    class_names = tuple(sorted({path.parent.name for _, path in listed}))
    for name in class_names:
        if not _is_utf8(name):
            raise NoClassFolders(
                f"{name!r} cannot name a class: it is not in UTF-8; rename that folder"
            )
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
    """Returns "image" if a folder holds images alone, else "video".

    GIFs count as both. Beside fewer other images, covers say, a folder of GIFs holds
    videos if one of them is animated.

    Raises:
        UnreadableFile: A GIF cannot be read.
    """
    files, _ = storage.files_below(directory)
    by_suffix = collections.defaultdict(list)
    for path in files:
        by_suffix[path.suffix.lower()].append(path)
    videos = by_suffix.keys() & (SUFFIXES["video"] - SUFFIXES["image"])
    images = by_suffix.keys() & (SUFFIXES["image"] - SUFFIXES["video"])
    if videos or not images:
        return "video"
    gifs, others = by_suffix[".gif"], sum(len(by_suffix[x]) for x in images)
    if not gifs:
        return "image"
    animated = len(gifs) > others and any(_is_animated(path) for path in sorted(gifs))
    kind = "video" if animated else "image"
    log.info(
        "%s is read as a folder of %ss: it holds GIFs (%d%s) and other images (%d).",
        directory,
        kind,
        len(gifs),
        ", animated" if animated else "",
        others,
    )
    return kind


def _is_animated(path):
    try:
        return kind_of(storage.read_file(path)) == "video"
    except UndecodableClip:
        return False


def split_to_test_on(splits: Iterable[str]) -> str | None:
    """Returns the one of `TEST_SPLITS` that a folder with these splits is tested on.

    None if it has none of them, or no split `train` beside it.
    """
    found = [name for name in TEST_SPLITS if name in splits]
    return found[0] if found and "train" in splits else None


def digests(listing: builder.Listing) -> dict[str, str]:
    """Returns the SHA-256 of every file of a listing in hexadecimal, by id.

    Raises:
        UnreadableFile: A file cannot be read.
    """

    def digest(example):
        source, found = epath.Path(example.source), hashlib.sha256()
        with builder.reading(source), source.open("rb") as file:
            while part := file.read(2**20):  # tensorflow's files are none for hashlib
                found.update(part)
        return found.hexdigest()

    examples = [e for split in listing.splits.values() for e in split]
    if len(examples) > 1000:
        log.info("Reading %d files, to know whether they are prepared", len(examples))
    with ThreadPoolExecutor(16) as executor:  # disks and networks wait, hashing is C
        found = executor.map(digest, examples)
        return dict(zip((e.id for e in examples), found, strict=True))


def hold_out(
    listing: builder.Listing, fraction: float, digests: Mapping[str, str]
) -> builder.Listing:
    """Moves a fraction of every class from split `train` to a split `test`.

    Files are held out in the order of their digests, at least one of a class and not
    all: the same ones under other names, and copies of a file together. When files are
    added, only as many others change sides as the fraction requires.

    Args:
        listing: Listing of one split, `train`.
        fraction: Between 0 and 1.
        digests: SHA-256 of its files by id, as returned by `digests`.

    Raises:
        TooFewExamples: A class has fewer than two different files.
    """
    classes = collections.defaultdict(list)
    for example in listing.splits["train"]:
        classes[example.label].append(example)
    splits = {"train": [], "test": []}
    for label, examples in classes.items():
        files = sorted({digests[example.id] for example in examples})
        if len(files) < 2:
            count = f"{len(examples)} copies of one" if len(examples) > 1 else "one"
            raise TooFewExamples(
                f"class {label!r} has {count} file ({examples[0].id}); it takes two,"
                " one to train on and one to test on"
            )
        count = round(fraction * len(files))
        held_out = {*files[: min(max(count, 1), len(files) - 1)]}
        for example in examples:
            split = "test" if digests[example.id] in held_out else "train"
            splits[split].append(example)
    return dataclasses.replace(listing, splits=splits)


def _walk(directory: epath.Path, kind: str):
    """Returns [(split, file)], [(name, reason it is left out)]."""
    below = {folder.path: folder for folder in storage.walk(directory)}
    left_out = {path: why for f in below.values() for path, why in f.left_out.items()}
    folders = below[directory].folders
    if any(below[folder].folders for folder in folders):
        splits = {folder.name: folder for folder in folders}
    else:
        splits = {"train": directory}
    listed = []
    for split, folder in splits.items():
        classes = below[folder].folders
        if not classes:
            nested = [below[f].folders[0] for f in folders if below[f].folders]
            but = f", though {nested[0]} is a folder in a folder" if nested else ""
            raise NoClassFolders(
                f"{folder} holds no class folders{but}; expected"
                f" {directory}/<class>/<file> or {directory}/<split>/<class>/<file>"
            )
        # Files beside class folders have no class.
        for path in (*below[directory].files, *below[folder].files):
            left_out[path] = "not in a class folder"
        for class_folder in classes:
            if nested := below[class_folder].folders:
                raise NoClassFolders(
                    f"{nested[0]} is a folder in what should be a class folder;"
                    f" expected files in {class_folder}"
                )
            files = below[class_folder].files
            reasons = {path: unfit(path.name, kind) for path in files}
            taken = [path for path in files if not reasons[path]]
            if not taken:
                others = below[class_folder].left_out | reasons
                each = [f"{path.name}: {why}" for path, why in sorted(others.items())]
                first = f"of {len(each)} entries, " + "; ".join(each[:3])
                raise EmptyClassFolder(
                    f"{class_folder} holds no {kind} ({first if each else 'empty'});"
                    " fill it or remove it"
                )
            listed += [(split, path) for path in taken]
            left_out |= {path: why for path, why in reasons.items() if why}
    return listed, sorted(
        (path.relative_to(directory).as_posix(), why) for path, why in left_out.items()
    )


def _read_split_list(directory: epath.Path, kind: str, split_list: epath.Path):
    """Returns [(split, file)], [(name, reason it is left out)]."""
    if not split_list.is_file():
        raise BadSplitList(f"{split_list} does not exist")
    listed, left_out, names = [], [], set()
    remote = storage.is_remote(directory)  # a request for each file would take hours
    there = _files_there(directory, required=remote)
    try:
        text = split_list.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadSplitList(f"{split_list} is not in UTF-8: {error}") from None
    for i, line in enumerate(text.splitlines(), start=1):
        where = f"{split_list}:{i}"
        if not line.strip() or line.startswith("#"):
            continue
        # The last comma, so that a path may contain one.
        name, comma, split = (field.strip() for field in line.rpartition(","))
        relative = pathlib.PurePosixPath(name)
        shown = f"expected `class/file,split`, got {line.strip()!r}"
        if not comma or not name or not split or not relative.parent.name:
            raise BadSplitList(f"{where}: {shown}")
        if relative.is_absolute():
            raise BadSplitList(f"{where}: {shown}; paths are those below {directory}")
        path = directory / relative
        dead = storage.dead_link(path)
        if not dead and not (path in there if remote else path.is_file()):
            raise BadSplitList(f"{where}: {path} does not exist")
        if relative in names:
            raise BadSplitList(f"{where}: {relative} is listed twice")
        names.add(relative)
        if reason := dead or unfit(name, kind):
            left_out.append((name, reason))
        else:
            listed.append((split, path))
    if not listed:
        raise BadSplitList(f"{split_list} lists no {kind}")
    for path in sorted(there):
        name = path.relative_to(directory).as_posix()
        if pathlib.PurePosixPath(name) not in names and not unfit(name, kind):
            left_out.append((name, f"not in {split_list.name}"))
    return listed, left_out


def _files_there(directory, required):
    """Returns the files below a folder; none if one in it cannot be listed."""
    try:
        return {*storage.files_below(directory)[0]}
    except storage.UnreadableFile as error:
        if required:
            raise
        log.warning("What no line lists is not told: %s", error)
        return set()


def unfit(name: str, kind: str) -> str:
    """Returns the reason why a file of this name is left out, or ""."""
    suffix = pathlib.PurePosixPath(name).suffix
    if suffix.lower() not in SUFFIXES[kind]:
        return f"{suffix} is not a known {kind} suffix" if suffix else "no suffix"
    return "" if _is_utf8(name) else "its name is not in UTF-8"


def _is_utf8(name: str) -> bool:
    """Returns whether TFDS can store a name: those of files may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
