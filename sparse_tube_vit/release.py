"""Writes a release: a folder with a trained model, which `load` takes.

    python -m sparse_tube_vit.release --workdir RUN --out DIR [--dtype bfloat16]
        [--no-ema] [--step N] [--license NAME] [--overwrite]
        [--push hf://USER/NAME [--private]]

Its model card states the run's data, steps, and accuracies with their protocol.
"""

from collections.abc import Sequence

from sparse_tube_vit.checkpoints.release import release
from sparse_tube_vit.config.flags import CommandParser, add_checkpoint_arguments
from sparse_tube_vit.errors import reported
from sparse_tube_vit.log import log, to_stderr


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        "release",
        description="Writes a run's checkpoint as a folder that `load` takes.",
    )
    add_checkpoint_arguments(parser)
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
    args = parser.parse_args(argv)
    if args.private and not args.push:
        parser.error("--private goes with --push")
    to_stderr()
    with reported():
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
        )
        log.info("Wrote %s as a release to %s", model.name, args.out)
        if args.push:
            log.info("Uploaded it to %s", args.push)


if __name__ == "__main__":
    main()
