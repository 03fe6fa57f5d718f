import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, roc_auc_score, roc_curve

from foretaste.errors import DataError, UndefinedRateError
from foretaste.evaluate.metrics import (
    FRR_LEVELS,
    Rate,
    attack_success_rate,
    auroc,
    clean_accuracy,
    false_acceptance_rate,
    false_rejection_rate,
    far_at_frr,
    strict_attack_success_rate,
)
from foretaste.evaluate.threshold import is_flagged

# Few distinct values, so that ties are the rule.
scores = st.lists(st.integers(0, 12).map(lambda k: k / 8), min_size=1, max_size=60)
any_scores = st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=40)


def texts(n_classes: int = 3) -> st.SearchStrategy[list[tuple[int, int, bool]]]:
    label = st.integers(0, n_classes - 1)
    return st.lists(st.tuples(label, label, st.booleans()), min_size=1, max_size=50)


@given(texts())
def test_clean_accuracy_equals_sklearns_with_flagged_texts_as_a_wrong_class(
    rows: list[tuple[int, int, bool]],
) -> None:
    labels, predicted, flagged = map(list, zip(*rows, strict=True))
    wrong = [-1 if refused else answer for answer, refused in zip(predicted, flagged, strict=True)]
    assert clean_accuracy(labels, predicted).value == pytest.approx(accuracy_score(labels, predicted))
    assert clean_accuracy(labels, predicted, flagged).value == pytest.approx(accuracy_score(labels, wrong))


@given(texts())
def test_attack_success_equals_a_count_by_hand(rows: list[tuple[int, int, bool]]) -> None:
    predicted = [answer for _, answer, _ in rows]
    flagged = [refused for _, _, refused in rows]
    hits = sum(answer == 0 and not refused for _, answer, refused in rows)
    rate = attack_success_rate(predicted, 0, flagged)
    assert (rate.count, rate.n) == (hits, len(rows))


def test_each_text_may_have_a_target_of_its_own() -> None:
    assert attack_success_rate([1, 0, 0], [1, 0, 2]).count == 2
    with pytest.raises(DataError, match="2 targets but 3 predictions"):
        attack_success_rate([1, 0, 0], [1, 0])


def test_strict_attack_success_leaves_natural_errors_out() -> None:
    predicted, right = [0, 0, 1, 0], np.array([True, False, True, True])
    assert strict_attack_success_rate(predicted, 0, right).value == pytest.approx(2 / 3)
    flagged = [True, False, False, False]
    assert strict_attack_success_rate(predicted, 0, right, flagged).value == pytest.approx(1 / 3)


@given(texts(), st.integers(0, 49))
def test_flagging_one_more_text_never_raises_either_rate(rows: list[tuple[int, int, bool]], at: int) -> None:
    labels, predicted, flagged = (np.array(column) for column in zip(*rows, strict=True))
    more = flagged.copy()
    more[at % len(more)] = True
    assert clean_accuracy(labels, predicted, more).value <= clean_accuracy(labels, predicted, flagged).value
    assert attack_success_rate(predicted, 0, more).value <= attack_success_rate(predicted, 0, flagged).value


def test_a_guard_that_refuses_everything_has_no_attack_success_and_no_accuracy() -> None:
    everything = np.ones(4, dtype=bool)
    assert clean_accuracy([0, 1, 1, 0], [0, 1, 1, 0], everything).value == 0
    assert attack_success_rate([0, 0, 0, 0], 0, everything).value == 0
    assert false_rejection_rate(everything).value == 1
    assert false_acceptance_rate(everything).value == 0


@pytest.mark.parametrize("mask", [[0, 1, 1], [True, False], [[True], [False], [True]], "yes"])
def test_flagged_must_be_bool_and_fit(mask: object) -> None:
    with pytest.raises(DataError):
        clean_accuracy([0, 1, 1], [0, 1, 1], mask)  # type: ignore[arg-type]


