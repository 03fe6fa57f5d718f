"""STRIP for text (Gao et al. 2019, arXiv 1902.06531; for text 1911.10312): a trigger survives what is done to a text.

Copies of a text get many of their words replaced by weighty words of clean texts. A clean text's answers then differ,
a triggered one's stay: their mean entropy is low. OpenBackdoor lays copies of different texts into one mean; here each
text has its own, and its copies depend on it and the seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import xlogy

from foretaste.data.corpus import Corpus
from foretaste.guard.rival import Rival, Scorer
from foretaste.seeds import fingerprint, generator
from foretaste.spec import spec
from foretaste.victim.classifier import Classifier

__all__ = ["Strip"]

Array = NDArray[np.float64]


@spec
class Strip(Rival):
    """`copies` of each text, `share` of whose words are replaced by the weightiest (TF-IDF) of a clean text each.

    A clean text that has fewer distinct words replaces as many as it has: of SST-2's words at a share of 0.5 47 %.
    OpenBackdoor draws the places with repetition and so replaces fewer.
    """

    name: ClassVar[str] = "strip"

    copies: int = Field(default=20, gt=0)
    share: float = Field(default=0.5, gt=0.0, le=1.0)

    def scorer(self, victim: Classifier, corpus: Corpus, seed: int) -> tuple[Scorer, int]:
        weighty = _weighty(corpus.texts)

        def score(texts: Sequence[str]) -> Array:
            copies = [copy for text in texts for copy in self._copies(text, weighty, seed)]
            likely = victim.predict(copies).probabilities  # (N * R, C)
            entropy = -xlogy(likely, likely).sum(axis=1)
            mean = entropy.reshape(len(texts), self.copies).mean(axis=1)  # (N * R,) -> (N, R) -> (N,)
            highest: Array = np.log(likely.shape[1]) - mean
            return highest

        return score, sum(len(word.encode()) for words in weighty for word in words)

    def _copies(self, text: str, weighty: Sequence[Sequence[str]], seed: int) -> list[str]:
        draw = generator(seed, "strip", fingerprint(text))
        words, made = text.split(), []
        count = max(1, round(self.share * len(words)))
        for host in draw.integers(len(weighty), size=self.copies):
            changed = list(words)
            if changed:
                places = draw.permutation(len(changed))[:count]
                for place, word in zip(places.tolist(), weighty[host], strict=False):
                    changed[place] = word
            made.append(" ".join(changed) or text)
        return made


def _weighty(texts: Sequence[str]) -> list[list[str]]:
    """Each text's words, the weightiest first."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # takes a second to load

    vectors = TfidfVectorizer(token_pattern=r"\S+", lowercase=False)
    matrix = vectors.fit_transform(texts).tocsr()
    names = vectors.get_feature_names_out()
    rows = []
    for start, end in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        order = np.argsort(-matrix.data[start:end], kind="stable")
        rows.append([str(names[i]) for i in matrix.indices[start:end][order]])
    return rows
