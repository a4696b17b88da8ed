"""A folder of clips or images, prepared as a data set for fine-tuning."""

import collections
import dataclasses
import hashlib
import json
import os
import re
import shlex
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path

from etils import epath

from sparse_tube_vit import storage
from sparse_tube_vit.checkpoints.run import OtherRun
from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.datasets import manifest
from sparse_tube_vit.datasets.builders import folders
from sparse_tube_vit.datasets.preparing import prepare
from sparse_tube_vit.datasets.reading import UnknownSplit
from sparse_tube_vit.log import log

#: What people name their splits.
_SPLIT = "train(ing)?|test(ing)?|val(id(ation)?)?|dev|eval"

#: From so many files on, processes prepare a folder: they take seconds to start.
_MANY = 200


@dataclasses.dataclass(frozen=True)
class FolderDataset:
    """A folder, prepared as a data set.

    Attributes:
        dataset: Its name below `data_dir`.
        kind: "video" or "image".
        test: The name of its test split.
        class_names: The names of its classes.
    """

    dataset: str
    kind: str
    test: str
    class_names: tuple[str, ...]


def prepare_folder(
    config: ConfigDict,
    key: str = "folder",
    classes: Sequence[str] = (),
    begun: Collection[str] = (),
) -> FolderDataset:
    """Prepares a folder of section `data`, unless it is prepared already.

    The data set's name holds a digest of its files, splits and labels: when these
    change, it is another data set.

    Args:
        config: The config of the run.
        key: "folder" for `data.folder`, which `data.split_list` may split, or "images",
            which holds images.
        classes: Class names of another folder. Where all of this one's are among them,
            labels are numbers of these.
        begun: Data sets of the run that goes on, if one does.

    Raises:
        OtherRun: The folder is none of `begun` any more.
        NoClassFolders: It is no folder of class folders that can be read.
        UnreachableStorage: That of the folder does not answer.
        TooFewExamples: There is one class, or one lacks examples to train or test on.
        UnknownSplit: The folder has splits, but not `train` and one to test on.
        DatasetError: The other named errors of listing and preparing it.
    """
    check_folder(config, key)
    with storage.reaching(config.data[key]):
        return _prepare_folder(config, key, tuple(classes), begun)


def check_folder(config: ConfigDict, key: str) -> None:
    """Raises NoClassFolders if a folder of section `data` is not there to be read."""
    if why := storage.why_unread(config.data[key]):
        raise folders.NoClassFolders(f"config.data.{key} is {config.data[key]}: {why}")
    with storage.reaching(config.data[key]):
        if not epath.Path(config.data[key]).is_dir():
            raise folders.NoClassFolders(
                f"config.data.{key} is {config.data[key]}, which is no folder."
            )


def _prepare_folder(config, key, classes, begun):
    folder = epath.Path(config.data[key])
    _check_apart(folder, config.data_dir)
    split_list = config.data.split_list if key == "folder" else ""
    kind = "image" if key == "images" else folders.folder_kind(folder)
    listing = folders.read_folder(folder, kind, split_list or None)
    own = listing.class_names
    listing = _with_labels(folder, listing, classes)
    digests = folders.digests(listing)
    _warn_of_copies(folder, listing, digests)
    how = f"splits as in {split_list or folder}"
    if set(listing.splits) == {"train"}:
        listing = folders.hold_out(listing, config.data.test_share, digests)
        how = (
            f"{config.data.test_share:.0%} of each class held out for testing, by the "
            "SHA-256 of its files (config.data.test_share)"
        )
    if (test := folders.split_to_test_on(listing.splits)) is None:
        raise UnknownSplit(
            f"{split_list or folder} has the splits {', '.join(listing.splits)}. "
            f"It takes train and one of {', '.join(folders.TEST_SPLITS)}; or class "
            "folders alone, of which some clips are held out."
            + _advice(folder, key, split_list, listing)
        )
    _check_classes(folder, kind, _counts(listing), [], own, ("train", test))
    digest = _digest(listing, own, digests)
    builder = {"image": folders.ImageFolder, "video": folders.VideoFolder}[kind](
        listing=listing,
        data_dir=config.data_dir,
        config=_name(folder, kind, digest, begun),
    )
    workers = config.loader.workers if len(digests) >= _MANY else 0
    prepare.prepare(builder, workers=workers)
    contents = "\n".join(prepare.contents(builder))
    log.info("%s as %s: %s\n%s", folder, builder.dataset, how, contents)
    rows = [*manifest.read(builder.directory / manifest.NAME)]
    counts = collections.Counter(
        (row.split, row.label) for row in rows if row.status == manifest.OK
    )
    damaged = [row.id for row in rows if row.split and row.status != manifest.OK]
    _check_classes(folder, kind, counts, damaged, own, ("train", test))
    return FolderDataset(
        dataset=builder.dataset,
        kind=kind,
        test=test,
        class_names=tuple(builder.listing.class_names),
    )


def _with_labels(folder, listing, classes):
    """Returns a listing with labels of `classes` if all of its own are among them."""
    if set(listing.class_names) <= set(classes):
        listing = dataclasses.replace(listing, class_names=classes)
    else:
        _warn_of_names(folder, listing.class_names, classes)
    if len(listing.class_names) < 2:
        raise folders.TooFewExamples(
            f"{folder} has one class, {listing.class_names[0]!r}: there is nothing to "
            f"tell apart. Give every class a folder of its own: {folder}/<class>/<file>"
        )
    return listing


