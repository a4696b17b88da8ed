"""Metrics against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from sparse_tube_vit.evaluation.metrics import average_precision, top_k


@pytest.mark.parametrize("levels", [3, 1000])  # nearly all scores tie, or few do
def test_average_precision_is_that_of_scikit_learn(levels):
    rng = np.random.default_rng(levels)
    labels = rng.random((200, 9)) < np.linspace(0.01, 0.9, 9)
    labels[0] = True
    scores = rng.integers(0, levels, labels.shape) / levels
    scores[rng.random(200) < 0.1] = 0  # undecodable
    ours = average_precision(labels, scores)
    expected = average_precision_score(labels, scores, average=None)
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    shuffled = rng.permutation(200)
    np.testing.assert_allclose(
        average_precision(labels[shuffled], scores[shuffled]), ours, rtol=1e-12
    )


def test_a_class_that_nothing_is_of_has_no_average_precision():
    labels = np.array([[1, 0], [0, 0]])
    np.testing.assert_array_equal(
        average_precision(labels, np.array([[0.1, 0.2], [0.3, 0.4]])), [0.5, np.nan]
    )


@pytest.mark.parametrize("k", [1, 3])
def test_top_k_is_that_of_scikit_learn(k):
    rng = np.random.default_rng(0)
    scores, labels = rng.random((100, 7)), rng.integers(0, 7, 100)
    right = top_k(labels, scores, k)
    expected = top_k_accuracy_score(labels, scores, k=k, labels=range(7))
    assert right.mean() == pytest.approx(expected)


def test_of_equal_scores_the_lower_class_comes_first():
    right = top_k(np.arange(5), np.zeros((5, 5)), 2)
    assert right.tolist() == [True, True, False, False, False]
