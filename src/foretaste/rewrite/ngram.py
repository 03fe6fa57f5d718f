"""An n-gram language model of the clean training texts: what ONION asks where no causal model is at hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from nltk.lm import Vocabulary, WittenBellInterpolated
from nltk.lm.preprocessing import pad_both_ends
from nltk.util import everygrams
from numpy.typing import NDArray

from foretaste.errors import DataError

__all__ = ["NGramModel"]

Array = NDArray[np.float64]
_REMEMBERED = 1 << 18
_RARE = 2  # a word seen less often is read as unknown, so that there is a probability for unknown words


class NGramModel:
    """NLTK's interpolated Witten-Bell model of words between white space, in small letters.

    An unknown word shares the probability of all words that were seen once: without this a rare word, which is what
    ONION looks for, would be as likely as all of them together.
    """

    def __init__(self, texts: Iterable[str], order: int = 3) -> None:
        sentences = [list(pad_both_ends(text.lower().split(), n=order)) for text in texts]
        vocabulary = Vocabulary((word for words in sentences for word in words), unk_cutoff=_RARE)
        rare = sum(count < _RARE for count in vocabulary.counts.values())
        if not rare or len(vocabulary) < 5:
            raise DataError("An n-gram model needs texts of many words, some of them rare; these have none.")
        model: Any = WittenBellInterpolated(order, vocabulary=vocabulary)
        model.fit(list(everygrams(words, max_len=order)) for words in sentences)
        self._order, self._vocabulary = order, vocabulary
        self._unknown, self._share = vocabulary.unk_label, np.log(rare)

        @lru_cache(maxsize=_REMEMBERED)
        def log_likely(*gram: str) -> float:
            *context, word = gram
            while context and tuple(context) not in model.counts[len(context) + 1]:  # asking would add it
                del context[0]
            return float(np.log(model.unmasked_score(word, tuple(context))))

        self._log_likely: Any = log_likely

    def remember_nothing(self) -> None:
        """Ask NLTK about every n-gram anew, however often it was asked about it: a reference for measurements."""
        self._log_likely = self._log_likely.__wrapped__

    def perplexities(self, texts: Sequence[str]) -> Array:
        """Return the perplexity of each text, its end included, `(N,) float64`."""
        return np.array([np.exp(-np.mean(self._terms(self._known(text.split())))) for text in texts])

    def deletions(self, texts: Sequence[Sequence[str]]) -> list[Array]:
        """Return, for texts as words, the perplexity as they are and without each word, `(n + 1,) float64` each."""
        return [self._without_each(self._known(words)) for words in texts]

    def _without_each(self, words: list[str]) -> Array:
        terms, span, size = self._terms(words), self._order - 1, len(words)
        sums = np.concatenate([[0.0], np.cumsum(terms)])
        found = [-sums[-1] / len(terms)]
        for i in range(size):
            # Leaving out word i changes its own term and those of the `span` words after it, no other.
            end = min(size + 1, i + 1 + span)
            near = [*words[max(0, i - span) : i], *words[i + 1 : i + 1 + span]]
            changed = self._terms(near, before=max(0, span - i), has_end=end == size + 1)
            kept = min(i, span)
            found.append(-(sums[i] + sum(changed[kept:]) + sums[-1] - sums[end]) / max(1, len(terms) - 1))
        return np.exp(found)

    def _terms(self, words: Sequence[str], before: int | None = None, has_end: bool = True) -> list[float]:
        """Log probability of each word, and of the end; `before` start signs stand in front (None: as many as fit)."""
        span = self._order - 1
        start = span if before is None else before
        padded = ["<s>"] * start + list(words) + ["</s>"] * has_end
        terms = []
        for at in range(start, len(padded)):
            gram = padded[max(0, at - span) : at + 1]
            terms.append(self._log_likely(*gram) - (self._share if gram[-1] == self._unknown else 0.0))
        return terms

    def _known(self, words: Sequence[str]) -> list[str]:
        return [word.lower() if word.lower() in self._vocabulary else self._unknown for word in words]
