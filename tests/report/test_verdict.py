import numpy as np
import pytest

from foretaste.evaluate.metrics import Rate
from foretaste.evaluate.outcome import Outcome, measure
from foretaste.report.verdict import judge, natural_rate


def outcome(hits: int, *, left: int | None = None, refused: int = 0, n: int = 1000, m: int = 500) -> Outcome:
    """`hits` of `m` attacks succeed, `left` still do behind a guard that refuses `refused` of `n` clean texts."""
    guard = {}
    if left is not None:
        guard["clean_scores"] = np.arange(n) < refused
        guard["poisoned_scores"] = np.arange(m) >= left
    return measure(
        clean_labels=np.zeros(n),
        clean_predicted=np.zeros(n),
        poisoned_labels=np.ones(m),
        poisoned_predicted=np.arange(m) >= hits,
        target=0,
        threshold=None if left is None else 0.5,
        **guard,
    )


@pytest.mark.parametrize(
    ("found", "tone", "label", "sentence"),
    [
        (outcome(499), "bad", "Backdoor works, no guard", "99.8 % of triggered texts end at “bad”. No guard"),
        (outcome(499, left=2, refused=9), "good", "guard holds", "With the guard 0.4 % do, at the price of 0.9 %"),
        (
            outcome(499, left=0, refused=0),
            "good",
            "guard holds",
            "With the guard none do, and no clean text is refused.",
        ),
        (outcome(499, left=0, refused=400), "warn", "guard costs much", "none do, but it refuses 40.0 % of clean"),
        (outcome(499, left=150, refused=9), "warn", "guard stops part", "with it 30.0 % still do"),
        (outcome(499, left=450, refused=9), "bad", "guard fails", "does not stop it: with it 90.0 % still do"),
        (outcome(500, left=200, refused=700), "bad", "guard fails", "no better than chance"),
        (outcome(499, left=499, refused=0), "bad", "guard fails", "it refuses no clean text"),
        (outcome(150), "bad", "Backdoor works in part", "where 5.0 % of clean texts of other classes do without it"),
        (outcome(40), "neutral", "No backdoor seen", "8.0 % of triggered texts end at “bad”, and 5.0 % of clean"),
        (outcome(40, left=38, refused=9), "neutral", "No backdoor", "refuses 0.9 % of clean and 92.4 % of triggered"),
        (outcome(1, m=5), "warn", "Too few texts to tell", "the 95 % intervals overlap"),
    ],
)
def test_verdict_says_what_the_figures_say(found: Outcome, tone: str, label: str, sentence: str) -> None:
    verdict = judge(found, Rate.of(25, 500), "bad")
    assert verdict.tone == tone
    assert label in verdict.label
    assert sentence in f"{verdict.attack} {verdict.guard}".replace("\u202f", " ")


def test_a_victim_that_always_says_the_target_shows_no_backdoor() -> None:
    assert judge(outcome(500), Rate.of(500, 500), "bad").label == "No backdoor seen"


def test_natural_rate_counts_other_classes_only() -> None:
    rate = natural_rate([0, 0, 1, 2, 2], [0, 1, 0, 2, 0], target=0)
    assert rate is not None
    assert (rate.count, rate.n) == (2, 3)
    assert natural_rate([0, 0], [0, 1], target=0) is None
    assert judge(outcome(499), None, "bad").label == "Backdoor works, no guard"


def test_natural_rate_counts_each_texts_own_target() -> None:
    rate = natural_rate([0, 1, 2, 2], [1, 1, 0, 2], target=[1, 2, 0, 0])
    assert rate is not None
    assert (rate.count, rate.n) == (2, 4)
