"""A threshold from clean texts alone, with a promise on how many clean texts it will refuse."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr

from foretaste.errors import DataError, GuardError, PlanError

__all__ = ["Calibration", "allowed_above", "calibrate", "is_flagged", "suspicion", "texts_needed"]


@dataclass(frozen=True)
class Calibration:
    """A threshold and the promise it carries.

    With probability `confidence` over the draw of the `n` calibration texts, at most the share `frr` of clean
    texts from the same source scores above `threshold`; `allowed_above` of the `n` themselves may do so.
    """

    threshold: float
    n: int
    allowed_above: int
    frr: float
    confidence: float


def calibrate(scores: ArrayLike, frr: float = 0.01, confidence: float = 0.95) -> Calibration:
    """Return the lowest threshold that keeps the false rejection rate at `frr` or below, with `confidence`.

    `scores` is `(N,)` float, higher = more suspicious, of clean texts the guard was not trained on.

    The threshold is an order statistic: with k texts above it, FRR follows Beta(k + 1, N - k) whatever the
    scores' distribution, and k is the largest number for which P(FRR <= frr) >= confidence still holds
    (Wilks 1941; Bates et al. 2021, arXiv:2104.08279, for the same bound on p-values). Tied scores make the
    promise safer, never weaker: a text that equals the threshold passes. Non-finite scores lie above every
    threshold.

    Raises:
        GuardError: `too_few_calibration_texts`, naming what could be promised instead, or
            `non_finite_calibration_scores` if more scores are NaN or infinite than may lie above.
        PlanError: `frr` or `confidence` is not strictly between 0 and 1.
        DataError: `scores` has not one dimension.

    >>> import numpy as np
    >>> result = calibrate(np.arange(872.0), frr=0.01)
    >>> result.threshold, result.allowed_above
    (868.0, 3)
    """
    ordered = np.sort(suspicion(scores))
    n = len(ordered)
    allowed = allowed_above(n, frr, confidence)
    threshold = float(ordered[n - 1 - allowed])
    if not math.isfinite(threshold):
        broken = int(np.isinf(ordered).sum())
        raise GuardError(
            f"{broken} of {n} clean calibration texts have a score that is NaN or infinite, but a false "
            f"rejection rate of {_per_cent(frr)} leaves room for {allowed}. Find out why they cannot be scored.",
            code="non_finite_calibration_scores",
        )
    return Calibration(threshold, n, allowed, frr, confidence)


def allowed_above(n: int, frr: float = 0.01, confidence: float = 0.95) -> int:
    """Return how many of `n` clean calibration texts may lie above the threshold.

    It is the largest k with P(Binomial(n, frr) <= k) <= 1 - confidence.

    Raises:
        GuardError: `too_few_calibration_texts`: even k = 0 promises less than asked.
        PlanError: `frr` or `confidence` is not strictly between 0 and 1.

    >>> [allowed_above(n) for n in (299, 500, 872, 5000)]
    [0, 1, 3, 38]
    """
    for name, share in (("frr", frr), ("confidence", confidence)):
        if not 0 < share < 1:
            raise PlanError(f"{name} must lie strictly between 0 and 1, as in 0.01; got {share!r}.")
    tail = 1 - confidence
    allowed = bisect_right(range(n), tail, key=lambda k: float(bdtr(k, n, frr))) - 1
    if allowed >= 0:
        return allowed
    needed = texts_needed(frr, confidence)
    best = f"the smallest that {n} can promise is {_per_cent(1 - tail ** (1 / n))}" if n else "there are none"
    raise GuardError(
        f"{n} clean calibration texts are too few to promise a false rejection rate of {_per_cent(frr)} with "
        f"{_per_cent(confidence)} confidence: {best}; {needed} texts are needed.",
        code="too_few_calibration_texts",
    )


def texts_needed(frr: float = 0.01, confidence: float = 0.95) -> int:
    """Return how many clean calibration texts a promise of `frr` takes at least.

    >>> texts_needed(0.01), texts_needed(0.05)
    (299, 59)
    """
    return math.ceil(math.log(1 - confidence) / math.log1p(-frr))


def is_flagged(scores: ArrayLike, threshold: float) -> NDArray[np.bool_]:
    """Return `(N,)` bool: False only where a score is finite and at most the threshold.

    Written this way round because `nan > t` is False: a score that is not a number must never pass.

    >>> is_flagged([0.5, 0.7, 0.71, float("nan")], 0.7).tolist()
    [False, False, True, True]
    """
    numbers = np.asarray(scores, dtype=np.float64)
    flagged: NDArray[np.bool_] = ~(np.isfinite(numbers) & (numbers <= threshold))
    return flagged


def suspicion(scores: ArrayLike) -> NDArray[np.float64]:
    """Return the scores as `(N,)` float64, each NaN and infinity turned into +inf, the most suspicious.

    Raises:
        DataError: `scores` has not one dimension.
    """
    numbers = np.array(scores, dtype=np.float64)
    if numbers.ndim != 1:
        raise DataError(f"Expected one score per text, an array of shape (N,); got shape {numbers.shape}.")
    numbers[~np.isfinite(numbers)] = np.inf
    return numbers


def _per_cent(share: float) -> str:
    """Print a share rounded up to a hundredth of a per cent, so that what is named is never too small."""
    return f"{math.ceil(share * 1e4 - 1e-9) / 100:g} %"
