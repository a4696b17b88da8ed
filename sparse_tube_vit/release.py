"""Writes a release: a folder with a trained model, which `load` takes.

    sparse-tube-vit release --model MODEL --out DIR [--dtype bfloat16]
        [--no-ema] [--step N] [--license NAME] [--overwrite]
        [--push hf://USER/NAME [--private]]
        [--export stablehlo [--export_kind video] [--export_batch 8]]

Its model card states the run's data, steps, and accuracies with their protocol. With
--export it also holds programs that run without this package, see docs/export.md.
"""

import functools
from collections.abc import Sequence

from sparse_tube_vit.checkpoints.release import release
from sparse_tube_vit.config.flags import (
    CommandParser,
    add_checkpoint_arguments,
    positive,
)
from sparse_tube_vit.errors import reported
from sparse_tube_vit.inference.export import add_to_release
from sparse_tube_vit.log import log, to_stderr


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        "release",
        description="Writes a run's checkpoint as a folder that `load` takes.",
    )
    add_checkpoint_arguments(parser, image_vits=False)
    parser.add_argument("--out", required=True, help="the folder to write")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--license", default="", help="of the weights, for the card")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a release that is there"
    )
    parser.add_argument(
        "--push", default="", help="upload it to the Hugging Face Hub: hf://USER/NAME"
    )
    parser.add_argument(
        "--private", action="store_true", help="make a new repository a private one"
    )
    parser.add_argument(
        "--export",
        choices=("stablehlo",),
        help="add programs that run without this package, see docs/export.md",
    )
    parser.add_argument(
        "--export_kind",
        choices=("image", "video"),
        help="what the program reads; default: one for each kind of training",
    )
    parser.add_argument(
        "--export_batch", type=positive, help="the program's batch; default: any"
    )
    args = parser.parse_args(argv)
    if (args.export_kind or args.export_batch) and not args.export:
        parser.error("--export_kind and --export_batch go with --export")
    if args.private and not args.push:
        parser.error("--private goes with --push")
    to_stderr()
    with reported():
        add = functools.partial(
            add_to_release,
            dtype=args.dtype,
            kind=args.export_kind,
            batch=args.export_batch,
        )
        model = release(
            args.model,
            args.out,
            args.step,
            args.ema,
            args.dtype,
            args.license,
            args.overwrite,
            args.push,
            args.private,
            add if args.export else None,
        )
        log.info("Wrote %s as a release to %s", model.name, args.out)
        if args.push:
            log.info("Uploaded it to %s", args.push)


if __name__ == "__main__":
    main()
