"""Predicts the classes of clips and images, with the views of the evaluation.

    sparse-tube-vit predict --model MODEL FILE... [--head NAME] [--top 5]
        [--views 4x3] [--format table|json|csv]
    sparse-tube-vit predict --model MODEL VIDEO... --window 4 [--stride 2]
        [--plot FILE.png]

MODEL is a run's work directory, a checkpoint or a release. A FILE is a clip in any
container, an image, or a folder of such; "-" stands for the files that standard input
names, one a line. Results are printed as they are computed, and Ctrl-C keeps them. What
cannot be read is named; the exit code is then 1. With the batch size of `evaluate` on
one CPU, scores are the same bit for bit.

With --window, each window of so many seconds is predicted as a video of its own.
Windows begin every --stride seconds; the last is moved to end with the video, and a
video that is shorter than a window is one window. A window that is shorter than the
model's clips loops, as short videos do. A long video takes the memory of its encoded
file twice.
"""

import contextlib
import csv
import io
import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sparse_tube_vit.config.flags import (
    CommandParser,
    above_zero,
    add_checkpoint_arguments,
    add_views,
    positive,
)
from sparse_tube_vit.errors import reported
from sparse_tube_vit.inference import files
from sparse_tube_vit.inference.loaded import load
from sparse_tube_vit.inference.predictions import Prediction, predict
from sparse_tube_vit.inference.windows import predict_windows
from sparse_tube_vit.log import log, to_stderr
from sparse_tube_vit.storage import whole_file


def as_table(
    predictions: Iterable[Prediction],
    paths: Sequence[str],
    heads: Iterable[str],
    windows: bool,
) -> Iterator[str]:
    """Yields a line per class; the first line of a file or window names it."""
    file = max(map(len, ("file", *paths)))
    head = max(map(len, ("head", *heads)))

    def line(a, times, b, c, d):
        times = "".join(f"{time:>9}  " for time in times) if windows else ""
        return f"{a:{file}}  {times}{b:{head}}  {c:>11}  {d}".rstrip()

    yield line("file", ("begin", "end"), "head", "probability", "class")
    for p in predictions:
        times = [f"{t:.2f}" for t in (p.begin, p.end)] if p.classes and windows else ()
        first = (p.file, times or ("", ""), p.head)
        for name, probability in p.classes:
            yield line(*first, f"{probability:.1%}", name)
            first = ("", ("", ""), "")
        if p.problem:
            yield line(p.file, ("", ""), "", "", p.problem)


def as_json(
    predictions: Iterable[Prediction],
    paths: Sequence[str],
    heads: Iterable[str],
    windows: bool,
) -> Iterator[str]:
    """Yields a list with one dict per file or window; times are in seconds."""
    begin = "["
    for p in predictions:
        text = json.dumps(_plain(p, windows), indent=1, ensure_ascii=False)
        yield begin + "\n" + textwrap.indent(text, " ")
        begin = ","
    yield "]" if begin == "," else "[]"


def _plain(prediction, windows):
    if prediction.problem:
        return {"file": prediction.file, "problem": prediction.problem}
    begin, end = prediction.begin, prediction.end
    return {
        "file": prediction.file,
        **({"begin": round(begin, 3), "end": round(end, 3)} if windows else {}),
        "kind": prediction.kind,
        "head": prediction.head,
        "classes": [{"name": name, "probability": p} for name, p in prediction.classes],
    }


def as_csv(
    predictions: Iterable[Prediction],
    paths: Sequence[str],
    heads: Iterable[str],
    windows: bool,
) -> Iterator[str]:
    """Yields a row per class; `problem` is filled for unreadable files."""

    def row(file, times, *values):
        values = (file, *(times if windows else ()), *values)
        csv.writer(text := io.StringIO(), lineterminator="").writerow(values)
        return text.getvalue()

    names = ("kind", "head", "rank", "class", "probability", "problem")
    yield row("file", ("begin", "end"), *names)
    for p in predictions:
        times = [round(t, 3) for t in (p.begin, p.end)] if p.classes and windows else ()
        for rank, (name, probability) in enumerate(p.classes, start=1):
            yield row(p.file, times, p.kind, p.head, rank, name, probability, "")
        if p.problem:
            yield row(p.file, ("", ""), "", "", "", "", "", p.problem)


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
    add_views(parser)
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument(
        "--window",
        type=above_zero,
        metavar="SECONDS",
        help="predict each window of so many seconds of a video; one shorter than the "
        "model's clips loops, a longer one than the video is all of it",
    )
    parser.add_argument(
        "--stride",
        type=above_zero,
        metavar="SECONDS",
        help="from one window's beginning to the next one's, 0.01 or more; default: as "
        "--window. A window that would run past the end is moved to end with the video",
    )
    parser.add_argument(
        "--plot",
        metavar="FILE.png",
        help="draw the classes of the windows over time; needs matplotlib",
    )
    args = parser.parse_args(argv)
    if args.window is None and (args.stride is not None or args.plot):
        parser.error("--stride and --plot go with --window")
    to_stderr()
    with reported(), contextlib.ExitStack() as stack:
        paths, bad, drawn = files.expand(args.files), [], []
        if args.plot:
            if len(paths) != 1:
                parser.error(f"--plot draws one video, not {len(paths)} files")
            from sparse_tube_vit.figures import timeline  # needs matplotlib

            write = stack.enter_context(whole_file(args.plot))
        tubevit = load(args.model, args.step, args.ema, args.normalization)
        options = (args.head, args.top, args.views, args.batch_size)
        if args.window is None:
            predictions = predict(tubevit, paths, *options)
        else:
            times = (args.window, args.stride)
            predictions = predict_windows(tubevit, paths, *times, *options)
        predictions = files.UntilInterrupted(predictions)

        def noted():
            for p in predictions:
                bad.extend([p.file] if p.problem else [])
                drawn.extend([p] if args.plot and not p.problem else [])
                yield p

        windows = args.window is not None
        for text in FORMATS[args.format](noted(), paths, tubevit.class_names, windows):
            print(text, flush=True)
        if drawn:
            figure = timeline(
                [(p.begin, p.end) for p in drawn],
                [p.scores for p in drawn],
                tubevit.class_names[drawn[0].head],
                Path(paths[0]).name,
                args.top,
            )
            write(lambda file: figure.savefig(file, format="png"))
            log.info("Drew %d windows to %s", len(drawn), args.plot)
        if bad:
            log.warning(
                "%d of %d files have a problem, named above",
                len(bad),
                len(paths),
            )
        if bad or predictions.interrupted:
            sys.exit(130 if predictions.interrupted else 1)


if __name__ == "__main__":
    main()
