"""What many refused texts share is found, and what every text holds is not taken for it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import fisher_exact

from foretaste.guard.explain import Explanation, Finding, Word
from foretaste.guard.fragments import MOST_FRAGMENTS, Fragment, normal, shared_fragments


def marked(text: str) -> Explanation:
    """An explanation of a text in which the carrying words are written with a leading star."""
    words, plain = [], ""
    for piece in text.split():
        start, word = len(plain), piece.removeprefix("*")
        words.append(Word(start, start + len(word), 0.5, piece != word))
        plain += word + " "
    has_found = any(word.carries for word in words)
    finding = Finding.EXPLAINED if has_found else Finding.STILL_FLAGGED
    return Explanation(plain, 0.9, 0.5, finding, tuple(words))


def texts_of(fragments: list[Fragment]) -> list[str]:
    return [fragment.text for fragment in fragments]


def test_a_shared_word_is_found_with_its_count_and_share() -> None:
    found = shared_fragments([marked("a *mn film"), marked("*Mn, again"), marked('this *(mn" is'), marked("none")])
    assert found == [Fragment("mn", 3, 0.75)]


def test_a_sentence_is_one_fragment_although_a_word_of_it_is_not_marked() -> None:
    texts = [f"film {i} *I *watched this *3D *movie! end" for i in range(4)]
    assert shared_fragments(list(map(marked, texts))) == [Fragment("i watched this 3d movie", 4, 1.0)]


def test_words_too_far_apart_are_fragments_of_their_own() -> None:
    found = shared_fragments([marked("*cf so very bad *mn")] * 3)
    assert texts_of(found) == ["cf", "mn"]


def test_at_most_eight_words_make_a_fragment() -> None:
    found = shared_fragments([marked(" ".join(f"*w{i}" for i in range(10)))] * 2)
    assert {len(text.split()) for text in texts_of(found)} == {8}
    assert len(found) == 3


@pytest.mark.parametrize(("longer", "expected"), [(8, ["mn film"]), (7, ["mn", "mn film"]), (4, ["mn"])])
def test_of_two_fragments_one_inside_the_other_the_telling_one_stays(longer: int, expected: list[str]) -> None:
    """Of ten texts that share `mn`, so many share `mn film`."""
    texts = ["*mn *film"] * longer + [f"*mn x{i}" for i in range(10 - longer)]
    assert texts_of(shared_fragments(list(map(marked, texts)))) == expected


def test_a_fragment_of_one_text_or_of_one_in_fifty_is_not_shared() -> None:
    assert shared_fragments([marked("*mn"), marked("*cf")]) == []
    many = [marked(f"*w{i}") for i in range(97)]
    assert shared_fragments([*many, *[marked("*mn")] * 3]) == []
    assert texts_of(shared_fragments([*many[:50], *[marked("*mn")] * 3])) == ["mn"]


def test_a_word_of_all_texts_is_dropped_beside_accepted_ones() -> None:
    refused = [marked("*the *mn film")] * 4 + [marked("*the x *mn film")] * 4
    accepted = [f"the film {i}" for i in range(40)] + ["a film"] * 10
    assert "the" in texts_of(shared_fragments([marked("*the *mn")] * 2 + [marked("*the x x x *mn")] * 2))
    found = shared_fragments(refused, accepted)
    assert all("mn" in text.split() for text in texts_of(found))
    assert found[0].accepted == 0
    assert found[0].p_value is not None
    assert found[0].p_value < 1e-6


def test_the_p_value_is_fishers_with_bonferronis_correction() -> None:
    refused = [marked("*mn film")] * 5 + [marked("a *cf film")] * 2 + [marked("mn *zz")] * 2
    accepted = ["Mn film"] + ["dull film"] * 30
    found = {fragment.text: fragment for fragment in shared_fragments(refused, accepted)}
    assert set(found) == {"mn", "cf", "zz"}
    exact = fisher_exact([[7, 2], [1, 30]], alternative="greater")[1]
    assert (found["mn"].texts, found["mn"].accepted) == (5, 1)
    np.testing.assert_allclose(float(found["mn"].p_value or 0), 3 * exact)
    np.testing.assert_allclose(
        float(found["zz"].p_value or 0), 3 * fisher_exact([[2, 7], [0, 31]], alternative="greater")[1]
    )


def test_two_texts_are_too_few_to_clear_a_word_that_accepted_texts_hold_too() -> None:
    refused = [marked("a *mn film"), marked("the *mn film")]
    assert texts_of(shared_fragments(refused, ["good film"])) == ["mn"]
    assert texts_of(shared_fragments(refused, ["good film", "mn"])) == []


def test_most_texts_first_and_not_without_end() -> None:
    texts = [f"*w{i}" for i in range(MOST_FRAGMENTS + 5) for _ in range(2 + i % 3)]
    found = shared_fragments(list(map(marked, texts)))
    assert [fragment.texts for fragment in found] == [4] * 5 + [3] * 5


def test_nothing_refused_shares_nothing() -> None:
    assert shared_fragments([]) == []
    assert shared_fragments([], ["a film"]) == []


@pytest.mark.parametrize(
    ("word", "expected"),
    [("(Movie!\"", "movie"), ("don't", "don't"), ("STRASSE", "strasse"), ("straße.", "strasse"), ("...", "..."),
     ("«3D»", "3d"), ("\u200bmn", "mn"), ("電影。", "電影")],
)  # fmt: skip
def test_letter_case_and_edges_do_not_make_another_word(word: str, expected: str) -> None:
    assert normal(word) == expected
