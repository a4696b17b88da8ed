"""Prepares a data set for training.

    sparse-tube-vit prepare moving_shapes --data_dir data
    sparse-tube-vit prepare ucf101 --split 1 \
        --videos UCF-101 --annotations ucfTrainTestlist --data_dir data
    sparse-tube-vit prepare kinetics400 \
        --videos DIR --annotations DIR --data_dir data \
        --transcode short_side=256,gop=30,crf=23
    sparse-tube-vit prepare imagenet2012 --images DIR --data_dir data
    sparse-tube-vit prepare video_folder --name dances \
        --videos DIR --data_dir data
    sparse-tube-vit prepare image_folder --name tiny_imagenet \
        --images DIR [--split_list FILE] --data_dir data

kinetics600, kinetics700, something_something_v2 and charades take the options of
kinetics400. Every file is decoded once and stored in ArrayRecord as it is, or
transcoded; files that do not decode are left out. manifest.csv lists the properties of
every file. Prints the examples per class, and the files that were left out with the
reasons. After an interruption the same command continues.

One worker process per core, or `--workers`, shares the files; with --beam "OPTIONS" the
workers of an Apache Beam pipeline do, such as "--runner=DataflowRunner --project=...".
"""

import re
import sys
from collections.abc import Sequence

from sparse_tube_vit.config.flags import CommandParser, at_least
from sparse_tube_vit.datasets.catalog import BUILDERS, OPTIONS, builder_class
from sparse_tube_vit.datasets.preparing.prepare import prepare
from sparse_tube_vit.errors import DatasetError, reported
from sparse_tube_vit.video.transcode import Transcode


class BadArguments(DatasetError):
    """An option is missing, superfluous or out of range for this data set."""


def main(argv: Sequence[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--beam" in argv[:-1]:  # argparse takes its value for options
        i = argv.index("--beam")
        argv[i : i + 2] = [f"--beam={argv[i + 1]}"]
    arguments = _parser().parse_args(argv)
    with reported():
        try:
            text = arguments.transcode
            transcode = None if text is None else Transcode.parse(text)
            for builder in _builders(arguments):
                options = (transcode, arguments.workers, arguments.beam)
                print(prepare(builder, *options), flush=True)
        except KeyboardInterrupt:
            print("Stopped. The same command continues from here.", file=sys.stderr)
            sys.exit(130)


def _parser() -> CommandParser:
    parser = CommandParser(
        "prepare",
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
    add(
        "--workers",
        type=at_least(0),
        help="worker processes; default: one per core; 0: none, all in this process",
    )
    add("--beam", help='Apache Beam pipeline in their place: --beam="--runner=..."')
    return parser


FOR_ALL = ("dataset", "data_dir", "workers", "beam")


def _builders(arguments) -> list:
    """Returns the builders to run, with their listings.

    Raises:
        BadArguments: An option is missing, superfluous or out of range.
    """
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
    if arguments.workers is not None and arguments.beam is not None:
        raise BadArguments("--workers and --beam: give one of them")
    cls, data_dir = builder_class(arguments.dataset), arguments.data_dir
    if arguments.dataset == "moving_shapes":
        return [cls(config=kind, data_dir=data_dir) for kind in cls.KINDS]
    config = arguments.name
    if config is not None and not re.fullmatch(r"[\w+-]+", config):
        raise BadArguments(
            f"--name {config!r}: letters, digits, _, + and - can name a data set"
        )
    if arguments.dataset == "ucf101":
        config = f"split{arguments.split or 1}"
    options = {option: getattr(arguments, option) for option in given}
    options = {k: v for k, v in options.items() if k not in ("name", "transcode")}
    return [cls(config=config, listing=cls.read(**options), data_dir=data_dir)]


if __name__ == "__main__":
    main()
