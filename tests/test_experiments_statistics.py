"""What few seeds tell: against SciPy, against tables of power, and verdicts against their intervals."""

import math

import numpy as np
import pytest
from scipy import stats

from sstoken_plugin.experiments.statistics import (
    HELPS,
    HURTS,
    UNTOLD,
    mean_interval,
    paired,
    seeds_to_tell,
    verdict,
)


@pytest.mark.parametrize("count", [2, 3, 5, 30])
def test_a_mean_has_students_interval(count):
    values = np.random.default_rng(count).normal(2, 0.3, count)
    found = mean_interval(list(values))
    low, high = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((values.mean(), low, high))
    assert found.deviation == pytest.approx(values.std(ddof=1))


def test_a_known_interval():
    # Student's table: t(0.975; 2) = 4.303.
    found = mean_interval([1.0, 2.0, 3.0])
    assert found.high == pytest.approx(2 + 4.3027 / math.sqrt(3), abs=1e-3)


@pytest.mark.parametrize("family", [1, 3, 8])
def test_an_interval_leaves_out_zero_where_the_corrected_paired_test_says_so(family):
    random = np.random.default_rng(family)
    for _ in range(200):
        values, others = np.add(random.normal(0, 1, (2, 4)), [[random.normal()], [0.0]])
        found = paired(list(values), list(others), family=family)
        p = min(1.0, family * stats.ttest_rel(values, others).pvalue)
        assert (found.low > 0 or found.high < 0) == (p < 0.05)
        assert (verdict(found, "lower") in (HELPS, HURTS)) == (p < 0.05)


def test_a_verdict_says_which_way_is_better():
    less = paired([1.0, 1.1, 1.05], [2.0, 2.12, 2.04])
    assert (verdict(less, "lower"), verdict(less, "higher")) == (HELPS, HURTS)
    more = paired([2.0, 2.12, 2.04], [1.0, 1.1, 1.05])
    assert (verdict(more, "lower"), verdict(more, "higher")) == (HURTS, HELPS)


@pytest.mark.parametrize(
    ("values", "others", "words"),
    [
        ([], [], f"{UNTOLD} with 0 seeds"),
        ([1.0], [2.0], f"{UNTOLD} with 1 seed"),
        ([1.0, 5.0], [2.0, 2.0], f"{UNTOLD} with 2 seeds"),
        ([1.0, math.nan, 1.0], [2.0, 2.0, 2.0], f"{UNTOLD} with 3 seeds: a value is not finite"),
        ([1.0, 1.0], [1.0, 1.0], f"{UNTOLD} with 2 seeds: there is no difference in any of them"),
        # Of one training in two ways: rounding in float32.
        ([1.4 - 6e-8, 2.5 - 7e-8], [1.4, 2.5], f"{UNTOLD} with 2 seeds: there is no difference in any of them"),
        ([math.inf, 1.0], [math.inf, 1.1], f"{UNTOLD} with 2 seeds: a value is not finite"),
        ([0.1 + 0.2, 0.3], [0.0, 0.0], f"{UNTOLD} with 2 seeds: all differ by the same"),
    ],
)
def test_what_cannot_be_told_has_its_reason(values, others, words):
    found = paired(values, others)
    assert verdict(found, "lower") == words
    assert found.low is None or found.low < 0 < found.high


@pytest.mark.parametrize(("size", "seeds"), [(1.0, 10), (0.5, 34), (0.2, 199), (2.0, 5)])
def test_seeds_to_tell_are_those_of_the_tables(size, seeds):
    # Two-sided paired t test at 5 %, power 80 %: Cohen's tables.
    assert seeds_to_tell(size, 1.0) == seeds
    assert seeds_to_tell(-3 * size, 3.0) == seeds


def test_seeds_to_tell_keep_their_promise():
    size, family = 0.9, 3
    count = seeds_to_tell(size, 1.0, family=family)
    assert count > seeds_to_tell(size, 1.0)
    draws = np.random.default_rng(0).normal(size, 1, (4000, count))
    told = [mean_interval(list(row), family=family).low > 0 for row in draws]
    assert np.mean(told) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("ratio", [5.31, 5.68, 6.05, 6.42, 6.99, 7.9])
def test_two_seeds_tell_nothing_short_of_a_difference_of_many_deviations(ratio):
    """Their critical value is 12.7 standard errors. SciPy's noncentral t is nan at these ratios."""
    assert seeds_to_tell(ratio, 1.0) == 3


def test_what_no_number_of_seeds_tells():
    assert seeds_to_tell(0.0, 1.0) is None
    assert seeds_to_tell(1e-6, 1.0) is None
    assert seeds_to_tell(1.0, 0.0) == 2
    assert seeds_to_tell(1000.0, 1.0) == 2


def test_a_family_of_none_is_refused():
    with pytest.raises(ValueError, match="family"):
        mean_interval([1.0, 2.0], family=0)
