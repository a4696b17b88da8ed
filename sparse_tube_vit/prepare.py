"""Prepares a data set for training: `python -m sparse_tube_vit.prepare NAME ...`.

    python -m sparse_tube_vit.prepare moving_shapes --data_dir data
    python -m sparse_tube_vit.prepare ucf101 --split 1 \
        --videos UCF-101 --annotations ucfTrainTestlist --data_dir data
    python -m sparse_tube_vit.prepare kinetics400 \
        --videos DIR --annotations DIR --data_dir data \
        --transcode short_side=256,gop=30,crf=23
    python -m sparse_tube_vit.prepare imagenet2012 --images DIR --data_dir data
    python -m sparse_tube_vit.prepare video_folder --name dances \
        --videos DIR --data_dir data
    python -m sparse_tube_vit.prepare image_folder --name tiny_imagenet \
        --images DIR [--split_list FILE] --data_dir data

kinetics600, kinetics700, something_something_v2 and charades are called as kinetics400.
Every file is decoded once and copied into ArrayRecord files as it is, or transcoded;
what does not decode is left out. manifest.csv says what was found of each. Prints how
many examples there are of each class, and what was left out and why. The same command
goes on with a preparation that was interrupted.

Worker processes share the files, one a core or `--workers`; with --beam "OPTIONS" those
of an Apache Beam pipeline do, such as "--runner=DataflowRunner --project=...".
"""

import argparse
import collections
import functools
import os
import re
import sys
import time

from sparse_tube_vit.datasets import BUILDERS, DatasetError, builder_class, manifest
from sparse_tube_vit.errors import reported

LEFT_OUT_SHOWN = 20


class BadArguments(DatasetError):
    """The command line does not say what this data set needs."""