def test_columns_must_fit_together() -> None:
    with pytest.raises(DataError, match="3 labels but 2 predictions"):
        clean_accuracy([0, 1, 1], [0, 1])
    with pytest.raises(DataError, match="one label per text"):
        attack_success_rate([[0, 1]], 0)


def test_rates_over_nothing_are_refused() -> None:
    for rate in (
        lambda: Rate.of(0, 0),
        lambda: clean_accuracy([], []),
        lambda: attack_success_rate([], 0),
        lambda: strict_attack_success_rate([0], 0, [False]),
        lambda: false_rejection_rate([]),
        lambda: false_acceptance_rate([]),
        lambda: auroc([], [1.0]),
        lambda: auroc([1.0], []),
        lambda: far_at_frr([], [1.0], 0.01),
        lambda: far_at_frr([1.0], [], 0.01),
    ):
        with pytest.raises(UndefinedRateError):
            rate()


@given(scores, scores)
def test_auroc_equals_sklearns(clean: list[float], poisoned: list[float]) -> None:
    truth = [0] * len(clean) + [1] * len(poisoned)
    assert auroc(clean, poisoned) == pytest.approx(roc_auc_score(truth, clean + poisoned))


@given(any_scores, any_scores, st.randoms())
def test_auroc_does_not_care_about_order_and_mirrors(clean: list[float], poisoned: list[float], random: object) -> None:
    area = auroc(clean, poisoned)
    assert auroc(clean[::-1], sorted(poisoned)) == area
    assert auroc(poisoned, clean) == pytest.approx(1 - area)


@given(scores, scores)
def test_auroc_does_not_change_under_a_rising_function(clean: list[float], poisoned: list[float]) -> None:
    assert auroc(np.exp(clean) - 7, np.exp(poisoned) - 7) == auroc(clean, poisoned)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_non_finite_scores_are_the_most_suspicious(broken: float) -> None:
    assert auroc([0.1, 0.9], [broken]) == 1
    assert auroc([broken], [0.1, 0.9]) == 0
    assert far_at_frr([0.1, 0.9], [broken], 0.01).value == 0


@given(scores, scores, st.sampled_from((*FRR_LEVELS, 0.0, 0.25, 0.5)))
def test_far_at_frr_is_the_best_of_all_thresholds_that_refuse_few_enough(
    clean: list[float], poisoned: list[float], frr: float
) -> None:
    allowed = [
        float((~is_flagged(poisoned, threshold)).mean())
        for threshold in sorted({*clean, *poisoned})
        if is_flagged(clean, threshold).mean() <= frr + 1e-12
    ]
    assert far_at_frr(clean, poisoned, frr).value == pytest.approx(_best(allowed, clean, poisoned, frr))


def _best(allowed: list[float], clean: list[float], poisoned: list[float], frr: float) -> float:
    # sklearn's curve flags score >= threshold and ours score > threshold: the same points, found another way.
    truth = [0] * len(clean) + [1] * len(poisoned)
    rejected, caught, _ = roc_curve(truth, clean + poisoned, drop_intermediate=False)
    best = float(1 - caught[rejected <= frr + 1e-12].max())
    assert min(allowed) == pytest.approx(best)
    return best


def test_far_when_the_guard_cannot_score_enough_clean_texts_is_one() -> None:
    assert far_at_frr([0.1] * 9 + [math.nan], [0.9, math.nan], frr=0.05).value == 1


@pytest.mark.parametrize("n", [30, 70, 100, 290, 1000, 1821])
def test_far_at_frr_takes_exactly_the_share_asked_for(n: int) -> None:
    for hundredths in (1, 3, 5, 7, 10, 29):
        passed = far_at_frr(np.arange(n), np.arange(n), hundredths / 100).count
        assert passed == n - n * hundredths // 100


def test_far_at_frr_refuses_a_share_outside_its_range() -> None:
    with pytest.raises(DataError):
        far_at_frr([0.1], [0.2], 1.0)
