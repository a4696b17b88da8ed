"""Losses against loops in numpy."""

import numpy as np
import pytest

from sparse_tube_vit.config.schema import STREAM
from sparse_tube_vit.models import losses

LOGITS = np.random.default_rng(0).normal(0, 3, (4, 5)).astype(np.float32)
LABELS = np.array(
    [[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 0]], np.int32
)


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_sigmoid_loss_is_the_mean_of_each_class_alone(share):
    weights = np.array([1, 1, 0, 1], np.float32)
    targets = losses.smooth(losses.multi_hot(LABELS, 5), share, "sigmoid")
    mean = losses.mean_weights(weights)
    loss = losses.cross_entropy(LOGITS, targets, mean, "sigmoid")
    total = 0.0
    for i in (0, 1, 3):
        for c in range(5):
            there = 1 / (1 + np.exp(-float(LOGITS[i, c])))
            # Two outcomes, there or not, of which a label is one for certain, but for
            # a share that is spread over both.
            right, wrong = (there, 1 - there) if LABELS[i, c] else (1 - there, there)
            entropy = -(1 - share / 2) * np.log(right) - share / 2 * np.log(wrong)
            total += entropy / 5
    np.testing.assert_allclose(loss, total / 3, rtol=1e-5)


def test_softmax_smoothing_spreads_over_all_classes():
    targets = losses.smooth(losses.multi_hot(np.array([2, 0]), 5), 0.1, "softmax")
    expected = [[0.02, 0.02, 0.92, 0.02, 0.02], [0.92, 0.02, 0.02, 0.02, 0.02]]
    np.testing.assert_allclose(targets, expected, rtol=1e-6)


def test_precision_at_1_takes_the_top_class_on_any_label():
    logits = np.eye(5)[[3, 3, 3, 1]]  # the second has no label, the third no weight
    weights = np.array([1, 1, 0, 1], np.float32)
    mean = losses.mean_weights(weights)
    np.testing.assert_allclose(losses.precision_at_1(logits, LABELS, mean), 2 / 3)


def test_a_config_takes_the_losses_of_the_table():
    assert STREAM["loss"].rule.choices == tuple(losses.LOSSES)


def test_multi_label_data_needs_a_loss_for_it():
    losses.check_loss("streams.v", "sigmoid", "charades", multi_label=True)
    losses.check_loss("streams.v", "sigmoid", "ucf101", multi_label=False)
    with pytest.raises(losses.LossDoesNotFit, match="v reads charades.*'sigmoid' in"):
        losses.check_loss("streams.v", "softmax", "charades", multi_label=True)
