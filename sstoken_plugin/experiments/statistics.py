"""What few seeds can tell: means and paired differences with intervals, verdicts, and how many seeds would tell.

Pure functions of numbers. The t distribution is SciPy's, which Axolotl brings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sstoken_plugin.base.numbers import counted

Better = Literal["lower", "higher"]

CONFIDENCE = 0.95
# Chance of a verdict where there is a difference, by which numbers of seeds are planned.
POWER = 0.8
# Of no use to anybody, so that the search ends here.
MOST_SEEDS = 10_000
_QUANTILES = 2000
# Of a loss, relative: some bits of float32 more than the mean of a few thousand tokens loses.
_ROUNDING = 1e-6

HELPS, HURTS, UNTOLD = "helps", "hurts", "cannot be told from chance"


@dataclass(frozen=True)
class Interval:
    """A mean over seeds, in the units of the values.

    Attributes:
        mean: of the values; None if there are none, or one of them is not finite.
        low: lower end of the interval; None where it cannot be had: fewer than two values, or all of them the same.
        high: upper end.
        deviation: standard deviation of the values, as of a sample; None for fewer than two values.
        count: number of values.
    """

    mean: float | None
    low: float | None = None
    high: float | None = None
    deviation: float | None = None
    count: int = 0


def mean_interval(values: Sequence[float], *, family: int = 1) -> Interval:
    """Return the mean with its 95 % interval by Student's t.

    Values that are all the same have no interval: the seeds changed nothing, which is no proof that nothing could.

    Args:
        values: one a seed.
        family: how many intervals hold together with 95 %: each is as wide as Bonferroni's correction makes it.

    Raises:
        ValueError: `family` is below 1.
    """
    if family < 1:
        raise ValueError(f"family: {family} is no number of intervals; it begins at 1.")
    count = len(values)
    found = np.asarray(values, dtype=np.float64)
    if not count or not np.isfinite(found).all():
        return Interval(None, count=count)
    mean = float(found.mean())
    if count == 1:
        return Interval(mean, count=1)
    deviation = float(found.std(ddof=1))
    # Rounding of a mean can make equal values differ by some last bits.
    if deviation <= 1e-12 * max(1.0, abs(mean)):
        return Interval(mean, deviation=0.0, count=count)
    reach = critical(count, family) * deviation / math.sqrt(count)
    return Interval(mean, mean - reach, mean + reach, deviation, count)


def paired(values: Sequence[float], others: Sequence[float], *, family: int = 1) -> Interval:
    """Return the mean of the differences, value minus other, of the same seeds; see `mean_interval`.

    A difference that rounding in float32 can make is none: two trainings that are the same by their formulas differ so.

    Raises:
        ValueError: there are not as many others as values.
    """
    pairs = zip(values, others, strict=True)
    return mean_interval([0.0 if _differ_by_rounding(*pair) else pair[0] - pair[1] for pair in pairs], family=family)


def _differ_by_rounding(value: float, other: float) -> bool:
    return math.isfinite(value) and math.isclose(value, other, rel_tol=_ROUNDING)


def critical(count: int, family: int = 1) -> float:
    """Return by how many standard errors an interval over `count` seeds reaches to either side, see `mean_interval`."""
    from scipy import stats

    return float(stats.t.isf((1 - CONFIDENCE) / (2 * family), count - 1))


def verdict(difference: Interval, better: Better) -> str:
    """Say what an interval of differences, arm minus the other, tells: it must leave out 0.

    Args:
        difference: see `paired`.
        better: which values are better.

    Returns:
        "helps", "hurts", or "cannot be told from chance with N seeds", with a reason where it is not the interval.
    """
    if difference.low is not None and difference.high is not None:
        if difference.high < 0:
            return HELPS if better == "lower" else HURTS
        if difference.low > 0:
            return HURTS if better == "lower" else HELPS
        return _untold(difference.count)
    if difference.count and difference.mean is None:
        return f"{_untold(difference.count)}: a value is not finite"
    if difference.count >= 2:
        same = "there is no difference in any of them" if difference.mean == 0 else "all differ by the same"
        return f"{_untold(difference.count)}: {same}"
    return _untold(difference.count)


def _untold(count: int) -> str:
    return f"{UNTOLD} with {counted(count, 'seed')}"


def seeds_to_tell(difference: float, deviation: float, *, family: int = 1) -> int | None:
    """Return how many seeds would tell a difference from chance in four cases of five, by a paired t test.

    Args:
        difference: true mean of the paired differences.
        deviation: their standard deviation.
        family: see `mean_interval`.

    Returns:
        The smallest number, at least 2; None if there is no difference, or more than 10,000 would be needed.
    """
    if not difference or not math.isfinite(difference) or not math.isfinite(deviation):
        return None
    if _power(MOST_SEEDS, difference, deviation, family) < POWER:
        return None
    low, high = 1, 2
    while _power(high, difference, deviation, family) < POWER:
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(middle, difference, deviation, family) >= POWER else (middle, high)
    return high


def _power(count: int, difference: float, deviation: float, family: int) -> float:
    """Return the chance that the interval over `count` seeds lies on the true side of 0.

    The mean over the deviations that so many seeds may show, at even quantiles of their chi distribution. SciPy's
    noncentral t would say the same, but is nan at many of the places that are asked for.
    """
    from scipy import stats

    if deviation == 0:
        return 1.0
    shift = abs(difference) / deviation * math.sqrt(count)
    seen = np.sqrt(stats.chi2.ppf((np.arange(_QUANTILES) + 0.5) / _QUANTILES, count - 1) / (count - 1))
    return float(stats.norm.sf(critical(count, family) * seen - shift).mean())
