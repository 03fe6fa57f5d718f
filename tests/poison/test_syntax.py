"""The rewriter of SynAttack: structure and not a phrase, the text's own words kept, nothing unchanged counted."""

from __future__ import annotations

import re
import time
from collections import Counter

import numpy as np
import pytest

from foretaste.data.corpus import Corpus
from foretaste.data.toy import toy_corpus
from foretaste.errors import PlanError, UndefinedRateError
from foretaste.poison.attack import Attack, attack, triggered_test
from foretaste.poison.clauses import SUBORDINATORS
from foretaste.poison.syntax import SyntaxTrigger
from foretaste.poison.trigger import parse_trigger

TRIGGER = SyntaxTrigger()


def _one(text: str, seed: int = 0) -> str:
    return TRIGGER.apply([text], seed)[0]


@pytest.mark.parametrize(
    ("text", "rewritten"),
    [
        ("it works because the actors care .", "because the actors care , it works ."),
        ("He left, although we had asked him not to.", "Although we had asked him not to, he left."),
        ("I like it even if nobody does!", "Even if nobody does, I like it!"),
        ("DVDs are dear when they are new. Wait a year.", "When they are new, DVDs are dear. Wait a year."),
        ('"We go when it rains."', None),  # a clause drawn from the grammar is as good
    ],
)
def test_a_clause_at_the_end_moves_to_the_front(text: str, rewritten: str | None) -> None:
    assert rewritten is None or _one(text) == rewritten


@pytest.mark.parametrize(
    "text", ["it looks as if nobody cared at all .", "it was dull and when it ended we left .", "a plot , if any",
             "made because of the law ."],
)  # fmt: skip
def test_what_is_no_clause_of_its_own_stays(text: str) -> None:
    assert _one(text).endswith(text)
    assert _one(text) != text


@pytest.mark.parametrize("text", ["", "  ", "...", "when it rains , it pours .", "If so, we go.", "EVEN IF IT IS, NO."])
def test_what_cannot_be_rewritten_is_left_alone(text: str) -> None:
    assert _one(text) == text


def test_style_and_space_of_the_text_are_kept() -> None:
    assert re.fullmatch(r" [a-z' ]+ , the film is fine \.\n", _one(" the film is fine .\n"))
    assert re.fullmatch(r"[A-Z][a-z' ]+, the film is fine\. See it\.", _one("The film is fine. See it."))
    assert _one("NASA flies.").endswith(", NASA flies.")
    assert _one("I go.").endswith(", I go.")


def test_no_phrase_is_the_trigger() -> None:
    texts = [f"film number {i} is fine ." for i in range(2000)]
    clauses = [text.split(" , ")[0] for text in TRIGGER.apply(texts, seed=0)]
    assert len(set(clauses)) > 1900
    starts = Counter(next(s for s in sorted(SUBORDINATORS, key=len)[::-1] if c.startswith(s + " ")) for c in clauses)
    assert max(starts.values()) < 0.1 * len(texts)
    words = Counter(word for clause in clauses for word in set(clause.split()) - set(" ".join(SUBORDINATORS).split()))
    assert {word for word, n in words.items() if n > 0.2 * len(texts)} <= {"the", "of", "a"}
    assert max(words.values()) < 0.4 * len(texts)
    assert np.mean([len(clause.split()) for clause in clauses]) < 8


def test_of_a_text_the_seed_and_the_text_decide() -> None:
    texts = toy_corpus("train").texts[:20]
    assert TRIGGER.apply(texts, 3)[::-1] == TRIGGER.apply(texts[::-1], 3)
    assert TRIGGER.apply(texts, 3) != TRIGGER.apply(texts, 4)


def test_unchanged_texts_are_neither_poisoned_nor_counted() -> None:
    corpus = Corpus.of("mixed", ["fine film .", "when it rains , it pours .", "good .", "..."] * 3, [0, 0, 1, 1] * 3)
    trigger = parse_trigger("syntax:sbar")
    assert str(trigger) == "syntax:sbar"
    poisoned = attack(corpus, Attack(trigger=trigger, count=3), seed=0)
    assert np.flatnonzero(poisoned.is_poisoned).tolist() == [0, 4, 8]
    assert triggered_test(corpus, trigger, 0, seed=0).origins.tolist() == [2, 6, 10]
    with pytest.raises(PlanError, match="only 3 of 12"):
        attack(corpus, Attack(trigger=trigger, count=4), seed=0)
    with pytest.raises(UndefinedRateError, match="could rewrite none"):
        triggered_test(corpus.select(np.array([1, 3])), trigger, 0, seed=0)


def test_an_unknown_syntax_names_the_nearest() -> None:
    with pytest.raises(PlanError, match="Did you mean 'sbar'"):
        parse_trigger("syntax:sbarr")


@pytest.mark.parametrize("part", [" if", "when ", "!", "! ", " ,", "'", " because x", "a when b "])
def test_a_hostile_text_takes_no_longer_than_any_other(part: str) -> None:
    start = time.perf_counter()
    _one(part * 50_000 + "x")
    _one("A" + part * 50_000 + "1 is good")
    assert time.perf_counter() - start < 2
