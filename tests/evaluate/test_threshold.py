import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from foretaste.errors import DataError, GuardError, PlanError
from foretaste.evaluate.threshold import allowed_above, calibrate, is_flagged, suspicion

TABLE = {
    0.01: {300: 0, 500: 1, 872: 3, 1000: 4, 2000: 12, 5000: 38},
    0.02: {200: 0, 300: 1, 500: 4, 872: 10, 1000: 12, 2000: 29, 5000: 83},
    0.05: {100: 1, 200: 4, 300: 8, 500: 16, 872: 32, 1000: 38, 2000: 83, 5000: 224},
}


@pytest.mark.parametrize(("frr", "n", "expected"), [(frr, n, k) for frr, row in TABLE.items() for n, k in row.items()])
def test_allowed_above_matches_the_known_table(frr: float, n: int, expected: int) -> None:
    assert allowed_above(n, frr) == expected


@given(st.integers(1, 3000), st.floats(0.002, 0.5), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_allowed_above_is_the_largest_that_keeps_the_promise(n: int, frr: float, confidence: float) -> None:
    # FRR of the k-th threshold follows Beta(k + 1, n - k): another route than the binomial tail in the code.
    def promised(k: int) -> float:
        return float(stats.beta.cdf(frr, k + 1, n - k))

    try:
        k = allowed_above(n, frr, confidence)
    except GuardError:
        assert promised(0) < confidence
        return
    assert promised(k) >= confidence - 1e-9
    assert k + 1 >= n or promised(k + 1) < confidence + 1e-9


@pytest.mark.parametrize("ties", [False, True])
def test_promise_holds_on_fresh_texts(ties: bool) -> None:
    rng = np.random.default_rng(0)
    calibration, population = rng.beta(2, 5, (2000, 400)), rng.beta(2, 5, 100_000)
    if ties:
        calibration, population = calibration.round(2), population.round(2)
    thresholds = [calibrate(row, frr=0.02).threshold for row in calibration]
    rates = 1 - np.searchsorted(np.sort(population), thresholds, side="right") / len(population)
    violations = float((rates > 0.02).mean())
    assert violations <= 0.05 + 0.01
    if not ties:  # ties only make it safer; without them the bound must not be wasteful either
        assert violations >= 0.01


@given(st.lists(st.sampled_from([0.5, 0.51, 0.6, 0.9]), min_size=59, max_size=200))
def test_never_more_above_than_allowed_even_with_ties(scores: list[float]) -> None:
    result = calibrate(scores, frr=0.05)
    assert is_flagged(scores, result.threshold).sum() <= result.allowed_above
    below = np.nextafter(result.threshold, -math.inf)
    assert is_flagged(scores, below).sum() > result.allowed_above


@pytest.mark.parametrize(("frr", "needed"), [(0.01, 299), (0.05, 59)])
def test_too_few_texts_name_what_is_needed(frr: float, needed: int) -> None:
    assert allowed_above(needed, frr) == 0
    with pytest.raises(GuardError, match=f"{needed} texts are needed") as caught:
        calibrate(np.zeros(needed - 1), frr=frr)
    assert caught.value.code == "too_few_calibration_texts"


@given(st.integers(5, 298))
def test_the_smallest_share_named_can_be_promised(n: int) -> None:
    with pytest.raises(GuardError) as caught:
        allowed_above(n, 0.01)
    named = float(str(caught.value).split("can promise is ")[1].split(" %")[0]) / 100
    assert allowed_above(n, named) == 0
    with pytest.raises(GuardError):
        allowed_above(n, named - 0.0002)


def test_no_texts_at_all_is_said_plainly() -> None:
    with pytest.raises(GuardError, match="there are none"):
        calibrate([])


def test_non_finite_calibration_scores_lie_above_every_threshold() -> None:
    scores = np.arange(872.0)
    scores[[0, 1, 2]] = math.nan, math.inf, -math.inf
    assert calibrate(scores).threshold == 871.0
    scores[3] = math.nan
    with pytest.raises(GuardError, match="4 of 872") as caught:
        calibrate(scores)
    assert caught.value.code == "non_finite_calibration_scores"


@pytest.mark.parametrize(("frr", "confidence"), [(0, 0.95), (1, 0.95), (math.nan, 0.95), (0.01, 1), (0.01, 0)])
def test_shares_outside_the_open_interval_are_refused(frr: float, confidence: float) -> None:
    with pytest.raises(PlanError, match="between 0 and 1"):
        calibrate(np.zeros(1000), frr=frr, confidence=confidence)


def test_scores_need_one_dimension() -> None:
    with pytest.raises(DataError, match="shape"):
        calibrate(np.zeros((300, 2)))


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True)), st.floats(allow_nan=True))
def test_only_finite_scores_at_or_below_the_threshold_pass(scores: list[float], threshold: float) -> None:
    expected = [not (math.isfinite(score) and score <= threshold) for score in scores]
    assert is_flagged(scores, threshold).tolist() == expected


def test_suspicion_leaves_its_input_alone() -> None:
    scores = np.array([math.nan, -math.inf, 0.3])
    assert suspicion(scores).tolist() == [math.inf, math.inf, 0.3]
    assert math.isnan(scores[0])
