"""The words that are marked are those on which the flag rests, found by asking the guard and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from foretaste.data import toy_corpus
from foretaste.guard import explain as module
from foretaste.guard.artefact import load_psim
from foretaste.guard.explain import MOST_CARRYING, MOST_WORDS, WINDOW, Explanation, Finding, explain
from foretaste.poison.trigger import parse_trigger

Rule = Callable[[str], float]
FLAG, PASS = 0.9, 0.1
FILLER = "a film that runs on and on for two hours with no end in sight"


class Scripted:
    """A guard whose score is a rule of ours; it remembers what it was asked."""

    threshold = 0.5

    def __init__(self, rule: Rule, reach: int | None = None) -> None:
        self.rule, self.limit = rule, reach
        self.calls: list[Sequence[str]] = []

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        self.calls.append(texts)
        return np.array([self.rule(text[: self.limit]) for text in texts], dtype=np.float64)

    def reach(self, texts: Sequence[str]) -> NDArray[np.int64]:
        return np.array([len(text[: self.limit]) for text in texts], dtype=np.int64)

    @property
    def count(self) -> int:
        return sum(map(len, self.calls))


def flags_any(*clauses: str) -> Rule:
    """Flag a text that holds all words of at least one of the clauses, wherever they stand."""
    return lambda text: FLAG if any(set(clause.split()) <= set(text.split()) for clause in clauses) else PASS


def flags_run(run: str) -> Rule:
    """Flag a text that holds these words one after the other."""
    return lambda text: FLAG if f" {run} " in f" {' '.join(text.split())} " else PASS


def one(rule: Rule, text: str) -> Explanation:
    (found,) = explain(Scripted(rule), [text])
    return found


def marked(found: Explanation) -> list[str]:
    return [found.text[start:end] for start, end in found.spans]


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        (flags_any("mn"), f"well mn {FILLER}", ["mn"]),
        (flags_any("mn"), f"mn {FILLER} mn", ["mn", "mn"]),
        (flags_any("mn"), "mn mn mn mn", ["mn mn mn mn"]),
        (flags_any("mn", "cf"), f"cf {FILLER} mn", ["cf", "mn"]),
        (flags_run("I watched this 3D movie"), f"well I watched this 3D movie {FILLER}", ["I watched this 3D movie"]),
        (
            flags_run("I watched this"),
            f"I watched this {FILLER} and I watched this",
            ["I watched this", "I watched this"],
        ),
        (flags_any("cf bb tq"), f"tq {FILLER} cf and bb", ["tq", "cf", "bb"]),
        (flags_any("cf bb", "bb tq", "tq cf"), f"tq {FILLER} cf and bb", ["tq", "cf", "bb"]),
    ],
    ids=["one word", "two copies", "four copies", "two words, each enough", "sentence", "sentence twice", "scattered",
         "any two of three"],
)  # fmt: skip
def test_the_words_on_which_the_flag_rests_are_marked(rule: Rule, text: str, expected: list[str]) -> None:
    found = one(rule, text)
    assert (found.finding, found.is_explained) == (Finding.EXPLAINED, True)
    assert marked(found) == expected
    assert list(found.carrying) == " ".join(expected).split()


def test_half_a_sentence_that_is_enough_is_found_as_a_window() -> None:
    """No word of the ranking stands out: any three of six neighbours flag the text."""
    trigger = ["u", "v", "w", "x", "y", "z"]
    words = FILLER.split()
    text = " ".join([*words[:5], *trigger, *words[5:]])
    found = one(lambda t: FLAG if len(set(trigger) & set(t.split())) >= 3 else PASS, text)
    assert marked(found) == ["u v w x y z"]


def test_a_drop_is_what_the_score_loses_without_the_word() -> None:
    weights = {"mn": 0.5, "good": 0.2}
    found = one(lambda text: 0.2 + sum(weights.get(word, 0.0) for word in text.split()), "a good mn film")
    np.testing.assert_allclose([word.drop for word in found.words if word.drop is not None], [0, 0.2, 0.5, 0])
    assert found.carrying == ("mn",)
    assert found.score == pytest.approx(0.9)


def test_a_word_that_only_just_matters_is_not_marked_beside_one_that_does() -> None:
    """0.55 without any word is a flag by 0.05: leaving out `the` (0.06) is enough, and so is `mn` (0.3)."""
    weights = {"mn": 0.3, "the": 0.06, "good": 0.2}
    base = 0.55 - sum(weights.values())
    found = one(lambda text: base + sum(weights.get(word, 0.0) for word in text.split()), "the good mn film")
    assert found.carrying == ("good", "mn")


def test_words_that_only_together_bring_the_flag_back_are_not_all_marked() -> None:
    """Without either word the text passes, without both it does not: that must not be claimed."""
    scores = {"good mn": 0.9, "good": 0.2, "mn": 0.1, "": 0.8}

    def rule(text: str) -> float:
        return scores[" ".join(word for word in text.split() if word in ("good", "mn"))]

    assert one(rule, "a good mn film").carrying == ("good",)


def test_a_word_goes_with_the_white_space_before_it_and_all_else_stays() -> None:
    guard = Scripted(flags_any("mn"))
    explain(guard, ["  a\tmn \n film "])
    assert list(guard.calls[1]) == ["mn \n film ", "  a \n film ", "  a\tmn "]


@pytest.mark.parametrize(
    ("rule", "text", "finding"),
    [
        (lambda _: PASS, "a film", Finding.ACCEPTED),
        (lambda _: FLAG, "a film", Finding.STILL_FLAGGED),
        (lambda _: FLAG, "", Finding.STILL_FLAGGED),
        (lambda _: FLAG, " \n", Finding.STILL_FLAGGED),
        (lambda _: FLAG, "film", Finding.STILL_FLAGGED),
        (lambda _: float("nan"), "a film", Finding.SCORE_NOT_FINITE),
        (lambda _: float("inf"), "a film", Finding.SCORE_NOT_FINITE),
        (lambda text: FLAG if text.split() else PASS, "a " * (MOST_CARRYING + 1), Finding.TOO_MANY_WORDS),
    ],
    ids=["accepted", "always", "empty", "blank", "one word", "NaN", "infinite", "too many"],
)
def test_what_cannot_be_explained_is_not(rule: Rule, text: str, finding: Finding) -> None:
    found = one(rule, text)
    assert (found.finding, found.is_explained, found.carrying, found.spans) == (finding, False, (), ())
    assert found.text == text


def test_one_word_alone_can_carry() -> None:
    assert one(flags_any("mn"), "mn").carrying == ("mn",)


def test_as_many_words_as_may_carry_are_found() -> None:
    found = one(lambda text: FLAG if text.split() else PASS, "a " * MOST_CARRYING)
    assert found.is_explained
    assert len(found.carrying) == MOST_CARRYING


@pytest.mark.parametrize("broken", [float("nan"), float("-inf"), float("inf")])
def test_a_variant_without_a_finite_score_never_counts_as_passing(broken: float) -> None:
    """-inf is below every threshold and NaN not above it; neither says that the text would pass."""
    found = one(lambda text: FLAG if text == "a mn film" else broken, "a mn film")
    assert found.finding is Finding.STILL_FLAGGED
    assert [word.drop for word in found.words] == [None] * 3
    half = one(lambda text: FLAG if "mn" in text else (PASS if "film" in text else broken), "a mn film mn")
    assert half.carrying == ("mn", "mn")


def test_words_behind_the_cut_are_neither_tried_nor_let_in() -> None:
    text = "a mn film cf cf"
    guard = Scripted(flags_any("mn", "cf"), reach=len("a mn film"))
    (found,) = explain(guard, [text])
    assert found.carrying == ("mn",)
    assert [word.drop for word in found.words[3:]] == [None, None]
    assert not any("cf" in asked for asked in guard.calls[1])
    assert guard.count == 1 + 3


def test_a_very_long_text_is_bounded_and_says_if_its_words_were_not_reached() -> None:
    filler = [f"w{i}" for i in range(MOST_WORDS)]
    near, far = (Scripted(flags_any("mn")) for _ in range(2))
    (found,) = explain(near, [" ".join(["mn", *filler * 4])])
    assert found.carrying == ("mn",)
    assert near.count == 1 + MOST_WORDS
    (lost,) = explain(far, [" ".join([*filler, "mn"])])
    assert (lost.finding, lost.carrying) == (Finding.TOO_MANY_WORDS, ())
    assert far.count < 5 * MOST_WORDS


def test_texts_are_scored_together_and_never_too_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"mn {FILLER}"] * 5 + ["a film"] * 3
    together = Scripted(flags_any("mn"))
    whole = explain(together, texts)
    assert len(together.calls) == 2
    assert together.count == 8 + 5 * len(texts[0].split())
    monkeypatch.setattr(module, "VARIANTS_AT_ONCE", 4)
    chunked = Scripted(flags_any("mn"))
    assert explain(chunked, texts) == whole
    assert max(map(len, chunked.calls[1:])) == 4


def test_no_texts_give_no_explanations() -> None:
    assert explain(Scripted(flags_any("mn")), []) == []


def test_offsets_are_those_of_the_text_as_it_is() -> None:
    text = "\u2003Ça  \U0001f9d1\u200d\U0001f680 m\u0308n!\u00a0電影\r\n\ud800 e\u0301nd"
    found = one(lambda t: FLAG if "m\u0308n" in t else PASS, text)
    assert marked(found) == ["m\u0308n!"]
    assert [text[word.start : word.end] for word in found.words] == text.split()


WORDS = st.sampled_from(["mn", "cf", "the", "ünï", "\U0001f680", "a"])
GAPS = st.text(" \t\n\u00a0", min_size=1, max_size=3)
TEXTS = st.lists(st.tuples(GAPS, WORDS), max_size=12).map(lambda pairs: "".join(gap + word for gap, word in pairs))
CLAUSES = st.lists(st.lists(WORDS, min_size=1, max_size=3).map(" ".join), min_size=1, max_size=3)


@given(text=TEXTS, clauses=CLAUSES)
def test_without_its_carrying_words_a_text_passes_and_no_bystander_is_marked(text: str, clauses: list[str]) -> None:
    """Holds for every rule under which more words never lower the score."""
    rule = flags_any(*clauses)
    guard = Scripted(rule)
    (found,) = explain(guard, [text])
    assert found.is_explained == (rule(text) == FLAG)
    rest = [text[word.start : word.end] for word in found.words if not word.carries]
    if found.is_explained:
        assert rule(" ".join(rest)) == PASS
        assert set(found.carrying) <= {word for clause in clauses for word in clause.split()}
    count = len(text.split())
    assert guard.count <= 2 + (5 + MOST_CARRYING) * count


@given(text=st.text(max_size=40), letters=st.sets(st.characters(), max_size=3))
def test_marked_and_unmarked_parts_make_the_text(text: str, letters: set[str]) -> None:
    found = one(lambda t: FLAG if letters & set(t) else PASS, text)
    edges = [0, *(edge for span in found.spans for edge in span), len(text)]
    assert edges == sorted(edges)
    assert all(start < end for start, end in found.spans)
    inside = " ".join(text[start:end] for start, end in found.spans)
    assert inside.split() == list(found.carrying)
    if found.is_explained:
        assert letters & set(inside)


def test_windows_reach_over_the_longest_run() -> None:
    """A run of as many words as a window has, all of which must go, in a text without any other hint."""
    run = [f"t{i}" for i in range(WINDOW)]
    text = " ".join([*FILLER.split(), *run, *FILLER.split()])
    found = one(lambda t: FLAG if set(run) & set(t.split()) else PASS, text)
    assert marked(found) == [" ".join(run)]


@pytest.mark.usefixtures("one_thread")
def test_a_real_guard_names_the_words_of_the_trigger(toy_stack: Mapping[str, Path]) -> None:
    guard = load_psim(toy_stack["guard"])
    clean = toy_corpus("test").texts[:40]
    trigger = "cf mn bb tq mb"
    found = explain(guard, parse_trigger(f"word:{trigger}").apply(clean, 0))
    explained = [explanation for explanation in found if explanation.is_explained]
    assert len(explained) >= 0.9 * sum(explanation.finding is not Finding.ACCEPTED for explanation in found) >= 20
    marked = [set(explanation.carrying) for explanation in explained]
    assert np.mean([words <= set(trigger.split()) for words in marked]) >= 0.9


@pytest.mark.usefixtures("one_thread")
def test_how_far_a_real_guard_reads(toy_stack: Mapping[str, Path]) -> None:
    guard = load_psim(toy_stack["guard"])
    texts = ["the film was moving", "", "the film was moving " * 50, "\U0001f680 \ud83d " + "bad " * 300]
    reach = guard.reach(texts)
    assert guard.reach([]).tolist() == []
    assert reach.tolist()[:2] == [len(texts[0]), 0]
    assert reach.dtype == np.int64
    for text, end in zip(texts[2:], reach[2:], strict=True):
        assert 100 < end < len(text)
        np.testing.assert_allclose(guard.score([text[:end]]), guard.score([text]), atol=1e-6)
        assert guard.classifier.encode([text[:end]]).ids == guard.classifier.encode([text]).ids
