import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretaste.errors import DataError, UndefinedRateError
from foretaste.evaluate.metrics import attack_success_rate, clean_accuracy
from foretaste.evaluate.outcome import Outcome, measure, sweep
from foretaste.evaluate.threshold import is_flagged


def columns() -> dict[str, Any]:
    """Six clean and four triggered texts to count by hand; the guard cannot score one of each."""
    return {
        "clean_labels": [0, 0, 1, 1, 1, 0],
        "clean_predicted": [0, 0, 1, 1, 0, 0],
        "clean_scores": [0.5, 0.6, 0.55, 0.8, 0.5, math.nan],
        "poisoned_labels": [1, 1, 1, 1],
        "poisoned_predicted": [0, 0, 0, 1],
        "poisoned_scores": [0.9, math.inf, 0.6, 0.5],
        "is_origin_correct": [True, True, False, True],
        "target": 0,
        "threshold": 0.7,
    }


def test_measure_equals_a_count_by_hand() -> None:
    outcome = measure(**columns())
    assert (outcome.n_clean, outcome.n_poisoned) == (6, 4)
    assert outcome.clean_accuracy.value == pytest.approx(5 / 6)
    assert outcome.attack_success_rate.value == 3 / 4
    assert outcome.strict_attack_success_rate is not None
    assert outcome.strict_attack_success_rate.value == pytest.approx(2 / 3)
    guarded = outcome.guarded
    assert guarded is not None
    assert guarded.clean_accuracy.value == 3 / 6
    assert guarded.false_rejection_rate.value == pytest.approx(2 / 6)
    assert guarded.attack_success_rate.value == 1 / 4
    assert guarded.strict_attack_success_rate is not None
    assert guarded.strict_attack_success_rate.value == 0
    assert guarded.false_acceptance_rate.value == 2 / 4
    # 0.9 beats 5 of 6; inf beats 5 and ties with the NaN; 0.6 beats 3, ties 1; 0.5 ties 2.
    assert guarded.auroc == pytest.approx((5 + 5.5 + 3.5 + 1) / 24)
    assert guarded.auroc_interval.low <= guarded.auroc <= guarded.auroc_interval.high


def all_to_all() -> dict[str, Any]:
    """The same columns, but three classes, each sent to the next; all but the first get there."""
    own = {"poisoned_labels": [1, 1, 0, 2], "poisoned_predicted": [1, 2, 1, 0], "target": [2, 2, 1, 0]}
    return {**columns(), **own}


def test_all_to_all_equals_a_count_by_hand() -> None:
    outcome = measure(**all_to_all())
    assert outcome.target is None
    assert outcome.attack_success_rate.value == 3 / 4
    assert outcome.strict_attack_success_rate is not None
    assert outcome.strict_attack_success_rate.value == pytest.approx(2 / 3)  # all but the third
    guarded = outcome.guarded
    assert guarded is not None
    assert guarded.attack_success_rate.value == 2 / 4  # 0.6 and 0.5 pass
    assert guarded.strict_attack_success_rate is not None
    assert guarded.strict_attack_success_rate.value == pytest.approx(1 / 3)
    kept = {name: value for name, value in all_to_all().items() if name not in ("is_origin_correct", "threshold")}
    curve = sweep(**{name: kept[name] for name in kept if name != "poisoned_labels"}, thresholds=[0.7])
    assert curve.attack_success_rate.tolist() == [2 / 4]


