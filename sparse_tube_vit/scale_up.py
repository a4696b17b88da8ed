"""Combines a small video model and a large image ViT to a large one (paper 3.6).

    sparse-tube-vit scale_up --small DIR --big DIR|FILE --workdir DIR

The result is trained with configs/scale_up.py.
"""

from collections.abc import Sequence

from sparse_tube_vit.checkpoints.scaling import scale_up
from sparse_tube_vit.config.flags import CommandParser, add_normalization
from sparse_tube_vit.errors import reported
from sparse_tube_vit.log import to_stderr
from sparse_tube_vit.models.variants import VARIANTS


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        "scale_up",
        description="Makes a large video model of a small one and a large image ViT.",
    )
    parser.add_argument(
        "--small", required=True, help="work directory, checkpoint or release"
    )
    parser.add_argument(
        "--big",
        required=True,
        help="an image ViT: .npz or .safetensors, or a work directory, checkpoint or "
        "release of a model of 2-D patches",
    )
    parser.add_argument("--variant", choices=VARIANTS, help="of the weights in a file")
    parser.add_argument("--workdir", required=True, help="where the new model goes")
    parser.add_argument(
        "--trained_layers", type=int, help="last ones; 6 of 32 if not given"
    )
    parser.add_argument(
        "--positions",
        choices=("fixed", "keep"),
        default="fixed",
        help="of the new model: fixed, as in the paper, or those of an image ViT too",
    )
    add_normalization(parser)
    args = parser.parse_args(argv)
    sizes = VARIANTS.get(args.variant)
    to_stderr()
    with reported():
        config, report = scale_up(
            args.small,
            args.big,
            args.workdir,
            sizes,
            args.trained_layers,
            keep_positions=args.positions == "keep",
            normalization=args.normalization,
        )
    model = config.model.to_dict()
    tubes = "".join(f"\n    {tube}," for tube in model.pop("tubes"))
    print(f"{report}\nWritten to {args.workdir}. To train it, see configs/scale_up.py:")
    print(f"  init.weights = {config.init.weights!r}")
    print(f"  init.positions = {config.init.positions!r}")
    print(f"  optimizer.trained_layers = {config.optimizer.trained_layers}")
    print(*(f"  model.{key} = {value!r}" for key, value in model.items()), sep="\n")
    print(f"  model.tubes = ({tubes}\n  )")


if __name__ == "__main__":
    main()
