"""Predicts the classes of clips and images, with the views of the evaluation.

    python -m sparse_tube_vit.predict --model DIR FILE... [--head NAME] [--top 5]
        [--views 4x3] [--format table|json|csv]

DIR is a run's work directory, a checkpoint or a release. A FILE is a clip in any
container, an image, or a folder of such; "-" stands for the files that standard input
names, one a line. Results are printed as they are computed, and Ctrl-C keeps them. What
cannot be read is named; the exit code is then 1. With the batch size of `evaluate` on
one CPU, scores are the same bit for bit.
"""

import csv
import io
import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from sparse_tube_vit.config.flags import (
    CommandParser,
    add_checkpoint_arguments,
    parse_views,
    positive,
)
from sparse_tube_vit.errors import reported
from sparse_tube_vit.inference import files
from sparse_tube_vit.inference.loaded import load
from sparse_tube_vit.inference.predictions import Prediction, predict
from sparse_tube_vit.log import log, to_stderr


def as_table(
    predictions: Iterable[Prediction], paths: Sequence[str], heads: Iterable[str]
) -> Iterator[str]:
    """Yields a line per class; the first line of a file names file and head."""
    file = max(map(len, ("file", *paths)))
    head = max(map(len, ("head", *heads)))

    def line(a, b, c, d):
        return f"{a:{file}}  {b:{head}}  {c:>11}  {d}".rstrip()

    yield line("file", "head", "probability", "class")
    for p in predictions:
        first = (p.file, p.head)
        for name, probability in p.classes:
            yield line(*first, f"{probability:.1%}", name)
            first = ("", "")
        if p.problem:
            yield line(p.file, "", "", p.problem)


def as_json(
    predictions: Iterable[Prediction], paths: Sequence[str], heads: Iterable[str]
) -> Iterator[str]:
    """Yields a list with one dict per file."""
    begin = "["
    for p in predictions:
        text = json.dumps(_plain(p), indent=1, ensure_ascii=False)
        yield begin + "\n" + textwrap.indent(text, " ")
        begin = ","
    yield "]" if begin == "," else "[]"


def _plain(prediction):
    if prediction.problem:
        return {"file": prediction.file, "problem": prediction.problem}
    return {
        "file": prediction.file,
        "kind": prediction.kind,
        "head": prediction.head,
        "classes": [{"name": name, "probability": p} for name, p in prediction.classes],
    }


def as_csv(
    predictions: Iterable[Prediction], paths: Sequence[str], heads: Iterable[str]
) -> Iterator[str]:
    """Yields a row per class; `problem` is filled for unreadable files."""

    def row(*values):
        csv.writer(text := io.StringIO(), lineterminator="").writerow(values)
        return text.getvalue()

    yield row("file", "kind", "head", "rank", "class", "probability", "problem")
    for p in predictions:
        for rank, (name, probability) in enumerate(p.classes, start=1):
            yield row(p.file, p.kind, p.head, rank, name, probability, "")
        if p.problem:
            yield row(p.file, "", "", "", "", "", p.problem)


FORMATS = {"table": as_table, "json": as_json, "csv": as_csv}


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        "predict",
        description="Predicts the classes of clips and images.",
    )
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="clip, image, folder of such, or - for names from standard input",
    )
    parser.add_argument(
        "--head", help="whose classes; default: the one that was trained on such files"
    )
    parser.add_argument("--top", type=positive, default=5, help="number of classes")
    parser.add_argument(
        "--views",
        type=parse_views,
        help="temporal x spatial views of videos; default: as the run's evaluation",
    )
    parser.add_argument("--batch_size", type=positive, help="files at a time")
    parser.add_argument("--format", choices=FORMATS, default="table")
    args = parser.parse_args(argv)
    to_stderr()
    with reported():
        tubevit = load(args.model, args.step, args.ema)
        paths, bad = files.expand(args.files), []
        predictions = files.UntilInterrupted(
            predict(tubevit, paths, args.head, args.top, args.views, args.batch_size)
        )

        def noted():
            for p in predictions:
                bad.extend([p.file] if p.problem else [])
                yield p

        for text in FORMATS[args.format](noted(), paths, tubevit.class_names):
            print(text, flush=True)
        if bad:
            log.warning("%d of %d files could not be read", len(bad), len(paths))
        if bad or predictions.interrupted:
            sys.exit(130 if predictions.interrupted else 1)


if __name__ == "__main__":
    main()
