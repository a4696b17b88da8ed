"""Draws a run, or the batches that the model gets, to files.

    python -m sparse_tube_vit.figures KIND --workdir DIR [--clip FILE] [--out DIR]
    python -m sparse_tube_vit.figures tubes --config FILE --clip FILE --out DIR
    python -m sparse_tube_vit.figures tokens --workdir DIR DIR ... --out DIR
    python -m sparse_tube_vit.figures batch --config FILE [--config.key=value ...] \
        [--step K] --out DIR

KIND is one of `run.KINDS`, or `run` for all of them. `batch` draws all frames of a
step's batches after augmentation and mixup, with their targets.
"""

import argparse
from collections.abc import Sequence

from sparse_tube_vit.config.flags import read
from sparse_tube_vit.errors import reported
from sparse_tube_vit.figures.run import (
    KINDS,
    Run,
    draw_batches,
    draw_run,
    tubes_over,
    view_of,
    write,
)
from sparse_tube_vit.log import to_stderr


def main(argv: Sequence[str] | None = None) -> None:
    parser = _parser()
    args, overrides = parser.parse_known_args(argv)
    config = None
    if getattr(args, "config", None):
        config = read([f"--config={args.config}", *overrides])
        if args.out is None:
            parser.error("--config needs --out")
    elif overrides:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    to_stderr()
    with reported():
        if args.command == "batch":
            paths = draw_batches(config, args.step, args.out)
        elif config is not None:
            config.data_dir = args.data_dir or config.data_dir
            paths = write(tubes_over(view_of(config, args.clip), config), args.out)
        else:
            workdirs = args.workdir if args.command == "tokens" else [args.workdir]
            clip, data_dir = (
                getattr(args, "clip", None),
                getattr(args, "data_dir", None),
            )
            runs = [Run(workdir, clip, data_dir) for workdir in workdirs]
            paths = draw_run(runs, args.command, args.out)
        for path in paths:
            print(path)


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m sparse_tube_vit.figures",
        description="Draws a run, or the batches that the model gets.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    kinds = {"run": "all of the following"}
    kinds |= {kind: draw.__doc__.split(".")[0].strip() for kind, draw in KINDS.items()}
    for kind, about in kinds.items():
        command = commands.add_parser(
            kind, help=about, description=f"{about}.", allow_abbrev=False
        )
        several = {"nargs": "+"} if kind == "tokens" else {}
        source = command
        if kind == "tubes":
            source = command.add_mutually_exclusive_group(required=True)
            source.add_argument("--config", help="as for training, in place of a run")
        source.add_argument(
            "--workdir", required=kind != "tubes", help="of the training run", **several
        )
        command.add_argument("--out", help="a directory; default: WORKDIR/figures")
        if kind in ("run", "tubes", "attention"):
            command.add_argument(
                "--clip", help="a video or image; default: of the run's evaluation"
            )
            command.add_argument("--data_dir", help="of the prepared data sets")
    batch = commands.add_parser(
        "batch",
        help="all frames of a step's batches, augmented, with their targets",
        epilog="--config.key=value sets a key of the config.",
        allow_abbrev=False,
    )
    batch.add_argument("--config", required=True, help="as for training")
    batch.add_argument("--step", type=_step, default=1, help="from 1, the default, on")
    batch.add_argument("--out", required=True, help="where the pictures go")
    return parser


def _step(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


if __name__ == "__main__":
    main()
