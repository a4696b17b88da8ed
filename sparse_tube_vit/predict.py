"""Tells the classes of clips and images, by the views of the model's evaluation.

    python -m sparse_tube_vit.predict --model DIR FILE... [--head NAME] [--top 5]
        [--views 4x3] [--format table|json|csv]

DIR is a run's work directory, a checkpoint or a release. A FILE is a clip in any
container, an image, or a folder of such. What cannot be read is named; the exit code is
then 1. With the batch size of `evaluate` on one CPU, scores are the same bit for bit.
"""

import argparse
import csv
import dataclasses
import io
import json
import sys
from collections.abc import Iterable

from sparse_tube_vit import inference
from sparse_tube_vit.errors import reported
from sparse_tube_vit.input import files
from sparse_tube_vit.input.views import parse_views
from sparse_tube_vit.log import log, to_stderr


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model tells of a file.

    Attributes:
      file: its path.
      kind: "image" or "video"; "" where it cannot be read.
      head: whose classes they are; "" where it cannot be read.
      classes: [(class name, probability), ...], the most probable first.
      problem: why there are none; "" where there are.
    """

    file: str
    kind: str = ""
    head: str = ""
    classes: tuple[tuple[str, float], ...] = ()
    problem: str = ""


def predict(
    tubevit: inference.TrainedTubeViT,
    paths: Iterable,
    head: str | None = None,
    top: int = 5,
    views: tuple[int, int] | None = None,
    batch_size: int | None = None,
) -> list[Prediction]:
    """Predicts files and folders of files, in order; bad ones have a problem.

    Args:
      tubevit: a loaded model.
      paths: of files and folders, local or gs://.
      head, top: as for `TrainedTubeViT.predict`.
      views: (temporal, spatial) of videos; None: those of the head's evaluation.
      batch_size: files at a time, each with all its views; None: 4, or as many as there
        are where they are fewer.

    Raises:
      NoFiles: a folder has none.
      UnknownHead: the model has no such head.
    """
    if head is not None:
        tubevit.choose_head("", head)
    paths = files.expand(paths)

    def read(path):
        kind, video = tubevit.read(path, head, views)
        return (kind, tubevit.choose_head(kind, head)), video

    def scores(group, videos):
        return tubevit.scores(videos, group[1])

    found, problems = files.compute(paths, read, scores, batch_size)
    predictions = []
    for number, path in enumerate(paths):
        if number in problems:
            predictions.append(Prediction(path, problem=problems[number]))
            continue
        (kind, chosen), of_file = found[number]
        best = tuple(tubevit.best(of_file, chosen, top))
        predictions.append(Prediction(path, kind, chosen, best))
    return predictions


def as_table(predictions: list[Prediction]) -> str:
    """A line a class; file and head stand in the first line of a file."""
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
    """A list of a dict a file."""
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
    """A row a class; `problem` is filled where a file has none."""
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


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of commands that load a model, for `load_model`."""
    parser.add_argument(
        "--model",
        required=True,
        help="a run's work directory, one step of its checkpoints, or a release",
    )
    parser.add_argument("--step", type=int, help="of a run; default: the latest")
    parser.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="take the averaged parameters, if there are any",
    )


def load_model(args) -> inference.TrainedTubeViT:
    """The model of `add_model_arguments`."""
    return inference.load(args.model, args.step, args.ema)


def positive(text: str) -> int:
    """A whole number of at least 1, as argparse takes it."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def main():
    parser = argparse.ArgumentParser(
        prog="python -m sparse_tube_vit.predict",
        description="Tells the classes of clips and images.",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="clip, image, or folder of such"
    )
    parser.add_argument(
        "--head", help="whose classes; default: the one that was trained on such files"
    )
    parser.add_argument("--top", type=positive, default=5, help="classes to tell")
    parser.add_argument(
        "--views",
        type=parse_views,
        help="temporal x spatial views of videos; default: as the run's evaluation",
    )
    parser.add_argument("--batch_size", type=positive, help="files at a time")
    parser.add_argument("--format", choices=FORMATS, default="table")
    args = parser.parse_args()
    to_stderr()
    with reported():
        tubevit = load_model(args)
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
