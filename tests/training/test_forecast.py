"""The predicted time of a run, against sums by hand."""

import pytest

from sparse_tube_vit.config import default_config, evaluation, stream
from sparse_tube_vit.training import finetuning, forecast

# A clip has 2 x 16 + 2 x 4 tokens, an image 16.
TUBES = (
    {"kernel": (1, 16, 16), "stride": (8, 16, 16)},
    {"kernel": (8, 8, 8), "stride": (8, 32, 32)},
)


@pytest.fixture
def config():
    config = default_config()
    config.total_steps = 120
    config.clip.update(frames=16, size=64)
    config.model.update(tubes=TUBES, depth=4, width=8, mlp_dim=16, heads=2)
    config.streams.a = stream(kind="video", dataset="d", head="h", batch_size=4)
    config.streams.b = stream(kind="image", dataset="e", head="i", batch_size=10)
    views = {"temporal_views": 2, "spatial_views": 3, "batch_size": 2}
    config.evaluations.a = evaluation(kind="video", dataset="d", head="h", **views)
    images = {"kind": "image", "dataset": "e", "head": "i", "batch_size": 2}
    config.evaluations.b = evaluation(**images)
    return config


def test_work_counts_tokens_views_and_frozen_layers(config):
    assert forecast.training_work(config) == (4 * 40 + 10 * 16) * 3
    config.optimizer.frozen_layers = 2
    assert forecast.training_work(config) == (4 * 40 + 10 * 16) * 2
    work = forecast.evaluation_work(config, {"a": 5, "b": 7})
    assert work == 5 * 6 * 40 + 7 * 16


def test_the_time_of_a_run_is_that_of_steps_and_evaluations(config):
    examples = {"a": 64, "b": 0}  # 64 x 6 x 40 = 16 x 960
    text = forecast.forecast(config, examples, 20, 2.0)
    assert text == (
        "At 2 s a step this run takes about 00:03:52 more: 00:03:20 for 100 steps, "
        "00:00:32 for 1 evaluation."
    )
    config.evaluate_every_steps = 50  # at 50, 100 and 120
    text = forecast.forecast(config, examples, 50, 2.0, fewer_layers={})
    assert text.endswith("00:02:20 for 70 steps, 00:01:04 for 2 evaluations.")
    config.evaluate_every_steps = 60  # the last step once
    text = forecast.forecast(config, {}, 20, 2.0, fewer_layers={})
    assert text.endswith("00:03:20 for 100 steps, 00:00:00 for 0 evaluations.")


def test_first_steps_that_train_heads_alone_cost_a_third(config):
    config.optimizer.head_steps = 40
    text = forecast.forecast(config, {"a": 64}, 20, 2.0)
    # An evaluation is as much as 16 x 3 such steps.
    assert text == (
        "At 2 s a step, and about 6 s after step 40, this run takes about 00:10:16 "
        "more: 00:08:40 for 100 steps, 00:01:36 for 1 evaluation."
    )
    text = forecast.forecast(config, {"a": 64}, 60, 6.0)
    assert text.startswith("At 6 s a step this run takes about 00:07:36 more")


def test_a_long_run_on_a_cpu_is_told_what_is_quicker(config):
    config.data.folder = "clips"
    config.data.epochs = 10
    fewer = finetuning.with_fewer_layers(config, config)
    said = forecast.forecast(config, {"a": 64, "b": 0}, 20, 4.0, fewer)
    assert said.splitlines()[1:] == [
        # 48 pixels: 2 x 9 + 2 x 4 tokens of a clip, 9 of an image
        "  --config.clip.size=48: 61% of the time a step",
        "  --config.optimizer.trained_layers=1: 50% of the time a step",
        "  --config.optimizer.trained_layers=0 (pooling and heads alone): "
        "33% of the time a step",
        "  --config.data.epochs=5: fewer steps",
    ]
    config.streams.a.batch_size = config.streams.b.batch_size = 1
    said = forecast.forecast(config, {"a": 64, "b": 0}, 20, 4.0, fewer)
    assert said.endswith("--config.evaluations.a.temporal_views=1: fewer views")
    config.optimizer.frozen_layers = 4
    fewer = finetuning.with_fewer_layers(config, config)
    said = "".join(forecast.quicker(config, fewer))
    assert "clip.size" in said and "trained_layers" not in said
