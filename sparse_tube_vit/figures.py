"""Pictures of a run, and of the batches that the model gets.

    python -m sparse_tube_vit.figures run --workdir DIR [--out DIR]
    python -m sparse_tube_vit.figures batch --config FILE [--config.key=value ...] \
        [--step K] --out DIR

`run` draws training curves, the tubes over a clip, learned kernels, and collects the
confusion matrices. `batch` draws all frames of a step's batches after augmentation and
mixup, with their targets.
"""

import argparse
import itertools
import math
import textwrap
from collections.abc import Sequence

import numpy as np
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from sparse_tube_vit import checkpoints, datasets
from sparse_tube_vit.config import ConfigDict, from_json, read
from sparse_tube_vit.errors import TubeViTError, UnwritableOutput, reported
from sparse_tube_vit.input.pipeline import EvaluationExample
from sparse_tube_vit.log import to_stderr
from sparse_tube_vit.training.examples import Example, examples_of_step
from sparse_tube_vit.training.reporting import read_metrics
from sparse_tube_vit.tubes import Tube
from sparse_tube_vit.variants import make_tubes

DPI = 120
_COLORS = ("#d62728", "#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2")


# Which metrics a plot shows, by the last part of their names.
_CURVES = {
    "loss": ("loss",),
    "accuracy": ("accuracy", "precision_at_1", "top1", "mAP"),
}


def _figure(width: float, height: float, layout: str | None = "constrained") -> Figure:
    figure = Figure(figsize=(width, height), layout=layout, dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path) -> None:
    """Writes a figure as PNG, to local or remote files."""
    with epath.Path(path).open("wb") as file:
        figure.savefig(file, format="png")


def training_curves(metrics: Sequence[dict]) -> Figure:
    """Loss and accuracy of every stream against steps, with the evaluations as points.

    Where examples have several labels, precision at 1 and mAP take accuracy's place.

    Args:
      metrics: lines of metrics.jsonl, from `training.reporting.read_metrics`.
    """
    figure = _figure(9, 3.5)
    axes = figure.subplots(1, 2)
    for (quantity, kinds), ax in zip(_CURVES.items(), axes, strict=True):
        names = {n for line in metrics for n in line if n.rpartition("/")[2] in kinds}
        for name in sorted(names, reverse=True):  # train/... before evaluation/...
            points = [(line["step"], line[name]) for line in metrics if name in line]
            phase, *what = name.split("/")
            style, phase = ("-", "training") if phase == "train" else ("o--", phase)
            label = f"{' '.join(what).replace('_', ' ')}, {phase}"
            ax.plot(*zip(*points, strict=True), style, label=label)
        ax.set(xlabel="step", ylabel=quantity)
        ax.grid(alpha=0.3)
    axes[1].set_ylim(0, 1)
    for ax in axes:
        if ax.lines:
            ax.legend(fontsize="small")
    return figure


def tube_layout(clip: np.ndarray, tubes: Sequence[Tube], columns: int = 8) -> Figure:
    """Where every tube reads a clip: one row a tube, its windows drawn on frames.

    Args:
      clip: (T, H, W, 3) uint8.
      tubes: a row each.
      columns: frames shown, spread evenly over the clip.
    """
    t, h, w, _ = clip.shape
    shown = np.unique(np.linspace(0, t - 1, min(columns, t)).round().astype(int))
    figure = _figure(1.4 * len(shown), 1.4 * len(tubes) * h / w + 0.5)
    axes = figure.subplots(len(tubes), len(shown), squeeze=False)
    for row, tube, color in zip(axes, tubes, itertools.cycle(_COLORS), strict=False):
        starts = tube.windows(clip.shape[:3]).reshape(-1, 3)
        for ax, frame in zip(row, shown, strict=True):
            open_now = (starts[:, 0] <= frame) & (frame < starts[:, 0] + tube.kernel[0])
            # Frames that the tube does not read are pale.
            ax.imshow(clip[frame], alpha=1.0 if open_now.any() else 0.35)
            for _, y, x in starts[open_now]:
                size = (tube.kernel[2], tube.kernel[1])
                box = Rectangle((x - 0.5, y - 0.5), *size, fill=False, ec=color, lw=0.9)
                ax.add_patch(box)
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(
            "x".join(map(str, tube.kernel)), color=color, fontsize="small"
        )
    for ax, frame in zip(axes[0], shown, strict=True):
        ax.set_title(f"frame {frame}", fontsize="small")
    return figure


