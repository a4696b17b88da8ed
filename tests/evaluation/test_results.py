"""Results, and the names of their files."""

import numpy as np

from sparse_tube_vit.evaluation.results import Accuracy

PROTOCOL = {
    "evaluation": "video",
    "kind": "video",
    "dataset": "clips",
    "split": "test",
    "temporal_views": 4,
    "spatial_views": 3,
    "combine_views": "mean",
    "stride_scale": 1.0,
    "tokens": 9,
    "training_tokens": 9,
    "frames": 8,
    "fps": 5.0,
    "size": 16,
    "step": 7,
}


def result(**protocol):
    arrays = (np.zeros(2, int), np.eye(2, dtype=np.float32), (), np.full(2, 12))
    arrays += (np.ones(2, bool),)
    return Accuracy(PROTOCOL | protocol, ("a", "b"), *arrays)


def test_the_maximum_over_views_is_told_from_the_mean(tmp_path):
    mean, maximum = result(), result(combine_views="max")
    names = [r.save(tmp_path).name for r in (mean, maximum)]
    assert names == ["video_step7_4x3.json", "video_step7_4x3_max.json"]
    assert "; 4x3 views of 8 frames at 5 fps" in str(mean)
    assert str(maximum) == str(mean).replace("4x3 views", "maximum of 4x3 views")


def test_tokens_of_other_strides_are_told_from_those_of_training(tmp_path):
    assert ", 9 tokens; step 7" in str(result())
    more, fewer = (result(tokens=n, training_tokens=32) for n in (126, 5))
    assert ", 126 tokens, 3.9 times as many as in training; step 7" in str(more)
    assert ", 5 tokens, 0.16 times as many as in training; step 7" in str(fewer)
    denser = result(stride_scale=0.5, tokens=126).save(tmp_path)
    assert denser.name == "video_step7_4x3_126tokens.json"
