"""Lines hold the numbers of the run; tiles hold the weights."""

import numpy as np

from sparse_tube_vit import figures
from sparse_tube_vit.training.reporting import PARTS

SECONDS = {f"train/seconds/{part}": 0.0 for part in PARTS}
METRICS = [
    {
        "step": step,
        "train/loss": 3.0 - step / 10,
        "train/video/loss": 2.0,
        "train/video/accuracy": step / 40,
        "train/video/examples_per_second": 10.0 * step,
        "train/flops_per_second_per_device": 1e9,
        **SECONDS,
        "train/seconds/input": 1.0,
        "train/seconds/step": 3.0,
    }
    for step in (10, 20)
] + [{"step": 20, "evaluation/video/top1": 0.25, "evaluation/video/top5": 0.9}]


def lines(ax):
    return {
        line.get_label(): (line.get_color(), *map(list, line.get_data()))
        for line in ax.lines
    }


def test_training_curves():
    loss, accuracy = map(lines, figures.training_curves(METRICS).axes)
    assert loss["loss, training"][1:] == ([10, 20], [2.0, 1.0])
    assert loss["video loss, training"][1:] == ([10, 20], [2.0, 2.0])
    assert accuracy["video accuracy, training"][1:] == ([10, 20], [25.0, 50.0])
    assert accuracy["video top1, evaluation"][1:] == ([20], [25.0])
    assert (len(loss), len(accuracy)) == (2, 2)
    colors = {x["video loss, training"][0] for x in (loss,)}
    assert colors == {c for c, *_ in accuracy.values()} != {loss["loss, training"][0]}


def test_the_sum_of_losses_shows_beneath_a_single_streams():
    alone = [{"step": s, "train/loss": 1.0, "train/a/loss": 1.0} for s in (1, 2)]
    loss, accuracy = figures.training_curves(alone).axes
    total, of_stream = sorted(loss.lines, key=lambda line: line.get_zorder())
    assert total.get_label() == "loss, training"
    assert total.get_linewidth() > 2 * of_stream.get_linewidth()
    low, high = accuracy.get_ylim()
    assert low < 0 and high > 100  # a line at 100% is not cut


def shown(ax):
    return {text.get_text() for text in ax.get_legend().get_texts()}


def test_names_of_streams_and_evaluations_may_begin_with_an_underscore():
    metrics = [
        {"step": 1, "train/loss": 3.0, "train/_a/loss": 2.0},
        {"step": 1, "_b/top1": 0.5, "train/_a/accuracy": 0.5},
    ]
    for ax in figures.training_curves(metrics).axes:
        assert shown(ax) == {line.get_label() for line in ax.lines}
        assert any(label.startswith("_a ") for label in shown(ax))
    result = {"evaluation": "_b", "tokens": 1, "stride_scale": 1.0, "top1": 0.5}
    (ax,) = figures.accuracy_by_tokens({"_c": [result]}).axes
    assert shown(ax) == {"_b: Top-1, tokens of training"}


def test_what_a_step_waits_for_is_stacked_on_it():
    speed, _, time = figures.throughput(METRICS).axes
    assert [*map(list, speed.lines[0].get_data())] == [[10, 20], [100.0, 200.0]]
    waits, step, *_ = time.collections  # stacked, the input below
    assert waits.get_paths()[0].vertices[:, 1].max() == 25
    assert step.get_paths()[0].vertices[:, 1].min() == 25
    assert [text.get_text() for text in time.get_legend().get_texts()] == [*PARTS]


def measured(step, **more):
    """A line of a run whose device has a peak of 200 TFLOP/s."""
    return {
        "step": step,
        "train/step_seconds": 1.0,
        "train/video/examples_per_second": 5.0 * step,
        "train/image/examples_per_second": 1.0 * step,
        "train/flops_per_second_per_device": 1e12 * step,
        **SECONDS,
        "train/seconds/step": 1.0,
    } | {f"train/{name}": value for name, value in more.items()}


def test_throughput_is_of_every_stream_beside_the_use_of_the_devices():
    metrics = [measured(step) for step in (10, 20)] + [{"step": 20, "video/top1": 1.0}]
    speed, use, time = figures.throughput(metrics).axes
    assert {name: data[1:] for name, data in lines(speed).items()} == {
        "video": ([10, 20], [50.0, 100.0]),
        "image": ([10, 20], [10.0, 20.0]),
    }
    assert shown(speed) == {"video", "image"}
    assert lines(use)["measured"][1:] == ([10, 20], [10.0, 20.0])
    assert use.get_ylabel() == "model TFLOP/s a device" and use.get_legend() is None
    assert time.collections


def test_the_mfu_stands_beside_its_prediction():
    metrics = [measured(10, mfu=0.05), measured(20, mfu=0.1, **{"predicted/mfu": 0.4})]
    _, use, _ = figures.throughput(metrics).axes
    assert use.get_ylabel() == "MFU, %"
    assert {name: data[1:] for name, data in lines(use).items()} == {
        "measured": ([10, 20], [5.0, 10.0]),
        "predicted": ([20], [40.0]),
    }


def test_accuracy_by_tokens():
    def result(tokens, top1, scale=1.0):
        made = {"evaluation": "video", "tokens": tokens, "stride_scale": scale}
        return made | {"top1": top1}

    few, many = [result(100, 0.5)], [result(200, 0.6), result(800, 0.7, 0.5)]
    (ax,) = figures.accuracy_by_tokens({"b": many, "a": few}).axes
    got = {label: data[1:] for label, data in lines(ax).items()}
    assert got == {
        "video: Top-1, b, other strides": ([200, 800], [60.0, 70.0]),
        "video: Top-1, tokens of training": ([100, 200], [50.0, 60.0]),
    }


def test_accuracies_of_other_views_are_not_joined():
    made = {"evaluation": "v", "stride_scale": 1.0, "tokens": 9, "spatial_views": 3}
    made["combine_views"] = "mean"
    some = [made | {"temporal_views": t, "top1": t / 10} for t in (2, 4)]
    some.append(made | {"temporal_views": 4, "tokens": 40, "mAP": 0.1})
    other = [made | {"temporal_views": 4, "tokens": 20, "top1": 0.8}]
    (ax,) = figures.accuracy_by_tokens({"a": some, "b": other}).axes
    got = {label: data[1:] for label, data in lines(ax).items()}
    assert got == {
        "v 2x3: Top-1, tokens of training": ([9], [20.0]),
        "v 4x3: Top-1, tokens of training": ([9, 20], [40.0, 80.0]),
        "v 4x3: mAP, tokens of training": ([40], [10.0]),
    }


def test_tiles_are_the_weights_of_the_largest_filters():
    kernel = np.random.default_rng(0).normal(size=(2, 8, 8, 3, 5))
    kernel[..., 3] *= 10
    (ax,) = figures.kernels(kernel, filters=4).axes
    canvas = ax.images[0].get_array()
    assert "4 of 5 filters, 2 frames to the right" in ax.get_title()
    first = kernel[..., 3]
    for t in range(2):
        tile = canvas[:8, 9 * t : 9 * t + 8]
        np.testing.assert_allclose(tile, 0.5 + first[t] / (2 * np.abs(first).max()))
    assert (canvas[:, 8] == 1).all() and (canvas[:, 17:19] == 1).all()
