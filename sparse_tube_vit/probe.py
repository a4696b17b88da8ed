"""Measures how well a frozen model's features tell a folder's classes apart.

    sparse-tube-vit probe --model MODEL --clips FOLDER [--kind image]
        [--split_list FILE] [--views 4x3] [--neighbours 5] [--format text|json]

FOLDER holds `<class>/<file>` or `<split>/<class>/<file>`. With splits, what is fitted
to `train` is measured on the other; without, every file is measured by what the others
give. Two measurements of the pooled features:

* nearest neighbours: most votes of the k nearest by cosine, each weighted by its
  similarity; without splits, of all other files (leave one out);
* linear probe: logistic regression (L2, C = 1) of features scaled to mean 0 and
  variance 1; without splits, in five stratified folds.
"""

import json
import sys
from collections.abc import Sequence

from sparse_tube_vit.config.flags import (
    CommandParser,
    add_checkpoint_arguments,
    add_views,
    positive,
)
from sparse_tube_vit.errors import reported
from sparse_tube_vit.inference.loaded import load
from sparse_tube_vit.inference.probe import probe
from sparse_tube_vit.log import to_stderr


def as_text(result: dict) -> str:
    """Formats a line per measurement, with its protocol."""
    clip = f"{result['size']}x{result['size']}"
    if result["frames"] > 1:
        clip = (
            f"{result['temporal_views']}x{result['spatial_views']} views of "
            f"{result['frames']} frames at {result['fps']:g} fps, {clip}"
        )
    lines = []
    for name in ("nearest_neighbours", "linear_probe"):
        r = result[name]
        k = f"{r['k']} by cosine, " if "k" in r else ""
        lines.append(
            f"{name.replace('_', ' ')}: Top-1 {r['top1']:.1%} ({k}{r['protocol']})"
        )
    lines.append(
        f"of {result['measured_files']} files of {result['classes']} classes in "
        f"{result['folder']} ({len(result['undecodable'])} undecodable left out); "
        f"{clip}; {result['model']}"
    )
    return "\n".join(lines)


FORMATS = {"text": as_text, "json": lambda result: json.dumps(result, indent=1)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        "probe",
        description="Nearest neighbours and a linear probe on a folder of classes.",
    )
    add_checkpoint_arguments(parser)
    parser.add_argument("--clips", required=True, help="folder of class folders")
    parser.add_argument(
        "--kind", choices=("video", "image"), help="default: video, if there are any"
    )
    parser.add_argument("--split_list", help="file of `class/file,split` lines")
    add_views(parser, (1, 1))
    parser.add_argument("--neighbours", type=positive, default=5, help="k")
    parser.add_argument("--format", choices=FORMATS, default="text")
    args = parser.parse_args(argv)
    to_stderr()
    with reported():
        result = probe(
            load(args.model, args.step, args.ema, args.normalization),
            args.clips,
            args.kind,
            args.split_list,
            args.views,
            args.neighbours,
            args.batch_size,
        )
        print(FORMATS[args.format](result))
        if result["undecodable"]:
            sys.exit(1)


if __name__ == "__main__":
    main()
