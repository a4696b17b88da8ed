"""Writes the features of clips and images, for retrieval and probes.

    sparse-tube-vit features --model MODEL FILE... --out FILE.npz [--tokens]
        [--views 4x3]

The file holds `path` (N,) and `kind` (N,), and `pooled` (N, D), averaged over views;
with --tokens also `tokens` (N, n, D) of the view in the middle and, of each token, its
`tube` (n,), `time` in seconds (n,) and `place` in pixels down and across (n, 2). What
cannot be read is named and left out, with --tokens also files of another kind than the
first one's; the exit code is then 1.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparse_tube_vit.config.flags import (
    CommandParser,
    add_checkpoint_arguments,
    add_views,
)
from sparse_tube_vit.errors import reported
from sparse_tube_vit.inference import files
from sparse_tube_vit.inference.features import pooled, with_tokens
from sparse_tube_vit.inference.loaded import load
from sparse_tube_vit.log import log, to_stderr
from sparse_tube_vit.storage import is_remote, whole_file, writing


def rows_beside(path):
    """Returns a temporary file for tokens, of which memory may not hold all.

    The disk needs room for them twice.
    """
    with writing(path):
        folder = None if is_remote(path) else Path(path).parent
        return tempfile.TemporaryFile(dir=folder)


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
    with reported(), whole_file(args.out) as write, rows_beside(args.out) as rows:
        paths = files.expand(args.files)
        tubevit = load(args.model, args.step, args.ema, args.normalization)
        compute = with_tokens if args.tokens else pooled
        computed = files.UntilInterrupted(
            compute(tubevit, paths, args.views, args.batch_size)
        )
        good, vectors, first, bad = [], [], None, 0
        for x in computed:
            problem = x.problem
            if args.tokens and good and not problem and x.group != good[0][1]:
                problem = f"Its kind is {x.group}, the first file's {good[0][1]}"
            if problem:
                log.warning("%s: %s", x.path, problem)
                bad += 1
                continue
            good.append((x.path, x.group))
            vectors.append(x.result.pooled if args.tokens else x.result)
            if args.tokens:
                first = first or x.result
                with writing(args.out):
                    rows.write(x.result.tokens.tobytes())
        width = tubevit.model.options.width
        arrays = {
            "path": np.array([path for path, _ in good], str),
            "kind": np.array([kind for _, kind in good], str),
            "pooled": np.array(vectors, np.float32).reshape(-1, width),
        }
        if first:
            with writing(args.out):
                rows.flush()
            shape = (len(good), *first.tokens.shape)
            arrays["tokens"] = np.memmap(rows, first.tokens.dtype, "r", shape=shape)
            arrays |= {"tube": first.tube, "time": first.time, "place": first.place}
        write(lambda file: np.savez(file, **arrays))
        log.info("Wrote the features of %d files to %s", len(good), args.out)
        if bad:
            log.warning("%d of %d files are left out", bad, len(paths))
        if bad or computed.interrupted:
            sys.exit(130 if computed.interrupted else 1)


if __name__ == "__main__":
    main()
