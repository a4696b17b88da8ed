"""Writes pictures of a run, and of the batches that the model gets, to files.

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

from etils import epath
from matplotlib.figure import Figure

from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.config.flags import read
from sparse_tube_vit.errors import UnwritableOutput, reported
from sparse_tube_vit.figures.batches import batch_grids
from sparse_tube_vit.figures.canvas import save
from sparse_tube_vit.figures.run import (
    KINDS,
    NothingToDraw,
    Pictures,
    Run,
    read_clip,
    tubes_over,
)
from sparse_tube_vit.log import to_stderr
from sparse_tube_vit.training.examples import examples_of_step


def draw_run(
    workdirs: Sequence, kind: str = "run", out=None, clip=None, data_dir=None
) -> list[epath.Path]:
    """Writes the pictures of a kind; returns their paths.

    Args:
      workdirs: of training runs; several for accuracy against tokens alone.
      kind: one of `KINDS`, or "run" for all that there is something to draw of.
      out: a directory; by default WORKDIR/figures.
      clip: a file to draw on; by default an example of the run's evaluation.
      data_dir: of prepared data sets; by default that of the run's config.

    Raises:
      UnwritableOutput, NothingToDraw; what reading the run raises.
    """
    runs = [Run(workdir, clip, data_dir) for workdir in workdirs]
    kinds = KINDS if kind == "run" else {kind: KINDS[kind]}
    out = out or runs[0].workdir / "figures"
    paths = [path for draw in kinds.values() for path in _written(draw(*runs), out)]
    if not paths:
        raise NothingToDraw(
            f"{', '.join(map(str, workdirs))}: nothing there that {kind} could show. "
            f"{_LACKS.get(kind, '')}".strip()
        )
    return paths


_LACKS = {
    "curves": "Its parameters come from elsewhere: it has no metrics.jsonl.",
    "confusion": "Evaluate it first, on examples with one label each.",
    "positions": "It has no position embeddings.",
    "tokens": "Give several runs, or evaluate one with --stride_scale 0.5 as well.",
}


def draw_batches(config: ConfigDict, step: int, out) -> list[epath.Path]:
    """Writes the batches of a step as PNG, `STREAM_stepK_PAGE.png`; returns the paths.

    Raises: UnwritableOutput; and as `examples_of_step`.
    """
    pages = (
        (f"{name}_step{step}_{i}", figure)
        for name, examples in examples_of_step(config, step)
        for i, figure in enumerate(batch_grids(examples), start=1)
    )
    return _written(pages, out)


def _written(pictures: Pictures, out) -> list[epath.Path]:
    """Paths of the pictures, in a directory that is made where it is not there."""
    paths, out = [], epath.Path(out)
    for name, picture in pictures:
        suffix = "png" if isinstance(picture, Figure) else "gif"
        paths.append(out / f"{name}.{suffix}")
        try:
            out.mkdir(parents=True, exist_ok=True)
            save(picture, paths[-1])
        except OSError as error:
            raise UnwritableOutput(f"--out: {error}") from error
    return paths


def main(argv: Sequence[str] | None = None) -> None:
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
        add = command.add_argument
        several = {"nargs": "+"} if kind == "tokens" else {}
        where = command
        if kind == "tubes":
            where = command.add_mutually_exclusive_group(required=True)
            where.add_argument("--config", help="as for training, in place of a run")
        where.add_argument(
            "--workdir", required=kind != "tubes", help="of the training run", **several
        )
        add("--out", help="a directory; default: WORKDIR/figures")
        if kind in ("run", "tubes", "attention"):
            add("--clip", help="a video or image; default: of the run's evaluation")
            add("--data_dir", help="of the prepared data sets")
    batch = commands.add_parser(
        "batch",
        help="all frames of a step's batches, augmented, with their targets",
        epilog="--config.key=value sets a key of the config.",
        allow_abbrev=False,
    )
    batch.add_argument("--config", required=True, help="as for training")
    batch.add_argument("--step", type=_step, default=1, help="from 1, the default, on")
    batch.add_argument("--out", required=True, help="where the pictures go")
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
            if args.data_dir:
                config.data_dir = args.data_dir
            pictures = tubes_over(read_clip(config, args.clip), config)
            paths = _written(pictures, args.out)
        else:
            workdirs = args.workdir if args.command == "tokens" else [args.workdir]
            options = {k: getattr(args, k, None) for k in ("out", "clip", "data_dir")}
            paths = draw_run(workdirs, args.command, **options)
        for path in paths:
            print(path)


def _step(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


if __name__ == "__main__":
    main()