@pytest.mark.parametrize(("target", "message"), [([2, 2, 0, 0], "target 0 as their true"), ([2, 2], "2 targets")])
def test_each_texts_target_is_checked(target: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        measure(**{**all_to_all(), "target": target})


def test_outcome_survives_json() -> None:
    assert Outcome.from_json(measure(**all_to_all()).to_json()) == measure(**all_to_all())
    for gone in ([], ["is_origin_correct"], ["clean_scores", "poisoned_scores", "threshold"]):
        kept = {name: value for name, value in columns().items() if name not in gone}
        outcome = measure(**kept)
        text = json.dumps(outcome.to_json(), allow_nan=False)
        assert Outcome.from_json(json.loads(text)) == outcome


def test_json_names_and_ranges() -> None:
    value = measure(**columns()).to_json()
    guarded = value["guarded"]
    assert list(guarded["far_at_frr"]) == ["0.005", "0.01", "0.03", "0.05", "0.1"]
    for part, extra in ((value, set()), (guarded, {"false_rejection_rate", "false_acceptance_rate"})):
        for name in {"clean_accuracy", "attack_success_rate", "strict_attack_success_rate"} | extra:
            interval = part["intervals"][name]
            assert 0 <= interval["low"] <= part[name] <= interval["high"] <= 1
            assert part[name] == interval["count"] / interval["n"]
    assert guarded["threshold"] == 0.7


def test_strict_rate_is_null_where_it_is_unknown_or_has_no_text() -> None:
    for right in (None, [False] * 4):
        outcome = measure(**{**columns(), "is_origin_correct": right})
        assert outcome.strict_attack_success_rate is None
        assert outcome.to_json()["guarded"]["strict_attack_success_rate"] is None
    with pytest.raises(DataError):
        measure(**{**columns(), "is_origin_correct": [False] * 3})


def test_a_triggered_text_of_the_target_class_is_refused() -> None:
    with pytest.raises(DataError, match=r"1 of 4 .* position 2"):
        measure(**{**columns(), "poisoned_labels": [1, 1, 0, 1]})


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": None},
        {"clean_scores": None},
        {"threshold": math.nan},
        {"threshold": math.inf},
        {"clean_scores": [0.5] * 5},
        {"poisoned_scores": [0.5] * 5},
        {"poisoned_labels": [1, 1]},
        {"clean_labels": [0, 1]},
    ],
)
def test_columns_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        measure(**{**columns(), **change})


def test_no_outcome_over_nothing() -> None:
    empty: dict[str, Any] = {"poisoned_labels": [], "poisoned_predicted": []}
    with pytest.raises(UndefinedRateError):
        measure(clean_labels=[0], clean_predicted=[0], target=0, **empty)


@pytest.mark.parametrize("broken", [{}, [], None, {"guarded": None, "target": 0, "intervals": {}}])
def test_foreign_json_is_refused(broken: Any) -> None:
    with pytest.raises(DataError, match="not an outcome"):
        Outcome.from_json(broken)


texts = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.integers(0, 2),
        st.one_of(st.integers(0, 6).map(float), st.just(math.nan), st.just(math.inf)),
    ),
    min_size=1,
    max_size=30,
)


@given(texts, texts)
def test_sweep_equals_the_rates_at_each_threshold(
    clean: list[tuple[int, int, float]], poisoned: list[tuple[int, int, float]]
) -> None:
    labels, predicted, scores = (np.array(column) for column in zip(*clean, strict=True))
    _, ends, suspect = (np.array(column) for column in zip(*poisoned, strict=True))
    result = sweep(
        clean_labels=labels,
        clean_predicted=predicted,
        clean_scores=scores,
        poisoned_predicted=ends,
        poisoned_scores=suspect,
        target=0,
    )
    for index, threshold in enumerate(result.thresholds):
        refused, caught = is_flagged(scores, threshold), is_flagged(suspect, threshold)
        assert result.clean_accuracy[index] == clean_accuracy(labels, predicted, refused).value
        assert result.attack_success_rate[index] == attack_success_rate(ends, 0, caught).value
        assert result.false_rejection_rate[index] == pytest.approx(refused.mean())
        assert result.false_acceptance_rate[index] == pytest.approx(1 - caught.mean())


def test_sweep_takes_thresholds_and_refuses_columns_that_do_not_fit() -> None:
    some: dict[str, Any] = {
        "clean_labels": [0, 1],
        "clean_predicted": [0, 1],
        "clean_scores": [0.5, 0.6],
        "poisoned_predicted": [0],
        "target": 0,
    }
    result = sweep(**some, poisoned_scores=[0.8], thresholds=[0.9, 0.55])
    assert result.thresholds.tolist() == [0.55, 0.9]
    assert result.clean_accuracy.tolist() == [0.5, 1.0]
    with pytest.raises(DataError):
        sweep(**some, poisoned_scores=[0.8, 0.9])
    with pytest.raises(UndefinedRateError):
        sweep(**{**some, "poisoned_predicted": []}, poisoned_scores=[])
