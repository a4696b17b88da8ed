"""Means over seeds, and paired tests of two rows."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

#: Probability below which a difference counts as resolved.
SIGNIFICANCE = 0.05

LEAST_SEEDS = 3

REVERSE = "not confirmed, the reverse"

#: Differences of accuracies are as good as equal below it.
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Accuracies of two rows, by a paired t-test over the seeds that both have.

    Fewer than three seeds, or equal differences of all, are too little to test.

    Attributes:
        difference: Mean difference, better minus worse by the paper.
        seeds: Number of seeds.
        p: Two-sided probability of such a difference by chance; NaN without a test.
        unpaired: The same by Welch's test, for which equal seeds share nothing.
    """

    difference: float
    seeds: int
    p: float
    unpaired: float

    @classmethod
    def of(cls, better: Mapping[int, float], worse: Mapping[int, float]):
        """Compares accuracies by seed; None where no seed has both."""
        common = sorted(better.keys() & worse.keys())
        if not common:
            return None
        pairs = np.array([(better[seed], worse[seed]) for seed in common])
        differences = pairs[:, 0] - pairs[:, 1]
        p = unpaired = math.nan
        if len(common) >= LEAST_SEEDS and np.ptp(differences) > _ROUNDING:
            p = float(stats.ttest_rel(*pairs.T).pvalue)
            unpaired = float(stats.ttest_ind(*pairs.T, equal_var=False).pvalue)
        return cls(float(differences.mean()), len(common), p, unpaired)

    @property
    def verdict(self) -> str:
        """The paper's direction: confirmed, not confirmed (the reverse), or neither.

        Without a test it is the number of seeds; or, where the difference is the same
        in every seed, "equal" if it is 0, else "not tested".
        """
        if self.seeds < LEAST_SEEDS:
            return f"{self.seeds} seed{'s' * (self.seeds > 1)}"
        if math.isnan(self.p):
            return "not tested" if abs(self.difference) > _ROUNDING else "equal"
        if self.p < SIGNIFICANCE:
            return "confirmed" if self.difference > 0 else REVERSE
        return "not resolvable"


def count_significant(ps: Sequence[float]) -> int:
    """Returns how many comparisons are significant after Holm's correction.

    Args:
        ps: Their probabilities by chance.
    """
    for i, p in enumerate(sorted(ps)):
        if p >= SIGNIFICANCE / (len(ps) - i):
            return i
    return len(ps)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Returns mean and sample standard deviation; the latter is NaN of one value."""
    deviation = np.std(values, ddof=1) if len(values) > 1 else math.nan
    return float(np.mean(values)), float(deviation)