def kernels(kernel: np.ndarray, filters: int = 16) -> Figure:
    """Learned filters of a tube as the paper's figure 5: RGB tiles, time to the right.

    Filters are taken by the size of their weights, the largest first, and each is
    scaled to its own range.

    Args:
      kernel: (t, h, w, 3, D) weights.
      filters: how many to show.
    """
    t, h, w, _, d = kernel.shape
    norms = np.sqrt((kernel**2).sum(axis=(0, 1, 2, 3)))
    chosen = np.argsort(-norms)[: min(filters, d)]
    blocks = max(1, min(len(chosen), round(8 / t)))  # filters side by side
    rows = math.ceil(len(chosen) / blocks)
    pad = 1
    canvas = np.ones((rows * (h + pad) + pad, blocks * (t * (w + pad) + 3 * pad), 3))
    for i, f in enumerate(chosen):
        weights = kernel[..., f]
        scale = np.abs(weights).max() or 1.0
        top = pad + (i // blocks) * (h + pad)
        for k in range(t):
            left = pad + (i % blocks) * (t * (w + pad) + 3 * pad) + k * (w + pad)
            tile = 0.5 + weights[k] / (2 * scale)
            canvas[top : top + h, left : left + w] = tile
    height, width, _ = canvas.shape
    figure = _figure(6, max(1.2, 6 * height / width))
    ax = figure.subplots()
    ax.imshow(canvas, interpolation="nearest")
    ax.set_axis_off()
    ax.set_title(f"{t}x{h}x{w}: {len(chosen)} of {d} filters", fontsize="small")
    return figure


def confusion(counts: np.ndarray, class_names: Sequence[str], title: str) -> Figure:
    """A confusion matrix: rows are labels, columns predictions, shares of the row.

    Args:
      counts: (C, C).
      class_names: C names; drawn up to 60 classes.
      title: wrapped above it.
    """
    c = len(counts)
    side = min(12.0, 3.5 + 0.22 * c)
    figure = _figure(side + 0.8, side)
    ax = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=ax, label="share of the class", shrink=0.8)
    if c <= 60:
        ax.set_xticks(range(c), class_names, rotation=90, fontsize="x-small")
        ax.set_yticks(range(c), class_names, fontsize="x-small")
    if c <= 12:
        for (i, j), n in np.ndenumerate(counts):
            if n:
                dark = "white" if shares[i, j] > 0.5 else "black"
                ax.text(j, i, n, ha="center", va="center", fontsize=7, color=dark)
    ax.set(xlabel="prediction", ylabel="label")
    ax.set_title(title, fontsize="x-small", wrap=True)
    return figure


