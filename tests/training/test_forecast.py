"""The predicted time of a run, against sums of the FLOPs of its parts."""

import pytest

from sparse_tube_vit.config import default_config, evaluation, stream
from sparse_tube_vit.models.flops import forward_flops
from sparse_tube_vit.models.tubevit import make_model
from sparse_tube_vit.training import finetuning, forecast
from sparse_tube_vit.training.reporting import clock_time

TUBES = (
    {"kernel": (1, 16, 16), "stride": (8, 16, 16)},
    {"kernel": (8, 8, 8), "stride": (8, 32, 32)},
)

CLASSES = {"h": 3, "i": 5}


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


def forward(config, size=64):
    """FLOPs of a clip and of an image."""
    model = make_model(config, CLASSES)
    clip = forward_flops(model, (16, size, size), "h")
    image = forward_flops(model, (1, size, size), "i")
    return sum(clip.values()), sum(image.values())


def predict(config, examples, done, seconds, quicker=None):
    model = make_model(config, CLASSES)
    return forecast.Forecast(config, model, examples).text(done, seconds, quicker)


def test_the_time_of_a_run_is_that_of_steps_and_evaluations(config):
    clip, image = forward(config)
    examples = {"a": 64, "b": 7}
    once = 2 * (64 * 6 * clip + 7 * image) / (3 * (4 * clip + 10 * image))
    assert once > 10
    text = predict(config, examples, 20, 2.0)
    assert text == (
        f"At 2 s a step this run takes about {clock_time(200 + once)} more: 00:03:20 "
        f"for 100 steps, {clock_time(once)} for 1 evaluation."
    )
    config.evaluate_every_steps = 50  # at 50, 100 and 120
    twice = clock_time(2 * once)
    text = predict(config, examples, 50, 2.0, {})
    assert text.endswith(f"00:02:20 for 70 steps, {twice} for 2 evaluations.")
    config.evaluate_every_steps = 60  # the last step once
    text = predict(config, {}, 20, 2.0)
    assert text.endswith("00:03:20 for 100 steps, 00:00:00 for 0 evaluations.")


def test_more_tokens_in_an_evaluation_take_more(config):
    model = make_model(config, CLASSES)
    before = forecast.evaluation_flops(config, model, {"a": 1})
    assert before == 6 * forward(config)[0]
    config.evaluations.a.stride_scale = 0.5
    assert 2 * before < forecast.evaluation_flops(config, model, {"a": 1})


def test_first_steps_that_train_heads_alone_are_quicker(config):
    config.optimizer.head_steps = 40
    model = make_model(config, CLASSES)
    heads = 0
    for size, clip, head in ((4, (16, 64, 64), "h"), (10, (1, 64, 64), "i")):
        parts = forward_flops(model, clip, head)
        gradient = 2 * (parts["pooling"] + parts["head"])
        heads += size * (sum(parts.values()) + gradient)
    clip, image = forward(config)
    later = 2 * 3 * (4 * clip + 10 * image) / heads
    assert 4 < later < 6
    text = predict(config, {}, 20, 2.0)
    assert f", and about {later:.3g} s after step 40, this run takes" in text
    assert f"{clock_time(20 * 2 + 80 * later)} for 100 steps" in text
    text = predict(config, {}, 60, 6.0)
    assert text.startswith("At 6 s a step this run takes about 00:06:00 more")


def test_a_long_run_is_told_what_is_quicker(config):
    config.evaluations.a.temporal_views = 1
    config.init.weights = "runs/other"
    config.data.folder, config.data.epochs, config.total_steps = "clips", 10, 400
    given = config.copy_and_resolve_references()
    given.total_steps = None

    def told(quicker):
        text = predict(config, {"a": 1, "b": 1}, 20, 4.0, quicker)
        return dict(line.split(": ") for line in text.splitlines()[1:])

    said = told(finetuning.faster_configs(config, given))
    clip, image = forward(config)
    smaller, smaller_image = forward(config, 48)
    size = (4 * smaller + 10 * smaller_image) / (4 * clip + 10 * image)
    assert said.pop("  --config.clip.size=48") == f"{size:.0%} of the time"
    assert said.pop("  --config.data.epochs=5") == "50% of the time"
    last = said.pop("  --config.optimizer.trained_layers=1")
    name = "  --config.optimizer.trained_layers=0 (pooling and heads alone)"
    alone = said.pop(name)
    assert 33 < int(alone[:2]) < int(last[:2]) < 60 and said == {}
    # What changes nothing, or too little, is not said.
    assert "temporal_views" not in "".join(finetuning.faster_configs(config, given))
    assert "epochs" not in "".join(finetuning.faster_configs(config, config))
    config.total_steps = finetuning.LEAST_STEPS
    assert not any(
        "epochs" in x for x in told(finetuning.faster_configs(config, given))
    )
    # Nor what the tubes do not fit.
    config.model.tubes = (
        *TUBES,
        {"kernel": (1, 8, 8), "stride": (8, 16, 16), "offset": (0, 56, 56)},
    )
    assert "clip.size" not in "".join(told(finetuning.faster_configs(config, given)))
    config.init.weights = given.init.weights = ""  # what is frozen would be random
    assert [*finetuning.faster_configs(config, config)] == ["clip.size=48"]


def test_a_run_that_mostly_evaluates_is_told_of_fewer_views(config):
    said = predict(
        config, {"a": 1000}, 20, 4.0, finetuning.faster_configs(config, config)
    )
    clip, image = forward(config)
    training, views = 120 * 3 * (4 * clip + 10 * image), 1000 * 6 * clip
    share = (training + views / 2) / (training + views)
    assert f"--config.evaluations.a.temporal_views=1: {share:.0%} of the time" in said
    assert "evaluations.b" not in said
