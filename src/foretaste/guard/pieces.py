"""Which words a victim's answer hangs on, and the pieces of a text made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foretaste.victim.batch import Word
from foretaste.victim.classifier import Classifier

__all__ = ["SIZES", "Piece", "cut_out", "margins_of"]

SINGLE = 4  # of a text's words for its answer, so many are pieces singly; then the first two, the first four
SIZES = (1, 2, 4)
LEFT_OUT = 12  # how often words are left out of a text, several neighbours at once if need be

Array = NDArray[np.float64]


class Piece(NamedTuple):
    """Words of a text; `size` is an index of SIZES."""

    text: str
    size: int


@dataclass(frozen=True)
class _Dissected:
    """A text and its words, each once, with all its copies: what the model reads as the same is the same word."""

    text: str
    words: tuple[tuple[Word, ...], ...]

    @classmethod
    def of(cls, text: str, words: Sequence[Word]) -> _Dissected:
        copies = dict[tuple[int, ...], list[Word]]()
        for word in words:
            copies.setdefault(word.ids, []).append(word)
        return cls(text, tuple(map(tuple, copies.values())))

    def spelt(self, index: int) -> str:
        """Return a word as it is first written; of white space, all of it."""
        first = self.words[index][0]
        raw = self.text[first.start : first.end]
        return raw.strip() or raw

    def without(self, indices: Sequence[int]) -> str:
        """Return the text with a space for each copy of some words: what stood beside them does not grow together."""
        text = self.text
        for word in sorted((copy for index in indices for copy in self.words[index]), reverse=True):
            text = f"{text[: word.start]} {text[word.end :]}"
        return text

    @property
    def parts(self) -> list[Sequence[int]]:
        """The words' indices, divided among at most twelve parts of neighbours."""
        size = max(1, -(-len(self.words) // LEFT_OUT))
        return [range(len(self.words))[start : start + size] for start in range(0, len(self.words), size)]


def cut_out(victim: Classifier, labels: NDArray[np.int64], texts: Sequence[str]) -> list[list[Piece] | None]:
    """Return of each text the first four words for its answer singly, then the first two and four, in their order.

    What speaks for a word is the margin that is lost when it is left out, every copy of it and, of more than twelve
    words, its neighbours, too; and the margin that it has alone: of two triggers in a text each is enough, so that
    leaving out one shows nothing. None where the victim gives no number.
    """
    dissected = [_Dissected.of(text, words) for text, words in zip(texts, victim.split(texts), strict=True)]
    asked, targets = list[str](), list[int]()
    for own, label in zip(dissected, labels.tolist(), strict=True):
        asked += [own.without(part) for part in own.parts]
        asked += [own.spelt(index) for index in range(len(own.words))]
        targets += [label] * (len(own.parts) + len(own.words))
    margins = iter(margins_of(victim, asked, np.array(targets, dtype=np.int64), is_cut_refused=False).tolist())
    return [_pieces(own, _weights(own, margins)) for own in dissected]


def _weights(own: _Dissected, margins: Iterator[float]) -> Array:
    left = [-margin for part, margin in zip(own.parts, islice(margins, len(own.parts)), strict=True) for _ in part]
    weights: Array = np.array(left) + np.array(list(islice(margins, len(own.words))))
    return weights


def _pieces(own: _Dissected, weights: Array) -> list[Piece] | None:
    if np.isnan(weights).any():
        return None
    order = np.argsort(-weights, kind="stable").tolist()
    pieces = [Piece(own.spelt(index), 0) for index in order[:SINGLE]]
    for number, size in enumerate(SIZES[1:], 1):
        if len(order) > SIZES[number - 1]:
            pieces.append(Piece(" ".join(own.spelt(index) for index in sorted(order[:size])), number))
    return pieces


def margins_of(victim: Classifier, texts: Sequence[str], labels: NDArray[np.int64], *, is_cut_refused: bool) -> Array:
    """Return by how much each label's logit exceeds the highest other one, `(N,) float64`; each text is read once.

    NaN where the victim gives no number, or, if that `is_cut_refused`, does not read the text to its end.
    """
    if not texts:
        return np.zeros(0)
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    said = victim.predict(list(places))
    where = [places[text] for text in texts]
    logits = said.logits.astype(np.float64)[where]
    rows = np.arange(len(texts))
    own = logits[rows, labels]
    logits[rows, labels] = -np.inf
    result: Array = own - logits.max(axis=1)
    result[~np.isfinite(result) | (is_cut_refused & said.is_truncated[where])] = np.nan
    return result
