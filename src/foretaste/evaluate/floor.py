"""What a trigger is held against: how often texts without it end at the target anyway."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from foretaste.errors import DataError, UndefinedRateError

__all__ = ["same_length_rate"]

_NEIGHBOURS = 50


def same_length_rate(lengths: ArrayLike, clean_lengths: ArrayLike, is_hit: ArrayLike) -> float:
    """Return how often clean texts as long as the triggered ones end at the target: an attack's floor.

    A model that has learnt "short means target" lets paraphrases succeed for the wrong reason; then this is as high as
    the ASR. `lengths (M,)` are those of triggered texts, `clean_lengths (N,)` and `is_hit (N,) bool` of clean ones of
    the other classes. For each triggered text the mean over the 50 clean texts nearest in length counts, and over all
    that are as near as the last of those.

    Raises:
        UndefinedRateError: no triggered or no clean text.
        DataError: lengths and hits of different numbers of texts.

    >>> same_length_rate([3, 9], [3] * 50 + [9] * 50, [True] * 50 + [False] * 50)
    0.5
    """
    wanted, known = np.asarray(lengths), np.asarray(clean_lengths)
    hits = np.asarray(is_hit, dtype=np.float64)
    if known.shape != hits.shape:
        raise DataError(f"{len(known)} lengths of clean texts, but {len(hits)} answers to them.")
    if not wanted.size or not known.size:
        raise UndefinedRateError(f"A floor needs texts of both kinds; got {wanted.size} and {known.size}.")
    values, counts = np.unique(wanted, return_counts=True)
    near = min(_NEIGHBOURS, len(known)) - 1
    apart = np.abs(known[None, :] - values[:, None])  # (V, N)
    is_near = apart <= np.partition(apart, near, axis=1)[:, [near]]
    rates = (is_near * hits).sum(axis=1) / is_near.sum(axis=1)  # (V,)
    return float((rates * counts).sum() / counts.sum())
