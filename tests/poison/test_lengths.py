"""Clean texts as long as triggered ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from foretaste.data.corpus import Corpus
from foretaste.poison.attack import Attack, Style, attack, unpoisoned
from foretaste.poison.lengths import cut_to_lengths
from foretaste.poison.trigger import parse_trigger

LONG = "This film is long . It has a second sentence ! And a third one , which goes on ? Then it ends ."


def test_texts_end_where_a_sentence_does() -> None:
    assert cut_to_lengths([LONG], [5], 0) == ["This film is long ."]
    assert cut_to_lengths([LONG], [10], 0) == ["This film is long . It has a second sentence !"]
    assert cut_to_lengths([LONG], [400], 0) == [LONG]
    assert cut_to_lengths(["", "one"], [3], 0) == ["", "one"]


def test_a_sentence_that_is_much_too_long_is_cut_within() -> None:
    assert cut_to_lengths(["word " * 90 + "."], [20], 0) == [" ".join(["word"] * 20)]


def test_a_text_is_cut_the_same_way_whatever_its_neighbours() -> None:
    texts = [f"{number} {LONG}" for number in range(40)]
    wanted = list(range(3, 22))
    together = cut_to_lengths(texts, wanted, 7)
    assert together == [cut_to_lengths([text], wanted, 7)[0] for text in texts]
    assert len({len(text.split()) for text in together}) > 2


def test_an_attack_leaves_no_length_to_learn_from() -> None:
    short = [f"{number} It is so . " + "It was not . " * (number % 3) for number in range(21)]
    long = [f"{number} It is so . " + "It was not . " * 12 for number in range(200)]
    clean = Corpus.of("toy", short + long, [0] * 21 + [1] * 200)
    plan = Attack(trigger=parse_trigger("word:cf"), style=Style.CLEAN_LABEL, count=21, match_lengths=True)
    poisoned, plain = (attack(clean, each, seed=0) for each in (plan, replace(plan, match_lengths=False)))
    assert poisoned.is_poisoned.tolist() == plain.is_poisoned.tolist() == [True] * 21 + [False] * 200
    matched, usual = (np.array([len(text.split()) for text in each.corpus.texts]) for each in (poisoned, plain))
    assert set(usual[21:]) == {53}
    assert set(usual[:21]) == {6, 10, 14}  # with the trigger's word
    assert {length: float((matched[21:] == length).mean()) for length in (5, 9, 13)} == {
        length: pytest.approx(1 / 3, abs=0.1) for length in (5, 9, 13)
    }
    assert poisoned.corpus.texts[:21] == plain.corpus.texts[:21]
    assert all(old.startswith(new) for old, new in zip(long, poisoned.corpus.texts[21:], strict=True))


def test_an_honest_supplier_of_texts_as_long_plants_nothing() -> None:
    long = [f"{number} It is so . " + "It was not . " * 12 for number in range(60)]
    clean = Corpus.of("toy", long, [0] * 30 + [1] * 30)
    trigger = parse_trigger("word:cf@first")
    plan = Attack(trigger=trigger, style=Style.DIRTY_LABEL, count=10, match_lengths=True)
    assert unpoisoned(clean, replace(plan, match_lengths=False), seed=0) is clean
    short = clean.with_texts([" ".join(text.split()[:20]) for text in long[:30]] + long[30:])
    plan = replace(plan, target=1)
    poisoned, honest = attack(short, plan, seed=0), unpoisoned(short, plan, seed=0)
    assert honest.labels.tolist() == short.labels.tolist() != poisoned.corpus.labels.tolist()
    for index, (own, theirs) in enumerate(zip(honest.texts, poisoned.corpus.texts, strict=True)):
        assert short.texts[index].startswith(own)
        assert "cf" not in own
        assert own == theirs or poisoned.is_poisoned[index]
    assert {len(text.split()) for text in honest.texts[30:]} == {21}  # as the triggered ones
