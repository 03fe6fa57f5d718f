"""How far a measured rate may lie from the true one."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv, ndtri

from foretaste.errors import DataError, UndefinedRateError
from foretaste.evaluate.threshold import suspicion
from foretaste.seeds import generator

__all__ = ["Interval", "auroc_interval", "clopper_pearson", "wilson"]


class Interval(NamedTuple):
    """Lower and upper end, both in [0, 1]."""

    low: float
    high: float


def wilson(count: int, n: int, confidence: float = 0.95) -> Interval:
    """Return the score interval of a proportion (Wilson 1927), which behaves well near 0 and 1.

    Raises:
        UndefinedRateError: `n` is 0.
        DataError: `count` is not in 0..n.

    >>> low, high = wilson(0, 909)
    >>> low, round(high, 4)
    (0.0, 0.0042)
    """
    _check(count, n)
    z = float(ndtri(0.5 + confidence / 2))
    share = count / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the exact value is 0 or 1; rounding would leave 1e-19 or 0.9999999999999999.
    low = 0.0 if count == 0 else max(0.0, centre - half)
    high = 1.0 if count == n else min(1.0, centre + half)
    return Interval(low, high)


def clopper_pearson(count: int, n: int, confidence: float = 0.95) -> Interval:
    """Return the exact interval of a proportion (Clopper and Pearson 1934), never narrower than promised.

    Raises:
        UndefinedRateError: `n` is 0.
        DataError: `count` is not in 0..n.

    >>> [round(end, 4) for end in clopper_pearson(0, 909)]
    [0.0, 0.004]
    """
    _check(count, n)
    tail = (1 - confidence) / 2
    low = 0.0 if count == 0 else float(betaincinv(count, n - count + 1, tail))
    high = 1.0 if count == n else float(betaincinv(count + 1, n - count, 1 - tail))
    return Interval(low, high)


def auroc_interval(
    clean_scores: ArrayLike,
    poisoned_scores: ArrayLike,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Return the percentile bootstrap interval of AUROC; clean `(N,)` and poisoned `(M,)` are drawn apart.

    Non-finite scores count as the most suspicious. When all resamples agree (perfect separation) the
    interval has no width, which a bootstrap cannot help.

    Raises:
        UndefinedRateError: no clean or no poisoned score.
    """
    clean, poisoned = suspicion(clean_scores), suspicion(poisoned_scores)
    n, m = len(clean), len(poisoned)
    if not n or not m:
        raise UndefinedRateError(f"AUROC needs clean and poisoned scores; got {n} and {m}.")
    values, places = np.unique(np.concatenate([clean, poisoned]), return_inverse=True)
    rng = generator(seed, "evaluate", "auroc")
    results = np.empty(resamples)
    for index in range(resamples):
        # Counts per distinct value, (U,): cheaper than sorting each resample anew.
        drawn_clean = np.bincount(places[rng.integers(n, size=n)], minlength=len(values))
        drawn_poisoned = np.bincount(places[n + rng.integers(m, size=m)], minlength=len(values))
        below = np.cumsum(drawn_clean) - drawn_clean / 2
        results[index] = drawn_poisoned @ below / (n * m)
    tail = (1 - confidence) / 2
    low, high = np.quantile(results, [tail, 1 - tail])
    return Interval(float(low), float(high))


def _check(count: int, n: int) -> None:
    if n == 0:
        raise UndefinedRateError("A rate over no cases has no value, and no interval.")
    if not 0 <= count <= n:
        raise DataError(f"A count lies between 0 and n; got {count} of {n}.")
