"""Prints a config's model: tubes, tokens, parameters and FLOPs.

    sparse-tube-vit describe --config configs/X.py [--config.key=value ...]

FLOPs are those of one view forward, a multiply-add counted as two: of the matrix
products by formula, and of the whole program as XLA counts.
"""

from collections.abc import Sequence

from sparse_tube_vit.config.flags import CommandParser, add_config
from sparse_tube_vit.errors import reported
from sparse_tube_vit.log import to_stderr
from sparse_tube_vit.training.description import describe


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        "describe", description="Prints tubes, tokens, parameters and FLOPs."
    )
    add_config(parser)
    args = parser.parse_with_config(argv)
    to_stderr()
    with reported():
        print(describe(args.config))


if __name__ == "__main__":
    main()
