"""Draws a run, or the batches that the model gets, to files.

    sparse-tube-vit figures KIND --model MODEL [--clip FILE] [--out DIR]
    sparse-tube-vit figures tubes --config FILE --clip FILE --out DIR
    sparse-tube-vit figures tokens --model RUN RUN ... --out DIR
    sparse-tube-vit figures batch --config FILE [--config.key=value ...] \
        [--step K] --out DIR

KIND is one of `run.KINDS`, or `run` for all of them. `batch` draws all frames of a
step's batches after augmentation and mixup, with their targets.
"""

from collections.abc import Sequence

from sparse_tube_vit.config.flags import (
    CommandParser,
    add_config,
    add_model,
    add_normalization,
    positive,
)
from sparse_tube_vit.errors import reported
from sparse_tube_vit.figures.run import (
    KINDS,
    Run,
    clip_of,
    draw_batches,
    draw_run,
    tubes_over,
    write,
)
from sparse_tube_vit.log import to_stderr
from sparse_tube_vit.training import finetuning


def main(argv: Sequence[str] | None = None) -> None:
    parser = _parser()
    args = parser.parse_with_config(argv)
    config = args.config
    if config is not None and args.out is None:
        parser.error("--config needs --out")
    to_stderr()
    with reported():
        if args.command == "batch":
            paths = draw_batches(config, args.step, args.out)
        elif config is not None:
            config = finetuning.complete(config, data=False)
            config.data_dir = args.data_dir or config.data_dir
            paths = write(tubes_over(clip_of(config, args.clip), config), args.out)
        else:
            models = args.model if args.command == "tokens" else [args.model]
            options = args.clip, args.data_dir, args.normalization
            runs = [Run(model, *options) for model in models]
            paths = draw_run(runs, args.command, args.out)
        for path in paths:
            print(path)


def _parser():
    parser = CommandParser(
        "figures",
        description="Draws a run, or the batches that the model gets.",
    )
    parser.set_defaults(config=None, clip=None, data_dir=None)
    commands = parser.add_subparsers(dest="command", required=True)
    kinds = {"run": "all of the following"}
    kinds |= {kind: draw.__doc__.split(".")[0].strip() for kind, draw in KINDS.items()}
    for kind, about in kinds.items():
        command = commands.add_parser(kind, help=about, description=f"{about}.")
        several = {"nargs": "+"} if kind == "tokens" else {}
        source = command
        if kind == "tubes":
            source = command.add_mutually_exclusive_group(required=True)
            add_config(source, required=False)
        add_model(source, required=kind != "tubes", **several)
        add_normalization(command)
        command.add_argument("--out", help="a directory; default: WORKDIR/figures")
        if kind in ("run", "tubes", "attention"):
            command.add_argument(
                "--clip", help="a video or image; default: of the run's evaluation"
            )
            command.add_argument("--data_dir", help="of the prepared data sets")
    batch = commands.add_parser(
        "batch",
        help="all frames of a step's batches, augmented, with their targets",
    )
    add_config(batch)
    batch.add_argument("--step", type=positive, default=1, help="default: 1")
    batch.add_argument("--out", required=True, help="where the pictures go")
    return parser


if __name__ == "__main__":
    main()
