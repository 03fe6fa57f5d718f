"""The floor of an attack: clean texts as long as triggered ones."""

from __future__ import annotations

import numpy as np
import pytest

from foretaste.errors import DataError, UndefinedRateError
from foretaste.evaluate.floor import same_length_rate


def test_each_triggered_text_is_held_against_the_clean_texts_nearest_in_length() -> None:
    draw = np.random.default_rng(0)
    lengths, known = draw.integers(5, 40, 30), draw.integers(5, 200, 400)
    hits = draw.random(400) < 0.3
    by_hand = []
    for length in lengths.tolist():
        apart = sorted(abs(each - length) for each in known.tolist())
        near = [hit for each, hit in zip(known.tolist(), hits.tolist(), strict=True) if abs(each - length) <= apart[49]]
        by_hand.append(sum(near) / len(near))
    assert same_length_rate(lengths, known, hits) == pytest.approx(np.mean(by_hand))


def test_a_model_that_takes_short_for_the_trigger_has_a_high_floor() -> None:
    known = np.repeat([10, 90], 100)
    assert same_length_rate([9, 12], known, known < 50) == 1.0
    assert same_length_rate([80, 95], known, known < 50) == 0.0


def test_fewer_clean_texts_than_neighbours_all_count() -> None:
    assert same_length_rate([1], [1, 50, 99], [True, False, False]) == pytest.approx(1 / 3)


def test_a_floor_over_nothing_is_refused() -> None:
    with pytest.raises(UndefinedRateError):
        same_length_rate([], [1], [True])
    with pytest.raises(UndefinedRateError):
        same_length_rate([1], [], [])
    with pytest.raises(DataError):
        same_length_rate([1], [1, 2], [True])
