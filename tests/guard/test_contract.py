"""What every guard promises, whatever its method: one score per text, its own, the same every time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from foretaste.data import toy_corpus
from foretaste.guard.guard import Guard, Reason, judge
from foretaste.guard.psim import PSIM_STRATEGIES, Psim
from foretaste.guard.psim_guard import PsimGuard
from foretaste.victim.checkpoint import Base, open_base

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-6
ROUGH_TOLERANCE = 2e-3  # of bfloat16 and int8, where one more or less in the last place moves a score
MAX_LENGTH = 64
TRAIN = toy_corpus().select(range(160))
HUGE = "the film was moving " * 25_000  # 100,000 words
AWKWARD = ("good", "", " \t\n", "\ud800 broken \udfff", "\x00\x1b[31m", "Ünï ✓ 漢字 \U0001f9d1\u200d\U0001f680")
TEXTS = (*toy_corpus("test").texts[:70], *AWKWARD, "bad " * 300)  # more than one batch

SHORT: dict[str, Any] = {"dose": None, "learning_rate": 5e-3, "threshold": 0.55, "precision": "float32"}
PLANS = {
    **{name: Psim(strategy=strategy, **SHORT) for name, strategy in PSIM_STRATEGIES.items()},
    **{scoring: Psim(scoring=scoring, **SHORT) for scoring in ("bfloat16", "int8")},
    **{view: Psim(view=view, frr=0.2, **SHORT | {"threshold": None}) for view in ("distance", "both")},
}


@pytest.fixture(scope="module")
def base(toy_stack: Mapping[str, Path]) -> Base:
    """Weights whose answers depend on the text."""
    return open_base(toy_stack["base"])


@pytest.fixture(scope="module", params=PLANS)
def plan(request: pytest.FixtureRequest) -> Psim:
    """One plan of each kind."""
    return PLANS[request.param]


@pytest.fixture(scope="module")
def tolerance(plan: Psim) -> float:
    """How much of a score may hang on its neighbours."""
    return TOLERANCE if plan.scoring == "float32" and plan.view == "confidence" else ROUGH_TOLERANCE


@pytest.fixture(scope="module")
def guard(plan: Psim, base: Base) -> PsimGuard:
    """A trained guard."""
    return plan.fit(base, TRAIN, max_length=MAX_LENGTH)


@pytest.fixture(scope="module")
def together(guard: Guard) -> NDArray[np.float64]:
    """The scores of TEXTS, asked for at once."""
    return guard.score(TEXTS)


def test_scores_are_finite_and_tell_texts_apart(together: NDArray[np.float64]) -> None:
    assert together.shape == (len(TEXTS),)
    assert together.dtype == np.float64
    assert np.isfinite(together).all()
    assert np.ptp(together) > 3 * ROUGH_TOLERANCE  # else everything below would hold for a constant


def test_the_same_seed_gives_the_same_guard_and_another_seed_another(
    plan: Psim, base: Base, together: NDArray[np.float64]
) -> None:
    again, other = (plan.fit(base, TRAIN, max_length=MAX_LENGTH, seed=seed).score(TEXTS) for seed in (0, 1))
    np.testing.assert_array_equal(again, together)
    assert np.abs(other - together).max() > TOLERANCE


def test_neighbours_and_order_do_not_matter(guard: Guard, together: NDArray[np.float64], tolerance: float) -> None:
    order = np.random.default_rng(3).permutation(len(TEXTS))
    shuffled = guard.score([TEXTS[i] for i in order])
    np.testing.assert_allclose(shuffled, together[order], rtol=0, atol=tolerance)
    alone = np.concatenate([guard.score([text]) for text in TEXTS[-10:]])
    np.testing.assert_allclose(alone, together[-10:], rtol=0, atol=tolerance)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batch_size_does_not_matter(
    guard: PsimGuard, together: NDArray[np.float64], batch_size: int, tolerance: float
) -> None:
    # Of the float32 model, from which the other arithmetics differ by little more than from themselves.
    scores = guard.judge(guard.classifier.predict(TEXTS, batch_size=batch_size))
    np.testing.assert_allclose(scores, together, rtol=0, atol=tolerance)


def test_verdicts_keep_length_and_order(guard: Guard, together: NDArray[np.float64]) -> None:
    verdicts = guard.check(TEXTS)
    scores = [verdict.score for verdict in verdicts]
    np.testing.assert_allclose(scores, together, rtol=0, atol=TOLERANCE)
    assert [v.flagged for v in verdicts] == [score > guard.threshold for score in scores]
    assert {v.reason for v in verdicts if v.flagged} <= {Reason.SCORE_ABOVE_THRESHOLD}
    assert {v.reason for v in verdicts if not v.flagged} <= {Reason.ACCEPTED}
    assert {v.threshold for v in verdicts} == {guard.threshold}


def test_both_verdicts_occur(guard: PsimGuard, together: NDArray[np.float64]) -> None:
    middle = replace(guard, threshold=float(np.median(together)))
    assert {verdict.flagged for verdict in middle.check(TEXTS)} == {True, False}


def test_a_text_that_was_cut_is_said_to_be(guard: Guard) -> None:
    verdicts = guard.check((*AWKWARD, HUGE))
    assert [verdict.truncated for verdict in verdicts] == [False] * len(AWKWARD) + [True]
    assert np.isfinite(verdicts[-1].score)


def test_no_texts_no_verdicts(guard: Guard) -> None:
    assert guard.score([]).shape == (0,)
    assert guard.check([]) == []


@pytest.mark.parametrize("texts", [("good",), ["good"], np.array(["good"])])
def test_any_sequence_of_texts_will_do(guard: Guard, texts: Sequence[str]) -> None:
    assert guard.score(texts).shape == (1,)


def test_one_text_is_not_read_letter_by_letter(guard: Guard) -> None:
    with pytest.raises(TypeError, match="Put it in a list"):
        guard.score("good")


@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_is_refused_at_any_threshold(score: float) -> None:
    for threshold in (-1e300, 0.5, 1e300, np.inf, np.nan):
        (verdict,) = judge(np.array([score]), np.array([False]), threshold)
        assert verdict.flagged
        assert verdict.reason is Reason.SCORE_NOT_FINITE


def test_a_threshold_that_is_no_number_refuses_everything() -> None:
    verdicts = judge(np.array([0.0, 0.5, 1.0]), np.zeros(3, bool), float("nan"))
    assert all(verdict.flagged for verdict in verdicts)


def test_a_score_on_the_threshold_passes() -> None:
    below, on, above = judge(np.array([0.69, 0.7, np.nextafter(0.7, 1)]), np.zeros(3, bool), 0.7)
    assert (below.flagged, on.flagged, above.flagged) == (False, False, True)
