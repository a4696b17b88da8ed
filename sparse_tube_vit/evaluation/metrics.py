"""Metrics of scores against labels."""

import numpy as np


def top_k(labels: np.ndarray, scores: np.ndarray, k: int) -> np.ndarray:
    """Returns whether each label is among the k highest scores.

    Of equal scores, the class with the lower number comes first.

    Args:
        labels: Class numbers (N,).
        scores: Scores (N, C).

    Returns:
        (N,) bool.
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return (best == labels[:, None]).any(axis=1)


def average_precision(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns the area under each class's precision-recall curve; its mean is mAP.

    Not interpolated, with one step at each distinct score: examples of equal score
    count together, so that their order does not matter.

    Args:
        labels: (N, C), whether example n is of class c.
        scores: (N, C).

    Returns:
        (C,), NaN for classes without an example.
    """

    def of_class(positive, score):
        if not positive.any():
            return np.nan
        order = np.argsort(-score)
        last = np.flatnonzero(np.diff(score[order], append=-np.inf))  # of equal scores
        true_positives = np.cumsum(positive[order])[last]
        precision = true_positives / (last + 1)
        steps = np.diff(true_positives, prepend=0)  # of recall, once divided
        return np.sum(precision * steps) / true_positives[-1]

    return np.array([of_class(*pair) for pair in zip(labels.T, scores.T, strict=True)])