def batch_grids(
    examples: Sequence[Example], columns: int = 16, page: tuple[int, int] = (1900, 1900)
) -> list[Figure]:
    """All frames of examples, so many side by side, on as many pages as they need.

    Frames of more than 128 pixels are halved until they have no more, those of less
    than 64 enlarged; all others are shown as they are, pixel by pixel.

    Args:
      examples: whose videos have one shape.
      columns: frames side by side.
      page: width and height in pixels that hold as many examples as have room.
    """
    t, side, _, _ = examples[0].video.shape
    while side > 128:
        side = math.ceil(side / 2)
    side *= max(1, 64 // side)
    columns = min(columns, t)
    letters = max(20, columns * side // 7)
    texts = [_text(example, letters) for example in examples]
    above = 15 * max(map(len, texts)) + 6
    width = max(columns * (side + 2), 7 * letters) + 8
    height = above + math.ceil(t / columns) * (side + 2) + 12
    across, down = (max(1, p // n) for p, n in zip(page, (width, height), strict=True))
    across = min(across, len(examples))
    figures = []
    for first in range(0, len(examples), across * down):
        some = range(len(examples))[first : first + across * down]
        h, w = height * math.ceil(len(some) / across), width * across
        canvas = np.full((h, w, 3), 255, np.uint8)
        figure = _figure(w / DPI, h / DPI, layout=None)
        for i, e in enumerate(some):
            top, left = height * (i // across), width * (i % across) + 4
            for k, frame in enumerate(examples[e].video):
                y, x = (n * (side + 2) for n in divmod(k, columns))
                canvas[top + above + y :, left + x :][:side, :side] = _resized(
                    frame, side
                )
            figure.text(
                left / w,
                1 - (top + 4) / h,
                "\n".join(texts[e]),
                va="top",
                fontsize=7,
                color="#d62728" if examples[e].problem else "black",
                parse_math=False,
            )
        figure.figimage(canvas, origin="upper")
        figures.append(figure)
    return figures


def _text(example: Example, letters: int, lines: int = 6) -> list[str]:
    said = [example.target, *example.names]
    said += [f"weight 0: {example.problem}"] if example.problem else []
    return [part for s in said for part in textwrap.wrap(s, letters)][:lines]


def _resized(frame, side):
    return np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.BOX))


def draw_batches(config: ConfigDict, step: int, out) -> list[epath.Path]:
    """Writes the batches of a step as PNG, `STREAM_stepK_PAGE.png`; returns the paths.

    Raises: UnwritableOutput; and as `examples_of_step`.
    """
    out = _made(out)
    paths = []
    for name, examples in examples_of_step(config, step):
        for i, figure in enumerate(batch_grids(examples), start=1):
            paths.append(out / f"{name}_step{step}_{i}.png")
            save(figure, paths[-1])
    return paths


def _made(directory) -> epath.Path:
    """The directory, made where it is not there."""
    try:
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnwritableOutput(f"--out: {error}") from error
    return directory


class NoVideoStream(TubeViTError, ValueError):
    """There is no clip to draw the tubes on."""


def example_clip(config: ConfigDict) -> np.ndarray:
    """The first clip of the config's video evaluation or stream, (T, H, W, 3) uint8.

    Raises:
      NoVideoStream: the config has images alone.
    """
    sources = [*config.evaluations.values(), *config.streams.values()]
    videos = [source for source in sources if source.kind == "video"]
    if not videos:
        raise NoVideoStream("The config has no stream of videos to draw tubes on.")
    source = videos[0]
    split = datasets.open_split(source.dataset, source.split, config.data_dir)
    example = EvaluationExample.of(config.clip, source)(split[0], None)
    return example["video"][0]


def draw_run(workdir, out=None) -> list[epath.Path]:
    """Writes every picture of a run as PNG; returns their paths.

    Raises: UnwritableOutput; what reading the run raises.
    """
    step = checkpoints.latest_step(workdir)
    out = _made(out or epath.Path(workdir) / "figures")
    directory = epath.Path(workdir) / "checkpoints"
    config = from_json(checkpoints.read_run(directory, step)["config"])
    params = checkpoints.read_params(directory, step)
    tubes = make_tubes(config.model.tubes)

    pictures = {"training_curves": training_curves(read_metrics(workdir))}
    if any(source.kind == "video" for source in config.streams.values()):
        pictures["tubes"] = tube_layout(example_clip(config), tubes)
    for name, parameters in params["stem"].items():  # tube_0, tube_1, ... or shared
        size = "x".join(map(str, parameters["kernel"].shape[:3]))
        name = f"kernels_{name.removeprefix('tube_')}_{size}"
        pictures[name] = kernels(parameters["kernel"])
    paths = []
    for name, figure in pictures.items():
        paths.append(out / f"{name}.png")
        save(figure, paths[-1])
    # Evaluations have drawn theirs.
    drawn = (epath.Path(workdir) / "evaluations").glob("*_confusion.png")
    return paths + [
        path.copy(out / path.name, overwrite=True) for path in sorted(drawn)
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sparse_tube_vit.figures",
        description="Draws a run, or the batches that the model gets.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run", help="curves, tubes over a clip, kernels, confusion", allow_abbrev=False
    )
    run.add_argument("--workdir", required=True, help="of the training run")
    run.add_argument("--out", help="default: WORKDIR/figures")
    batch = commands.add_parser(
        "batch",
        help="all frames of a step's batches, augmented, with their targets",
        epilog="--config.key=value sets a key of the config.",
        allow_abbrev=False,
    )
    batch.add_argument("--config", required=True, help="as for training")
    batch.add_argument("--step", type=_step, default=1, help="from 1, the default, on")
    batch.add_argument("--out", required=True, help="where the pictures go")
    args, overrides = parser.parse_known_args(argv)
    if args.command == "batch":
        config = read([f"--config={args.config}", *overrides])
    elif overrides:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    to_stderr()
    with reported():
        if args.command == "batch":
            paths = draw_batches(config, args.step, args.out)
        else:
            paths = draw_run(args.workdir, args.out)
        for path in paths:
            print(path)


def _step(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


if __name__ == "__main__":
    main()
