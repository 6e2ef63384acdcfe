"""What differences between runs of the same seeds show: intervals, families of tests, power.

SciPy and statsmodels do the statistics. Differences are in whatever unit they are given.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

ALPHA = 0.05
"""Two-sided error that is accepted; intervals are of 95 %."""
POWER = 0.8
"""Chance with which the smallest effect that counts as visible is found."""
_RESAMPLES = 9999


@dataclass(frozen=True)
class Paired:
    """The mean of differences, one a seed, and how far chance may have moved it.

    Attributes:
        differences: One for each seed.
    """

    differences: tuple[float, ...]

    @property
    def value(self) -> float:
        """Their mean."""
        return statistics.fmean(self.differences)

    @property
    def spread(self) -> float | None:
        """Their standard deviation, 0 where they differ by rounding; None for fewer than two."""
        if len(self.differences) < 2:
            return None
        found = statistics.stdev(self.differences)
        return 0.0 if found <= 1e-12 * max(map(abs, self.differences)) else found

    @property
    def interval(self) -> tuple[float, float] | None:
        """The mean's interval of 95 % by Student's t; None for fewer than two."""
        if not self.spread:
            return None if self.spread is None else (self.value, self.value)
        from scipy import stats

        error = self.spread / len(self.differences) ** 0.5
        low, high = stats.t.interval(
            1 - ALPHA, len(self.differences) - 1, loc=self.value, scale=error
        )
        return float(low), float(high)

    @property
    def bootstrap(self) -> tuple[float, float] | None:
        """The same by resampling the seeds (percentiles), which assumes no normal distribution.

        With a handful of seeds it is too narrow: it stands beside `interval`, not for it.
        """
        if self.spread is None:
            return None
        import numpy as np
        from scipy import stats

        found = stats.bootstrap(
            (np.array(self.differences),),
            np.mean,
            confidence_level=1 - ALPHA,
            n_resamples=_RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        return float(found.low), float(found.high)

    @property
    def by_chance(self) -> bool:
        """Whether chance alone may explain it: the interval holds 0, or there is none."""
        return self.interval is None or self.interval[0] <= 0 <= self.interval[1]

    def p_value(self, bound: float = 0.0) -> float | None:
        """P-value of Student's paired test, two-sided, against ``bound``; None for one seed."""
        if not self.spread:
            return None if self.spread is None else float(self.value == bound)
        from scipy import stats

        return float(stats.ttest_1samp(self.differences, bound).pvalue)

    def p_equivalent(self, margin: float) -> float | None:
        """P-value of the two one-sided tests (TOST) that the mean lies outside ±``margin``."""
        if not self.spread:
            return None if self.spread is None else float(abs(self.value) >= margin)
        import numpy as np
        from statsmodels.stats.weightstats import DescrStatsW

        return float(DescrStatsW(np.array(self.differences)).ttost_mean(-margin, margin)[0])

    @property
    def visible(self) -> float | None:
        """The smallest mean that so many seeds of this spread would have shown; see that."""
        return None if self.spread is None else smallest_effect(len(self.differences), self.spread)


def smallest_effect(seeds: int, spread: float, alpha: float = ALPHA) -> float | None:
    """The mean difference that a paired t-test finds with a chance of `POWER`.

    Args:
        seeds: How many differences.
        spread: Their standard deviation.
        alpha: Two-sided error.

    Returns:
        In the unit of the spread; None for fewer than two seeds.
    """
    if seeds < 2:
        return None
    from statsmodels.stats.power import TTestPower

    return spread * float(TTestPower().solve_power(nobs=seeds, alpha=alpha, power=POWER))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for a family of tests (Holm, 1979): under 0.05 with all the others."""
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, alpha=ALPHA, method="holm")[1]]
