"""What scores are worth against labels."""

import numpy as np


def top_k(labels: np.ndarray, scores: np.ndarray, k: int) -> np.ndarray:
    """Whether the label is among the k highest scores, the first of equals higher.

    Args:
      labels: (N,) class numbers.
      scores: (N, C).

    Returns:
      (N,) bool.
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return (best == labels[:, None]).any(axis=1)


def average_precision(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Area under every class's precision-recall curve, a step at each distinct score.

    Not interpolated. Examples of equal score count together, in whatever order they
    come. The mean over classes is mAP.

    Args:
      labels: (N, C), whether example n is of class c.
      scores: (N, C).

    Returns:
      (C,), NaN for a class that no example is of.
    """

    def of_class(positive, score):
        if not positive.any():
            return np.nan
        order = np.argsort(-score)
        last = np.flatnonzero(np.diff(score[order], append=-np.inf))  # of its equals
        found = np.cumsum(positive[order])[last]
        precision = found / (last + 1)
        return np.sum(precision * np.diff(found, prepend=0)) / found[-1]

    return np.array([of_class(*pair) for pair in zip(labels.T, scores.T, strict=True)])
