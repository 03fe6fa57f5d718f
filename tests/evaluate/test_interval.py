import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from foretaste.errors import DataError, UndefinedRateError
from foretaste.evaluate.interval import auroc_interval, clopper_pearson, wilson

counts = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, st.sampled_from([0.8, 0.95, 0.99]))
def test_intervals_equal_scipys(case: tuple[int, int], confidence: float) -> None:
    count, n = case
    oracle = stats.binomtest(count, n)
    for ours, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        theirs = oracle.proportion_ci(confidence, method=method)
        assert ours(count, n, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@given(counts)
def test_intervals_hold_the_rate_and_stay_in_range(case: tuple[int, int]) -> None:
    count, n = case
    for interval in (wilson(count, n), clopper_pearson(count, n)):
        assert 0 <= interval.low <= count / n <= interval.high <= 1


@pytest.mark.parametrize("interval", [wilson, clopper_pearson])
def test_no_interval_over_nothing(interval: object) -> None:
    assert callable(interval)
    with pytest.raises(UndefinedRateError):
        interval(0, 0)
    with pytest.raises(DataError):
        interval(4, 3)


def test_bootstrap_width_agrees_with_hanley_and_mcneil() -> None:
    rng = np.random.default_rng(1)
    clean, poisoned = rng.normal(0, 1, 400), rng.normal(1, 1, 300)
    low, high = auroc_interval(clean, poisoned)
    area = stats.mannwhitneyu(poisoned, clean).statistic / (400 * 300)
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + 299 * (q1 - area**2) + 399 * (q2 - area**2)) / (400 * 300)
    assert (low + high) / 2 == pytest.approx(area, abs=0.01)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.15)


def test_bootstrap_is_seeded_and_takes_non_finite_scores() -> None:
    clean, poisoned = [0.1, 0.4, 0.4, math.nan], [0.4, 0.9, math.inf]
    assert auroc_interval(clean, poisoned) == auroc_interval(clean, poisoned)
    assert auroc_interval(clean, poisoned, seed=1, resamples=50) != auroc_interval(clean, poisoned, resamples=50)
    assert auroc_interval([0.1, 0.2], [math.nan]) == (1.0, 1.0)


def test_bootstrap_needs_both_sides() -> None:
    with pytest.raises(UndefinedRateError):
        auroc_interval([], [1.0])
