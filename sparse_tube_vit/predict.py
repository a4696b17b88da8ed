"""Predicts the classes of clips and images, with the views of the evaluation.

    python -m sparse_tube_vit.predict --model DIR FILE... [--head NAME] [--top 5]
        [--views 4x3] [--format table|json|csv]

DIR is a run's work directory, a checkpoint or a release. A FILE is a clip in any
container, an image, or a folder of such. What cannot be read is named; the exit code is
then 1. With the batch size of `evaluate` on one CPU, scores are the same bit for bit.
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence

from sparse_tube_vit.config.flags import add_model_arguments, parse_views, positive
from sparse_tube_vit.errors import reported
from sparse_tube_vit.inference.loaded import load
from sparse_tube_vit.inference.predictions import Prediction, predict
from sparse_tube_vit.log import log, to_stderr


def as_table(predictions: list[Prediction]) -> str:
    """Formats a line per class; the first line of a file names file and head."""
    rows = [("file", "head", "probability", "class")]
    for p in predictions:
        first = (p.file, p.head)
        for name, probability in p.classes:
            rows.append((*first, f"{probability:.1%}", name))
            first = ("", "")
        if p.problem:
            rows.append((p.file, "", "", p.problem))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    file, head, _ = widths
    return "\n".join(
        f"{a:{file}}  {b:{head}}  {c:>11}  {d}".rstrip() for a, b, c, d in rows
    )


def as_json(predictions: list[Prediction]) -> str:
    """Formats a list with one dict per file."""
    return json.dumps([_plain(p) for p in predictions], indent=1, ensure_ascii=False)


def _plain(prediction):
    if prediction.problem:
        return {"file": prediction.file, "problem": prediction.problem}
    return {
        "file": prediction.file,
        "kind": prediction.kind,
        "head": prediction.head,
        "classes": [{"name": name, "probability": p} for name, p in prediction.classes],
    }


def as_csv(predictions: list[Prediction]) -> str:
    """Formats a row per class; `problem` is filled for unreadable files."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "kind", "head", "rank", "class", "probability", "problem"))
    for p in predictions:
        for rank, (name, probability) in enumerate(p.classes, start=1):
            writer.writerow((p.file, p.kind, p.head, rank, name, probability, ""))
        if p.problem:
            writer.writerow((p.file, "", "", "", "", "", p.problem))
    return text.getvalue().rstrip("\n")


FORMATS = {"table": as_table, "json": as_json, "csv": as_csv}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sparse_tube_vit.predict",
        description="Predicts the classes of clips and images.",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="clip, image, or folder of such"
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
        predictions = predict(
            tubevit, args.files, args.head, args.top, args.views, args.batch_size
        )
        print(FORMATS[args.format](predictions))
        bad = [p for p in predictions if p.problem]
        for p in bad:
            log.warning("%s: %s", p.file, p.problem)
        if bad:
            log.warning("%d of %d files could not be read", len(bad), len(predictions))
            sys.exit(1)


if __name__ == "__main__":
    main()
