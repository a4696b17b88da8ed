"""Prepares a data set for training: `python -m sparse_tube_vit.prepare NAME ...`.

    python -m sparse_tube_vit.prepare moving_shapes --data_dir data
    python -m sparse_tube_vit.prepare ucf101 --split 1 \
        --videos UCF-101 --annotations ucfTrainTestlist --data_dir data
    python -m sparse_tube_vit.prepare kinetics400 \
        --videos DIR --annotations DIR --data_dir data
    python -m sparse_tube_vit.prepare imagenet2012 --images DIR --data_dir data
    python -m sparse_tube_vit.prepare video_folder --name dances \
        --videos DIR --data_dir data
    python -m sparse_tube_vit.prepare image_folder --name tiny_imagenet \
        --images DIR [--split_list FILE] --data_dir data

kinetics600, kinetics700, something_something_v2 and charades are called as kinetics400.
Encoded files are copied into ArrayRecord files as they are. Prints what was written,
and what was left out and why.
"""

import argparse
import concurrent.futures
import multiprocessing
import re
import sys
import time

from sparse_tube_vit.datasets import BUILDERS, DatasetError, builder_class

LEFT_OUT_SHOWN = 20


class BadArguments(DatasetError):
    """The command line does not say what this data set needs."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        for report in _prepare_all(_builders(arguments)):
            print(report)
    except DatasetError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sparse_tube_vit.prepare",
        description="Prepares a data set for training, as TFDS ArrayRecord files.",
    )
    add = parser.add_argument
    add("dataset", choices=sorted(BUILDERS))
    add("--data_dir", required=True, help="where prepared data sets are kept")
    add("--videos", help="directory of clips")
    add("--images", help="directory of images (image_folder, imagenet2012)")
    add("--annotations", help="directory of the official annotation files")
    add("--split", type=int, choices=(1, 2, 3), help="official split (ucf101), else 1")
    add("--split_list", help="file of `relative/path,split` lines (folders)")
    add("--name", help="what to call the data set (folders)")
    return parser


# For each data set, the options it needs and those it may have.
OPTIONS = {
    "charades": (("videos", "annotations"), ()),
    "image_folder": (("images", "name"), ("split_list",)),
    "imagenet2012": (("images",), ()),
    "kinetics400": (("videos", "annotations"), ()),
    "kinetics600": (("videos", "annotations"), ()),
    "kinetics700": (("videos", "annotations"), ()),
    "moving_shapes": ((), ()),
    "something_something_v2": (("videos", "annotations"), ()),
    "ucf101": (("videos", "annotations"), ("split",)),
    "video_folder": (("videos", "name"), ("split_list",)),
}


def _builders(arguments) -> list:
    """Returns the builders to run, with what they are to write listed."""
    needed, optional = OPTIONS[arguments.dataset]
    given = {
        option
        for option in vars(arguments)
        if option not in ("dataset", "data_dir") and getattr(arguments, option)
    }
    if missing := [option for option in needed if option not in given]:
        raise BadArguments(
            f"{arguments.dataset} needs {', '.join(f'--{m}' for m in missing)}"
        )
    if excess := sorted(given - {*needed, *optional}):
        raise BadArguments(
            f"{arguments.dataset} has no use for"
            f" {', '.join(f'--{e}' for e in excess)}; leave it out"
        )
    cls, data_dir = builder_class(arguments.dataset), arguments.data_dir
    if arguments.dataset == "moving_shapes":
        return [cls(config=kind, data_dir=data_dir) for kind in cls.KINDS]
    if arguments.dataset == "ucf101":
        from sparse_tube_vit.datasets import ucf101

        split = arguments.split or 1
        listing = ucf101.read_lists(arguments.videos, arguments.annotations, split)
        return [cls(config=f"split{split}", listing=listing, data_dir=data_dir)]
    if "name" not in needed:
        found = cls.read(**{option: getattr(arguments, option) for option in needed})
        return [cls(listing=found, data_dir=data_dir)]
    from sparse_tube_vit.datasets import folders

    if not re.fullmatch(r"[\w+-]+", arguments.name):
        raise BadArguments(
            f"--name {arguments.name!r}: letters, digits, _, + and - can name a data"
            " set"
        )
    directory = arguments.images or arguments.videos
    listing = folders.read_folder(directory, cls.kind, arguments.split_list)
    return [cls(config=arguments.name, listing=listing, data_dir=data_dir)]


def _prepare_all(builders):
    """Yields a report of every data set; several are made side by side."""
    if len(builders) == 1:
        yield _prepare(builders[0])
        return
    # Spawned, not forked: a fork of a process with threads may hang.
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(mp_context=spawn) as pool:
        yield from pool.map(_prepare, builders)


def _prepare(builder) -> str:
    """Writes the data set unless it is there; returns what to tell of it."""
    from sparse_tube_vit.datasets import encoded

    start = time.monotonic()
    config = builder.builder_config
    name = f"{builder.name}/{config.name}" if config else builder.name
    if not encoded.write(builder):
        return (
            f"{name}: already in {builder.data_dir}, left as it is"
            " (to prepare it again, delete that directory)"
        )
    seconds = time.monotonic() - start
    lines = [f"{name}: written to {builder.data_dir} in {seconds:.1f} s"]
    for split in builder.split_names:
        per_class = [builder.counts[split][label] for label in builder.class_names]
        lines.append(
            f"  {split}: {builder.info.splits[split].num_examples} examples of"
            f" {len(per_class)} classes, {min(per_class)} to {max(per_class)} a class"
        )
    listing = getattr(builder, "listing", None)
    left_out, notes = (listing.left_out, listing.notes) if listing else ((), ())
    lines += [f"  note: {note}" for note in notes]
    if left_out:
        lines.append(f"  left out: {len(left_out)}")
        lines += [f"    {item}: {reason}" for item, reason in left_out[:LEFT_OUT_SHOWN]]
        if len(left_out) > LEFT_OUT_SHOWN:
            lines.append(f"    and {len(left_out) - LEFT_OUT_SHOWN} more")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