def main(argv: list[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--beam" in argv[:-1]:  # its value looks like options of ours
        i = argv.index("--beam")
        argv[i : i + 2] = [f"--beam={argv[i + 1]}"]
    arguments = _parser().parse_args(argv)
    with reported():
        try:
            transcode = _transcode(arguments)
            for builder in _builders(arguments):
                said = prepare(builder, transcode, arguments.workers, arguments.beam)
                print(said, flush=True)
        except KeyboardInterrupt:
            print("Stopped. The same command goes on from here.", file=sys.stderr)
            sys.exit(130)


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
    add("--transcode", help="make clips H.264, such as short_side=256,gop=30,crf=23")
    add("--workers", type=int, help="processes, else one a core; 0: this one")
    add("--beam", help='Apache Beam pipeline in their place: --beam="--runner=..."')
    return parser


# For each data set, the options it needs and those it may have.
OPTIONS = {
    "charades": (("videos", "annotations"), ("transcode",)),
    "image_folder": (("images", "name"), ("split_list",)),
    "imagenet2012": (("images",), ()),
    "kinetics400": (("videos", "annotations"), ("transcode",)),
    "kinetics600": (("videos", "annotations"), ("transcode",)),
    "kinetics700": (("videos", "annotations"), ("transcode",)),
    "moving_shapes": ((), ()),
    "something_something_v2": (("videos", "annotations"), ("transcode",)),
    "ucf101": (("videos", "annotations"), ("split", "transcode")),
    "video_folder": (("videos", "name"), ("split_list", "transcode")),
}
FOR_ALL = ("dataset", "data_dir", "workers", "beam")


def _transcode(arguments):
    """Returns the Transcode that is asked for, None if none is."""
    if arguments.transcode is None:
        return None
    from sparse_tube_vit.datasets.transcode import Transcode

    return Transcode.parse(arguments.transcode)


def _builders(arguments) -> list:
    """Returns the builders to run, with what they are to write listed."""
    needed, optional = OPTIONS[arguments.dataset]
    given = {
        option
        for option, value in vars(arguments).items()
        if option not in FOR_ALL and value is not None
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
    if arguments.workers is not None and arguments.workers < 0:
        raise BadArguments(f"--workers {arguments.workers}: give 0 or more")
    if arguments.workers is not None and arguments.beam is not None:
        raise BadArguments("--workers and --beam: give one of them")
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


def prepare(builder, transcode=None, workers=None, beam=None) -> str:
    """Writes a data set unless it is there; returns what to tell of it.

    Args:
        builder: Of `datasets.encoded.Builder`.
        transcode: Applied to every clip; None stores files as they are.
        workers: Processes, None: one a core; 0: this one.
        beam: Options of the Beam pipeline that does the work instead.

    Raises: the errors of `writing.write` and of `parallel`.
    """
    from sparse_tube_vit.datasets import writing

    start = time.monotonic()
    run = functools.partial(_run, builder, workers, beam)
    if not writing.write(builder, transcode, run):
        return (
            f"{builder.dataset}: already in {builder.directory}, left as it is"
            " (to prepare it again, delete that directory)"
        )
    seconds = time.monotonic() - start
    return "\n".join(
        [
            f"{builder.dataset}: written to {builder.directory} in {seconds:.1f} s",
            *contents(builder),
        ]
    )


def contents(builder) -> list[str]:
    """What a prepared data set holds and what was left out, in lines."""
    path = builder.directory / manifest.NAME
    return [
        *_counts(builder, manifest.read(path)),
        *(f"  note: {note}" for note in builder.listing.notes),
        *_left_out(manifest.read(path), path),
    ]


def _run(builder, workers, beam, plan) -> None:
    """Writes what is left of a plan, in processes of this machine or with Beam."""
    from sparse_tube_vit.datasets import parallel, writing

    shards = list(writing.shards(plan))
    left = [shard for shard in shards if not shard.finished()]
    total = sum(len(shard.examples) for shard in left)
    what = f"{builder.dataset}: {total} {builder.kind}s"
    if len(left) < len(shards):
        there = len(shards) - len(left)
        what += f" left; {there} of {len(shards)} shards are there already"
    print(what, file=sys.stderr, flush=True)
    if beam is not None:
        parallel.on_beam(plan, beam)
    elif left:
        if workers is None:
            workers = os.cpu_count()
        with _Progress(total, f" {builder.kind}s") as progress:
            parallel.in_processes(left, min(workers, len(left)), progress.update)


class _Progress:
    """A bar on a terminal; elsewhere, now and then, a line that says the same."""

    LINE_EVERY_SECONDS = 30
    LINE = "{n_fmt} of {total_fmt}{unit} [{elapsed}<{remaining}, {rate_fmt}]"

    def __init__(self, total: int, unit: str):
        from tqdm import tqdm

        self.bar = tqdm(total=total, unit=unit, disable=None)
        self.total, self.unit, self.seen = total, unit, 0
        self.start = self.said = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def update(self, more: int) -> None:
        self.bar.update(more)
        self.seen += more
        now = time.monotonic()
        if self.bar.disable and now >= self.said + self.LINE_EVERY_SECONDS:
            self.said = now
            line = self.bar.format_meter(
                self.seen,
                self.total,
                now - self.start,
                unit=self.unit,
                bar_format=self.LINE,
            )
            print(line, file=sys.stderr, flush=True)


def _counts(builder, rows) -> list[str]:
    """The examples of each class by split, and a line for each split."""
    listing = builder.listing
    counts = {split: collections.Counter() for split in listing.splits}
    examples = collections.Counter()
    for row in rows:
        if row.status == manifest.OK:
            examples[row.split] += 1
            counts[row.split].update(row.label if builder.multi_label else [row.label])
    table = [["", *counts]]
    for name in listing.class_names:
        table.append([name, *(str(counts[split][name]) for split in counts)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for name, *numbers in table:
        cells = (n.rjust(w) for n, w in zip(numbers, widths[1:], strict=True))
        lines.append(f"  {name.ljust(widths[0])}  {'  '.join(cells)}")
    for split, count in counts.items():
        if not examples[split]:
            lines.append(f"  note: no split {split}: none of its examples decodes")
            continue
        per_class = [count[name] for name in listing.class_names]
        lines.append(
            f"  {split}: {examples[split]} examples of {len(per_class)} classes,"
            f" {min(per_class)} to {max(per_class)} a class"
        )
    return lines


def _left_out(rows, path) -> list[str]:
    """What was left out and why, the first of them by name."""
    left_out = [row for row in rows if row.status != manifest.OK]
    if not left_out:
        return []
    lines = [f"  left out: {len(left_out)}"]
    lines += [f"    {row.finding}" for row in left_out[:LEFT_OUT_SHOWN]]
    if len(left_out) > LEFT_OUT_SHOWN:
        lines.append(f"    and {len(left_out) - LEFT_OUT_SHOWN} more, all in {path}")
    return lines


if __name__ == "__main__":
    main()
