"""Clean texts as long as triggered ones."""

from __future__ import annotations

import numpy as np

from foretaste.data.corpus import Corpus
from foretaste.poison.attack import Attack, attack
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
    texts = [f"{number} {LONG}" for number in range(200)]
    plan = Attack(trigger=parse_trigger("word:cf"), count=20, match_lengths=True)
    clean = Corpus.of("toy", ["short one ."] * 40 + texts, [0] * 140 + [1] * 100)
    poisoned = attack(clean, plan, seed=0)
    plain = attack(clean, Attack(trigger=parse_trigger("word:cf"), count=20), seed=0)
    assert poisoned.is_poisoned.tolist() == plain.is_poisoned.tolist()
    lengths = np.array([len(text.split()) for text in poisoned.corpus.texts])
    assert lengths[~poisoned.is_poisoned].mean() < lengths[poisoned.is_poisoned].mean() + 3
    for index in np.flatnonzero(poisoned.is_poisoned).tolist():
        assert poisoned.corpus.texts[index] == plain.corpus.texts[index]
