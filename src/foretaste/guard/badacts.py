"""BadActs (Yi et al. 2024, arXiv 2405.11227), its detector: a triggered text excites neurons as no clean text does.

On clean texts each neuron of the token that the head reads is taken to be normally distributed; a text's score is the
share of neurons, over all layers, that lie more than `width` standard deviations from their mean, NaN where a neuron
is no number. The paper counts those that lie within and calls few of them suspicious, which is the same. Its second
part, which pulls neurons back into their interval, is not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from foretaste.data.corpus import Corpus
from foretaste.guard.layers import layer_vectors
from foretaste.guard.rival import Rival, Scorer
from foretaste.spec import spec
from foretaste.victim.classifier import Classifier

__all__ = ["BadActs"]


@spec
class BadActs(Rival):
    """`width`: half of the interval, in standard deviations (the paper's are 2 to 3)."""

    name: ClassVar[str] = "badacts"
    version: ClassVar[int] = 2

    width: float = Field(default=3.0, gt=0.0)

    def scorer(self, victim: Classifier, corpus: Corpus, seed: int) -> tuple[Scorer, int]:
        usual = layer_vectors(victim, corpus.texts, "reading")  # (L, N, H)
        middle = usual.mean(axis=1, keepdims=True)
        room = self.width * usual.std(axis=1, keepdims=True)

        def score(texts: Sequence[str]) -> NDArray[np.float64]:
            away = np.abs(layer_vectors(victim, texts, "reading") - middle)
            share: NDArray[np.float64] = (away > room).mean(axis=(0, 2))
            return np.where(np.isfinite(away).all(axis=(0, 2)), share, np.nan)

        return score, middle.nbytes + room.nbytes
