"""Class names that a mirrored clip contradicts."""

from types import SimpleNamespace

import pytest

from sparse_tube_vit.datasets import classes


@pytest.mark.parametrize(
    ("name", "is_sided"),
    [
        ("Pushing something from left to right", True),
        ("turn_left", True),
        ("TurnRight", True),
        ("gauche", True),
        ("rechts-herum", True),
        ("brightening", False),
        ("leftover food", False),
        ("copyright", False),
        ("Uprights", False),
    ],
)
def test_names_that_tell_left_from_right(name, is_sided):
    assert classes.sided([name, "walking"]) == [name] * is_sided


def test_a_stream_that_mirrors_them_is_warned_of(caplog):
    split = SimpleNamespace(name="d", class_names=("turn_left", "sit", "turn_right"))
    classes.warn_of_flips("streams.v", split)
    assert "classes of d tell left from right: turn_left, turn_right." in caplog.text
    assert "--config.streams.v.flip=False" in caplog.text
    caplog.clear()
    split.class_names = ("sit", "stand")
    classes.warn_of_flips("streams.v", split)
    assert not caplog.text


def test_the_embedded_motions_do(data_dir):
    from sparse_tube_vit.datasets import reading

    motions = reading.open_split("moving_shapes/videos", "train", data_dir, "video")
    found = classes.sided(motions.class_names)
    assert found and all("left" in name or "right" in name for name in found)
