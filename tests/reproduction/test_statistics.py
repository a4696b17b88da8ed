"""Paired tests, against the closed form of Student's t with two degrees of freedom."""

import math

import numpy as np
import pytest
from scipy import stats

from sparse_tube_vit.reproduction import document
from sparse_tube_vit.reproduction.statistics import (
    LEAST_SEEDS,
    SIGNIFICANCE,
    Comparison,
    count_significant,
    mean_and_deviation,
)


def test_three_seeds_by_the_closed_form():
    better, worse = {0: 80.0, 1: 84.0, 2: 79.0}, {2: 75.0, 1: 78.0, 0: 75.0, 3: 90.0}
    found = Comparison.of(better, worse)
    differences = np.array([5.0, 6.0, 4.0])
    t = differences.mean() / (differences.std(ddof=1) / math.sqrt(3))
    assert found.p == pytest.approx(1 - t / math.sqrt(t**2 + 2))
    assert (found.difference, found.seeds) == (5.0, 3)
    # Welch's, of variances 7 and 3 over 3 seeds.
    pairs = np.array([[80.0, 84.0, 79.0], [75.0, 78.0, 75.0]])
    assert pairs.var(axis=1, ddof=1) == pytest.approx([7.0, 3.0])
    freedom = (10 / 3) ** 2 / ((7 / 3) ** 2 / 2 + (3 / 3) ** 2 / 2)
    expected = 2 * stats.t.sf(5 / math.sqrt(10 / 3), freedom)
    assert found.unpaired == pytest.approx(expected)
    assert found.verdict == "confirmed"
    assert Comparison.of(worse, better).verdict == "not confirmed, the reverse"


def test_what_cannot_be_resolved():
    noisy = Comparison.of({0: 80.0, 1: 70.0, 2: 75.0}, {0: 70.0, 1: 79.0, 2: 75.0})
    assert noisy.verdict == "not resolvable"
    assert Comparison.of({0: 80.0}, {1: 70.0}) is None
    assert Comparison.of({0: 80.0}, {0: 70.0}).verdict == "1 seed"
    two = Comparison.of({0: 80.0, 1: 81.0}, {0: 70.0, 1: 70.0})
    assert two.verdict == "2 seeds" and math.isnan(two.p)
    # Without any spread there is no test.
    rising = {0: 1.0, 1: 2.0, 2: 3.0}
    for constant, verdict in ((0.0, "equal"), (1.0, "not tested")):
        moved = {seed: x + constant for seed, x in rising.items()}
        assert Comparison.of(moved, rising).verdict == verdict
    # Of 212 clips two more are right each time: but for rounding, the same.
    right = {0: 81, 1: 88, 2: 95}
    better, worse = (
        {seed: 100 * ((n + more) / 212) for seed, n in right.items()} for more in (2, 0)
    )
    assert len({better[seed] - worse[seed] for seed in right}) > 1
    assert Comparison.of(better, worse).verdict == "not tested"


def test_holm_by_hand():
    assert count_significant([0.01, 0.04, 0.03, 0.005]) == 2  # 0.03 is above 0.05 / 2
    assert count_significant([0.01, 0.04, 0.02, 0.005]) == 4
    assert count_significant([0.03, 0.9]) == 0 and count_significant([]) == 0


def test_what_three_seeds_resolve_is_what_the_document_says():
    limit = stats.t.ppf(1 - SIGNIFICANCE / 2, LEAST_SEEDS - 1)
    least = limit * 3 * math.sqrt(2) / math.sqrt(LEAST_SEEDS)
    text = " ".join(document.INTRODUCTION.split())
    assert f"by 3 points, a difference must reach {least:.1f} to" in text


def test_deviation_is_that_of_a_sample():
    mean, deviation = mean_and_deviation([1.0, 2.0, 6.0])
    assert (mean, deviation) == (3.0, pytest.approx(math.sqrt(7)))
    assert math.isnan(mean_and_deviation([1.0])[1])