def _digest(listing, own, digests):
    """Returns a digest of a listing's files, splits and labels.

    Args:
        listing: The listing.
        own: Its class names, where labels are not by those of another folder.
        digests: SHA-256 of its files by id.
    """
    lines = [
        (split, example.id, digests[example.id])
        for split, examples in sorted(listing.splits.items())
        for example in sorted(examples)
    ]
    labels = [] if listing.class_names == own else [listing.class_names]
    return hashlib.sha256(json.dumps(lines + labels).encode()).hexdigest()[:8]


def _name(folder, kind, digest, begun):
    """Returns the name of a folder's data set, below its kind.

    It is that of `begun`, where the same files were in a folder of another name.

    Raises:
        OtherRun: None of `begun` is this data set.
    """
    for dataset in begun:
        if dataset.startswith(f"{kind}_") and dataset.endswith(digest):
            return dataset.partition("/")[2]
    name = re.sub(r"[^\w+-]+", "_", folder.name, flags=re.ASCII).strip("_")
    name = f"{name or 'clips'}-{digest}"
    if begun:  # before it is prepared, for hours
        raise OtherRun(
            f"{folder} is {kind}_folder/{name} now, but the run began with "
            f"{', '.join(begun)}: files, labels or splits have changed. Choose another "
            "--workdir, or make the folder as it was to resume."
        )
    return name


def _warn_of_names(folder, own, classes):
    """Warns of class names that hardly differ, from each other or from `classes`."""
    plain = collections.defaultdict(list)
    for name in own:
        plain[_plain(name)].append(name)
    for names in plain.values():
        if len(names) > 1:
            log.warning(
                "%s has classes whose names hardly differ: %s. If they are one, move "
                "their files into one folder.",
                folder,
                " and ".join(map(repr, names)),
            )
    theirs = {_plain(name): name for name in classes}
    if not plain.keys() & theirs.keys():
        return
    there = {n: theirs.get(_plain(n)) for n in own if n not in classes}
    others = [
        f"{name!r} ({f'there {x!r}' if x else 'not there'})"
        for name, x in there.items()
    ]
    log.warning(
        "%s has a head of its own, as not all of its classes are named as those of "
        "config.data.folder: %s%s. To train one head, name all as there.",
        folder,
        ", ".join(others[:5]),
        ", ..." if len(others) > 5 else "",
    )


def _plain(name):
    """Returns a name in one case without spaces: "Jumping_Jack" is jumpingjack."""
    name = unicodedata.normalize("NFC", name).casefold()
    return re.sub(r"(?<=[^\W\d_])[\s_-]+(?=[^\W\d_])", "", name)


def _warn_of_copies(folder, listing, digests):
    """Warns of files with several classes, and of those both to train and test on."""
    copies = collections.defaultdict(list)
    for split, examples in listing.splits.items():
        for example in examples:
            copies[digests[example.id]].append((split, example))
    several = [c for c in copies.values() if len({e.label for _, e in c}) > 1]
    leaked = [c for c in copies.values() if len({split for split, _ in c}) > 1]
    for found, why in (
        (several, "the same files are in several classes"),
        (leaked, "the same files are in several splits: accuracies are too good"),
    ):
        if found:
            ids = " and ".join(example.id for _, example in found[0])
            log.warning("%s: %s (%d of them, as %s).", folder, why, len(found), ids)


def _check_apart(folder, data_dir):
    """Raises NoClassFolders if what is prepared would lie among the classes."""
    if storage.is_remote(folder) or storage.is_remote(data_dir):
        return
    data_dir, folder = (Path(os.path.realpath(path)) for path in (data_dir, folder))
    if data_dir.is_relative_to(folder):
        raise folders.NoClassFolders(
            f"config.data_dir {data_dir} is in the folder of classes {folder}, and "
            "would become one: set --config.data_dir to a folder elsewhere."
        )


def _advice(folder, key, split_list, listing):
    """What to do about folders that are nested too deep, if they are no splits."""
    names = list(listing.splits)
    if split_list or {"train", *folders.TEST_SPLITS} & {*names}:
        return ""
    if any(re.fullmatch(_SPLIT, name, re.IGNORECASE) for name in names):
        return " If these are splits, rename them."
    if len(names) == 1:
        option = shlex.quote(f"--config.data.{key}={folder / names[0]}")
        return f" For the classes in {names[0]}: {option}"
    return (
        f" If these are classes or groups of them, put the files of every class into "
        f"one folder: {folder}/<class>/<file>"
    )


def _counts(listing):
    """Returns the number of examples of a listing by (split, class)."""
    return collections.Counter(
        (split, example.label)
        for split, examples in listing.splits.items()
        for example in examples
    )


def _check_classes(folder, kind, counts, damaged, class_names, splits):
    """Raises TooFewExamples if one of the classes has none in one of the splits.

    Args:
        folder, kind: For the message.
        counts: Number of examples by (split, class).
        damaged: Ids of those that do not decode.
        class_names, splits: The classes and splits.
    """
    lacking = [
        f"class {name!r} has no {kind} in {split}"
        for name in class_names
        for split in splits
        if not counts[split, name]
    ]
    if lacking:
        remove = f"Remove what does not decode ({', '.join(damaged)}). "
        raise folders.TooFewExamples(
            f"{folder}: {', '.join(lacking)}. {remove if damaged else ''}Add "
            f"{kind}s, or remove the class."
        )
