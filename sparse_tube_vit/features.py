"""Writes what a model makes of clips and images, for retrieval and probes.

    python -m sparse_tube_vit.features --model DIR FILE... --out FILE.npz [--tokens]
        [--views 4x3]

The file holds `path` (N,) and `kind` (N,), and `pooled` (N, D), averaged over views;
with --tokens also `tokens` (N, n, D) of the view in the middle and, of each token, its
`tube` (n,), `time` in seconds (n,) and `place` in pixels down and across (n, 2). What
cannot be read is named and left out; the exit code is then 1.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence

import numpy as np

from sparse_tube_vit.errors import TubeViTError, reported
from sparse_tube_vit.inference import TrainedTubeViT
from sparse_tube_vit.input import files
from sparse_tube_vit.input.views import kind_of, parse_views, read_file
from sparse_tube_vit.log import log, to_stderr
from sparse_tube_vit.output import whole_file
from sparse_tube_vit.predict import add_model_arguments, load_model, positive


class SeveralKinds(TubeViTError, ValueError):
    """Images and videos have different tokens: one array cannot hold them."""


def pooled(
    tubevit: TrainedTubeViT,
    paths: list[str],
    views: tuple[int, int] = (1, 1),
    batch_size: int | None = None,
) -> tuple[np.ndarray, list[str], dict[int, str]]:
    """Pooled features of files, averaged over views.

    Args:
      tubevit: a loaded model.
      paths: of files.
      views: (temporal, spatial) of videos.
      batch_size: files at a time; None: 4, or as many as there are.

    Returns:
      (pooled, kinds, problems): (N, D) float32 and N kinds, of zeros and "" where a
      file cannot be read; and by its number why.
    """
    found = np.zeros((len(paths), tubevit.model.width), np.float32)
    kinds = [""] * len(paths)

    def read(path):
        return tubevit.read(path, given=views)

    def of_batch(kind, videos):
        return tubevit.pooled(videos)

    computed, problems = files.compute(paths, read, of_batch, batch_size)
    for number, (kind, features) in computed.items():
        found[number], kinds[number] = features, kind
    return found, kinds, problems


def check_one_kind(paths: Sequence[str]) -> None:
    """Raises SeveralKinds if there are images and videos among the files.

    What cannot be read is neither.
    """
    first = {}
    for path in paths:
        with contextlib.suppress(TubeViTError):
            first.setdefault(kind_of(read_file(path)), path)
    if len(first) > 1:
        raise _several_kinds(*first.values())


def _several_kinds(one, other):
    return SeveralKinds(
        f"Of {one} and {other} one is an image and one a video, which have different "
        "tokens. Give images and videos one after the other, or leave out --tokens."
    )


def tokens(tubevit: TrainedTubeViT, paths: Sequence[str]) -> dict[str, np.ndarray]:
    """Tokens (N, n, D) of files of one kind, and each one's tube, time and place.

    Raises:
      SeveralKinds: there are images and videos.
    """
    each = []
    for path in paths:
        each.append(tubevit.features(path))
        first = each[0]
        if each[-1].tokens.shape != first.tokens.shape:
            raise _several_kinds(paths[0], path)
    return {
        "tokens": np.stack([x.tokens for x in each]),
        "tube": first.tube,
        "time": first.time,
        "place": first.place,
    }


def main():
    parser = argparse.ArgumentParser(
        prog="python -m sparse_tube_vit.features",
        description="Writes the features of clips and images.",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="clip, image, or folder of such"
    )
    parser.add_argument("--out", required=True, help="the .npz file to write")
    parser.add_argument("--tokens", action="store_true", help="write tokens, too")
    parser.add_argument(
        "--views",
        type=parse_views,
        default=(1, 1),
        help="temporal x spatial views of videos; default: 1x1",
    )
    parser.add_argument("--batch_size", type=positive, help="files at a time")
    args = parser.parse_args()
    to_stderr()
    with reported(), whole_file(args.out) as write:
        paths = files.expand(args.files)
        if args.tokens:
            check_one_kind(paths)
        tubevit = load_model(args)
        features, kinds, problems = pooled(tubevit, paths, args.views, args.batch_size)
        for i, problem in problems.items():
            log.warning("%s: %s", paths[i], problem)
        good = [i for i in range(len(paths)) if i not in problems]
        arrays = {
            "path": np.array([paths[i] for i in good]),
            "kind": np.array([kinds[i] for i in good]),
            "pooled": features[good],
        }
        if args.tokens and good:
            arrays |= tokens(tubevit, [paths[i] for i in good])
        write(lambda file: np.savez(file, **arrays))
        log.info("Wrote the features of %d files to %s", len(good), args.out)
        if problems:
            log.warning("%d of %d files could not be read", len(problems), len(paths))
            sys.exit(1)


if __name__ == "__main__":
    main()
