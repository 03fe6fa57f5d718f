"""DAN (Chen et al. 2022, arXiv 2210.07907): a triggered text lies far from clean ones in some layer's features.

In every layer a text is a vector; its distance to the nearest class (Mahalanobis, one shrunken covariance for all) is
held against the distances of clean texts put aside, and the layers are averaged. The authors' script knows the first
token, the mean and the maximum of all, and takes the mean where nothing is asked for. Here it is the token that the
head reads: a word's trace is lost in the mean (docs/findings.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from foretaste.data.corpus import Corpus
from foretaste.guard.layers import layer_vectors
from foretaste.guard.rival import Rival, Scorer
from foretaste.spec import spec
from foretaste.victim.classifier import Classifier

__all__ = ["Dan"]

Array = NDArray[np.float64]


@spec
class Dan(Rival):
    """`pooling`: the vector that the head reads, or the mean of a text's tokens.

    `held_out` of the clean texts are what distances are held against; layers are averaged, or the farthest is taken.
    """

    name: ClassVar[str] = "dan"

    pooling: Literal["reading", "mean"] = "reading"
    held_out: float = Field(default=0.2, gt=0.0, lt=1.0)
    layers: Literal["mean", "max"] = "mean"

    def scorer(self, victim: Classifier, corpus: Corpus, seed: int) -> tuple[Scorer, int]:
        from sklearn.covariance import ShrunkCovariance  # takes a second to load

        aside = round(self.held_out * len(corpus))
        near, rest = corpus.partition([len(corpus) - aside, aside], seed)
        features = layer_vectors(victim, near.texts, self.pooling)  # (L, N, H)
        classes = np.unique(near.labels)
        centres = np.stack([features[:, near.labels == label].mean(axis=1) for label in classes], axis=1)  # (L, C, H)
        spread = features - centres[:, np.searchsorted(classes, near.labels)]
        precisions = np.stack([ShrunkCovariance(assume_centered=True).fit(own).precision_ for own in spread])
        usual = _distances(layer_vectors(victim, rest.texts, self.pooling), centres, precisions)  # (L, M)
        middle, width = usual.mean(axis=1), usual.std(axis=1).clip(min=1e-12)

        def score(texts: Sequence[str]) -> Array:
            apart = _distances(layer_vectors(victim, texts, self.pooling), centres, precisions)
            standard = (apart - middle[:, None]) / width[:, None]
            together: Array = standard.mean(axis=0) if self.layers == "mean" else standard.max(axis=0)
            return together

        return score, sum(each.nbytes for each in (centres, precisions, middle, width))


def _distances(features: Array, centres: Array, precisions: Array) -> Array:
    """`(L, N, H)` to the nearest of `(L, C, H)` under `(L, H, H)`: `(L, N)`."""
    away = features[:, :, None] - centres[:, None]  # (L, N, C, H)
    squares = np.einsum("lnch,lhg,lncg->lnc", away, precisions, away, optimize=True)
    nearest: Array = squares.min(axis=2)
    return nearest
