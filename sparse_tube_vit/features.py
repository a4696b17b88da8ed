"""Writes the features of clips and images, for retrieval and probes.

    sparse-tube-vit features --model MODEL FILE... --out FILE.npz [--tokens]
        [--views 4x3]

The file holds `path` (N,) and `kind` (N,), and `pooled` (N, D), averaged over views;
with --tokens also `tokens` (N, n, D) of the view in the middle and, of each token, its
`tube` (n,), `time` in seconds (n,) and `place` in pixels down and across (n, 2). What
cannot be read is named and left out; the exit code is then 1.
"""

import sys
from collections.abc import Sequence

import numpy as np

from sparse_tube_vit.config.flags import (
    CommandParser,
    add_checkpoint_arguments,
    add_views,
)
from sparse_tube_vit.errors import reported
from sparse_tube_vit.inference import files
from sparse_tube_vit.inference.features import check_one_kind, pooled, tokens
from sparse_tube_vit.inference.loaded import load
from sparse_tube_vit.log import log, to_stderr
from sparse_tube_vit.storage import whole_file
from sparse_tube_vit.video.limits import Limits


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        "features",
        description="Writes the features of clips and images.",
    )
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="clip, image, or folder of such"
    )
    parser.add_argument("--out", required=True, help="the .npz file to write")
    parser.add_argument("--tokens", action="store_true", help="write tokens, too")
    add_views(parser, (1, 1))
    args = parser.parse_args(argv)
    to_stderr()
    with reported(), whole_file(args.out) as write:
        paths = files.expand(args.files)
        tubevit = load(args.model, args.step, args.ema, args.normalization)
        if args.tokens:
            check_one_kind(paths, Limits.of(tubevit.config.loader))
        computed = files.UntilInterrupted(
            pooled(tubevit, paths, args.views, args.batch_size)
        )
        good, bad = [], 0
        for x in computed:
            if x.problem:
                log.warning("%s: %s", x.path, x.problem)
                bad += 1
            else:
                good.append(x)
        width = tubevit.model.options.width
        arrays = {
            "path": np.array([x.path for x in good], str),
            "kind": np.array([x.group for x in good], str),
            "pooled": np.array([x.result for x in good], np.float32).reshape(-1, width),
        }
        if args.tokens and good:
            arrays |= tokens(tubevit, [x.path for x in good], args.batch_size)
        write(lambda file: np.savez(file, **arrays))
        log.info("Wrote the features of %d files to %s", len(good), args.out)
        if bad:
            log.warning("%d of %d files could not be read", bad, len(paths))
        if bad or computed.interrupted:
            sys.exit(130 if computed.interrupted else 1)


if __name__ == "__main__":
    main()
