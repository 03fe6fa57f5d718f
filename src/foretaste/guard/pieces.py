"""Which words a victim's answer hangs on, and the pieces of a text made of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foretaste.victim.classifier import Classifier

__all__ = ["SIZES", "Piece", "cut_out", "margins_of", "rank_words"]

SINGLE = 4  # of a text's words for its answer, so many are pieces singly; then the first two, the first four
SIZES = (1, 2, 4)
LEFT_OUT = 12  # how often words are left out of a text, several neighbours at once if need be

Array = NDArray[np.float64]


class Piece(NamedTuple):
    """Words of a text; `size` is an index of SIZES."""

    text: str
    size: int


def _words(text: str) -> dict[str, str]:
    """Return what white space separates, each word once, by its form without case, in order of first appearance."""
    found = dict[str, str]()
    for word in text.split():
        found.setdefault(word.casefold(), word)
    return found


def _without(text: str, keys: Collection[str]) -> str:
    return " ".join(word for word in text.split() if word.casefold() not in keys)


def rank_words(victim: Classifier, labels: NDArray[np.int64], texts: Sequence[str]) -> list[list[str]]:
    """Return the words of each text, the one that speaks most for the answer first.

    What speaks for a word is the margin that is lost when it is left out, every copy of it and its neighbours too where
    there are more than 12 words, and the margin that it has alone: of two triggers in a text each is enough, so that
    leaving out one shows nothing.
    """
    words = [_words(text) for text in texts]
    asked = list[str]()
    targets = list[int]()
    for text, own, label in zip(texts, words, labels.tolist(), strict=True):
        parts = _parts(list(own))
        asked += [*(_without(text, part) for part in parts), *own.values()]
        targets += [label] * (len(parts) + len(own))
    margins = iter(margins_of(victim, asked, np.array(targets, dtype=np.int64)).tolist())
    orders = []
    for own in words:
        parts = _parts(list(own))
        lost = [-margin for part, margin in zip(parts, islice(margins, len(parts)), strict=True) for _ in part]
        weight = np.array(lost) + list(islice(margins, len(own)))
        names = list(own.values())
        orders.append([names[i] for i in np.argsort(-weight, kind="stable")])
    return orders


def _parts(keys: Sequence[str]) -> list[Sequence[str]]:
    """Divide words among at most 12 parts of neighbours."""
    size = max(1, -(-len(keys) // LEFT_OUT))
    return [keys[start : start + size] for start in range(0, len(keys), size)]


def cut_out(text: str, decisive: Sequence[str]) -> list[Piece]:
    """Return the first four words for the answer singly, then the first two and four, in the order of the text."""
    place = {word: index for index, word in enumerate(_words(text).values())}
    pieces = [Piece(word, 0) for word in decisive[:SINGLE]]
    for number, size in enumerate(SIZES[1:], 1):
        if len(decisive) > SIZES[number - 1]:
            pieces.append(Piece(" ".join(sorted(decisive[:size], key=place.__getitem__)), number))
    return pieces


def margins_of(victim: Classifier, texts: Sequence[str], labels: NDArray[np.int64]) -> Array:
    """Return by how much each label's logit exceeds the highest other one, `(N,) float64`; each text is read once."""
    if not texts:
        return np.zeros(0)
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    logits = victim.predict(list(places)).logits.astype(np.float64)[[places[text] for text in texts]]
    rows = np.arange(len(texts))
    own = logits[rows, labels]
    logits[rows, labels] = -np.inf
    result: Array = own - logits.max(axis=1)
    result[~np.isfinite(result)] = np.nan
    return result
