import subprocess
import sys

import pytest

from sparse_tube_vit.config import (
    InvalidConfig,
    arguments,
    default_config,
    evaluation,
    stream,
    validate,
)

VIDEO = {"kind": "video", "dataset": "d", "head": "h", "batch_size": 4}


@pytest.fixture
def config():
    config = default_config()
    config.total_steps = 20_000
    config.streams.video = stream(**VIDEO)
    config.evaluations.video = evaluation(**VIDEO)
    return config


def test_a_config_that_makes_sense(config):
    validate(config)


def test_a_misspelt_key_in_a_config_file_names_the_nearest(config):
    with pytest.raises(AttributeError, match="Did you mean.*total_steps"):
        config.totl_steps = 1
    with pytest.raises(AttributeError, match="Did you mean.*warmup_steps"):
        config.optimizer.warm_up_steps = 1
    with pytest.raises(TypeError, match="colour_jitter"):
        stream(**VIDEO, colour_jitter=0.4)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(total_steps=None), "total_steps is not set"),
        (lambda c: c.streams.__delattr__("video"), "streams is empty"),
        (lambda c: c.streams.video.update(kind="clip"), "streams.video.kind is 'clip'"),
        (lambda c: c.evaluations.video.update(head="x"), "head is 'x', but .* train h"),
        (lambda c: c.model.update(heads=7), "768 is not a multiple of model.heads 7"),
        (lambda c: c.update(total_steps=10), "warmup_steps 10000 is not below"),
        (lambda c: c.streams.update(v={**VIDEO, "fps": 3}), "unknown keys: fps"),
    ],
)
def test_what_cannot_work_is_named(config, change, message):
    with config.unlocked():
        change(config)
    with pytest.raises(InvalidConfig, match=message):
        validate(config)


def test_arguments_of_config_files():
    assert arguments("b=2", a="1", b="1").to_dict() == {"a": "1", "b": "2"}
    with pytest.raises(InvalidConfig, match="no argument c; it takes a, b"):
        arguments("c=2", a="1", b="1")


@pytest.mark.parametrize(
    "override, message",
    [
        ("--config.optimizer.learning_rat=3", "learning_rate"),
        ("--config.total_steps=many", "total_steps"),
    ],
)
def test_a_misspelt_override_ends_with_the_nearest_key(override, message, tmp_path):
    command = [sys.executable, "-m", "sparse_tube_vit.train"]
    command += ["--config=configs/moving_shapes.py", f"--workdir={tmp_path}", override]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
