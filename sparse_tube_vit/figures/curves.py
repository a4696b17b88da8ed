"""Curves of training and evaluation."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from sparse_tube_vit.checkpoints.evaluations import views_in_words
from sparse_tube_vit.figures.canvas import add_legend, new_figure
from sparse_tube_vit.training.reporting import PARTS, training_metrics
from sparse_tube_vit.training.utilization import examples_per_second

# By quantity: the last parts of the names of its metrics, and their factor.
_CURVES = {
    "loss": (("loss",), 1),
    "accuracy, %": (("accuracy", "precision_at_1", "top1", "mAP"), 100),
}


def training_curves(metrics: Sequence[dict]) -> Figure:
    """Plots loss and accuracy of every stream against steps, evaluations as points.

    For examples of several labels, precision at 1 and mAP take accuracy's place.

    Args:
        metrics: Lines of metrics.jsonl, from `training.reporting.read_metrics`.
    """
    figure = new_figure(9, 3.5)
    axes = figure.subplots(1, 2)
    colors = {"": "0.8"}  # one per stream; the sum of losses is wide and grey
    for (quantity, (kinds, scale)), ax in zip(_CURVES.items(), axes, strict=True):
        names = {n for line in metrics for n in line if n.rpartition("/")[2] in kinds}
        for name in sorted(names, reverse=True):  # train/... before evaluation/...
            points = [(x["step"], scale * x[name]) for x in metrics if name in x]
            phase, *stream, metric = name.split("/")
            style, phase = ("-", "training") if phase == "train" else ("o--", phase)
            label = f"{' '.join(stream)} {metric.replace('_', ' ')}, {phase}".strip()
            stream = "/".join(stream)
            color = colors.setdefault(stream, f"C{len(colors) - 1}")
            beneath = {} if stream else {"linewidth": 5, "zorder": 1.5}
            x, y = zip(*points, strict=True)
            ax.plot(x, y, style, color=color, label=label, **beneath)
        ax.set(xlabel="step", ylabel=quantity)
        ax.grid(alpha=0.3)
    axes[1].set_ylim(-2, 102)
    for ax in axes:
        add_legend(ax)
    return figure


def throughput(metrics: Sequence[dict]) -> Figure:
    """Plots examples per second, the use of the devices, and the parts of the time.

    The use is the MFU, beside what `preflight` predicts, or model FLOPs per second and
    device where no peak is known.

    Args:
        metrics: As for `training_curves`.
    """
    lines = [{"step": x["step"]} | training_metrics(x) for x in metrics]
    lines = [line for line in lines if examples_per_second(line)]
    figure = new_figure(13, 3)
    speed, use, time = figure.subplots(1, 3)
    for stream in {name: None for x in lines for name in examples_per_second(x)}:
        speeds = ((x["step"], examples_per_second(x).get(stream)) for x in lines)
        points = [point for point in speeds if point[1] is not None]
        speed.plot(*zip(*points, strict=True), "o-", ms=3, label=stream)
    speed.set(xlabel="step", ylabel="examples a second")
    _plot_use(use, lines)
    for ax in (speed, use):
        ax.set_ylim(bottom=0)
        if len(ax.lines) > 1:
            add_legend(ax)
    seconds = np.array([[line[f"seconds/{p}"] for line in lines] for p in PARTS])
    steps = [line["step"] for line in lines]
    percent = 100 * seconds / seconds.sum(axis=0)
    time.stackplot(steps, percent, labels=PARTS, step="pre")
    time.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    time.set(xlabel="step", ylabel="share of the time, %", ylim=(0, 100))
    for ax in (speed, use, time):
        ax.grid(alpha=0.3)
    return figure


_FLOPS = "flops_per_second_per_device"


def _plot_use(ax, lines):
    """Plots the MFU, measured and predicted, or FLOPs where there is none."""
    curves, scale, ylabel = {"measured": "mfu", "predicted": "predicted/mfu"}, 100, ""
    if not any("mfu" in line for line in lines):
        most = max(line[_FLOPS] for line in lines)
        scale, unit = (1e-9, "G") if most < 1e12 else (1e-12, "T")
        curves, ylabel = {"measured": _FLOPS}, f"model {unit}FLOP/s a device"
    for (label, name), style in zip(curves.items(), ("o-", "o--"), strict=False):
        points = [(x["step"], scale * x[name]) for x in lines if name in x]
        if points:
            ax.plot(*zip(*points, strict=True), style, ms=3, label=label)
    ax.set(xlabel="step", ylabel=ylabel or "MFU, %")


def protocol_of(result: Mapping) -> str:
    """Returns what accuracies of different tokens share: evaluation, views, metric.

    Args:
        result: The contents of an evaluation's JSON file.
    """
    name = result["evaluation"]
    if "temporal_views" in result:
        name += f" {views_in_words(result)}"
    return f"{name}: {'Top-1' if 'top1' in result else 'mAP'}"


def accuracy_by_tokens(results: Mapping[str, Sequence[dict]]) -> Figure:
    """Plots accuracy, or mAP, against the number of tokens (paper figure 4, table 7d).

    A solid line joins runs trained with different numbers of tokens; a dashed one joins
    evaluations of one run with strides other than in training. Only results of the same
    views are joined.

    Args:
        results: Contents of evaluations' JSON files, by the name of the run.
    """
    figure = new_figure(6, 4)
    ax = figure.subplots()
    trained, colors = {}, {}
    for run, evaluations in results.items():
        strided = {}
        for e in evaluations:
            point = e["tokens"], 100 * e.get("top1", e.get("mAP"))
            what = protocol_of(e)
            colors.setdefault(what, f"C{len(colors)}")
            strided.setdefault(what, []).append(point)
            if e["stride_scale"] == 1:
                trained.setdefault(what, []).append(point)
        for what, points in strided.items():
            if len(points) > 1:
                label = f"{what}, {run}, other strides"
                line = {"color": colors[what], "mfc": "w", "label": label}
                ax.plot(*zip(*sorted(points), strict=True), "o--", **line)
    for what, points in trained.items():
        line = {"color": colors[what], "label": f"{what}, tokens of training"}
        ax.plot(*zip(*sorted(points), strict=True), "o-", **line)
    ax.set(xlabel="tokens", ylabel="accuracy, %")
    ax.grid(alpha=0.3)
    add_legend(ax)
    return figure
