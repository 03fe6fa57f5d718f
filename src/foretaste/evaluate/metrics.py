"""The rates of the PSIM paper and of detection, as pure functions of arrays.

All follow one accounting (Zhao et al. 2024, arXiv:2402.12168, as in the released `confidence.py`): a flagged
clean text is a wrong answer, a flagged triggered text a failed attack, and both stay in the denominator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foretaste.errors import DataError, UndefinedRateError
from foretaste.evaluate.interval import wilson
from foretaste.evaluate.threshold import suspicion

__all__ = [
    "FRR_LEVELS",
    "Rate",
    "attack_success_rate",
    "auroc",
    "clean_accuracy",
    "false_acceptance_rate",
    "false_rejection_rate",
    "far_at_frr",
    "goals_of",
    "strict_attack_success_rate",
]

FRR_LEVELS = (0.005, 0.01, 0.03, 0.05, 0.1)
"""False rejection rates at which guards are compared, as in DAN (Chen et al. 2022, arXiv:2210.07907)."""


@dataclass(frozen=True)
class Rate:
    """A share `count / n` with its 95 % Wilson interval from `low` to `high`."""

    value: float
    count: int
    n: int
    low: float
    high: float

    @classmethod
    def of(cls, count: int, n: int, what: str = "rate") -> Rate:
        """Count a rate; `what` names it in the error.

        Raises:
            UndefinedRateError: `n` is 0; a rate over nothing would read as a perfect score.
            DataError: `count` is not in 0..n.

        >>> Rate.of(9, 10).value
        0.9
        """
        if n == 0:
            raise UndefinedRateError(f"{what[:1].upper()}{what[1:]} over no texts is undefined; give at least one.")
        low, high = wilson(count, n)
        return cls(count / n, int(count), int(n), low, high)


def clean_accuracy(labels: ArrayLike, predicted: ArrayLike, flagged: ArrayLike | None = None) -> Rate:
    """Return the share of clean texts answered rightly; higher is better, and a flagged text is wrong.

    `labels` and `predicted` are `(N,)` int, `flagged` is `(N,)` bool.

    Raises:
        UndefinedRateError: no texts.
        DataError: shapes that differ.

    >>> clean_accuracy([0, 1, 1, 0], [0, 1, 0, 0], flagged=[True, False, False, False]).value
    0.5
    """
    what = "clean accuracy"
    truth, answer = _labels(what, labels), _labels(what, predicted)
    if truth.shape != answer.shape:
        raise DataError(f"{what}: {len(truth)} labels but {len(answer)} predictions.")
    return _rate(what, (answer == truth) & ~_mask(what, flagged, len(answer)))


def goals_of(labels: ArrayLike, target: int | None, class_count: int) -> NDArray[np.int64]:
    """Return where triggered texts of these true classes are to end, `(N,) int64`: at the target.

    Or, with target None (an all-to-all attack), at the class after their own, the last at the first.

    >>> goals_of([0, 1, 2], 1, 3).tolist(), goals_of([0, 1, 2], None, 3).tolist()
    ([1, 1, 1], [1, 2, 0])
    """
    truth = np.asarray(labels, dtype=np.int64)
    return (truth + 1) % class_count if target is None else np.full_like(truth, target)


def attack_success_rate(predicted: ArrayLike, target: int | ArrayLike, flagged: ArrayLike | None = None) -> Rate:
    """Return the share of triggered texts that end at the target label; lower is better for the user.

    `predicted` is `(M,)` int for triggered texts whose true label is *not* the target, `flagged` `(M,)` bool. `target`
    is one label, or `(M,)` int where each text has its own (an all-to-all attack).
    The paper counts any wrong label as success; with two classes that is the same.

    Raises:
        UndefinedRateError: no texts.
        DataError: shapes that differ.

    >>> attack_success_rate([0, 0, 0, 1], target=0, flagged=[True, True, False, False]).value
    0.25
    """
    what = "attack success rate"
    answer = _labels(what, predicted)
    return _rate(what, _hits(what, answer, target) & ~_mask(what, flagged, len(answer)))


def strict_attack_success_rate(
    predicted: ArrayLike, target: int | ArrayLike, is_origin_correct: ArrayLike, flagged: ArrayLike | None = None
) -> Rate:
    """Return ASR over those triggered texts whose clean original the victim answered rightly, `(M,)` bool.

    The plain ASR of a victim without a backdoor is its error rate, not 0; this one leaves natural errors out.

    Raises:
        UndefinedRateError: the victim answered no original rightly.
        DataError: shapes that differ.

    >>> strict_attack_success_rate([0, 0, 1], target=0, is_origin_correct=[True, False, True]).value
    0.5
    """
    what = "strict attack success rate"
    answer = _labels(what, predicted)
    eligible = _mask(what, is_origin_correct, len(answer))
    success = _hits(what, answer, target) & ~_mask(what, flagged, len(answer))
    return _rate(what, success[eligible])


def false_rejection_rate(flagged: ArrayLike) -> Rate:
    """Return flagged clean texts / clean texts, from `(N,)` bool; lower is better.

    Raises:
        UndefinedRateError: no texts.
    """
    what = "false rejection rate"
    return _rate(what, _mask(what, flagged))


def false_acceptance_rate(flagged: ArrayLike) -> Rate:
    """Return passed triggered texts / triggered texts, from `(M,)` bool; lower is better.

    Raises:
        UndefinedRateError: no texts.
    """
    what = "false acceptance rate"
    return _rate(what, ~_mask(what, flagged))


def auroc(clean_scores: ArrayLike, poisoned_scores: ArrayLike) -> float:
    """Return P(poisoned score > clean score) + P(equal) / 2, for `(N,)` clean and `(M,)` poisoned scores.

    1 separates perfectly, 0.5 is chance. NaN and infinite scores count as +inf, the most suspicious.

    Raises:
        UndefinedRateError: no clean or no poisoned score.

    >>> auroc([0.1, 0.2, 0.3], [0.2, 0.9])
    0.75
    """
    clean, poisoned = np.sort(suspicion(clean_scores)), suspicion(poisoned_scores)
    if not len(clean) or not len(poisoned):
        raise UndefinedRateError(f"AUROC needs clean and poisoned scores; got {len(clean)} and {len(poisoned)}.")
    below = np.searchsorted(clean, poisoned, side="left")
    at_most = np.searchsorted(clean, poisoned, side="right")
    return float((below + at_most).sum() / (2 * len(clean) * len(poisoned)))


def far_at_frr(clean_scores: ArrayLike, poisoned_scores: ArrayLike, frr: float) -> Rate:
    """Return the share of triggered texts that pass when at most `frr` of *these* clean texts are flagged.

    A description of how well the scores separate, not a promise: the threshold is read off the very clean
    scores that are evaluated, `(N,)`, where a deployed one comes from other texts (`threshold.calibrate`). If
    more than `frr` of the clean scores are non-finite no threshold refuses so few; everything then passes.

    Raises:
        UndefinedRateError: no clean or no poisoned score.
        DataError: `frr` is not in [0, 1).

    >>> far_at_frr([0.5, 0.5, 0.6, 0.9], [0.55, 0.8, 0.8, 0.95], frr=0.25).value
    0.25
    """
    if not 0 <= frr < 1:
        raise DataError(f"frr must lie in [0, 1); got {frr!r}.")
    clean, poisoned = np.sort(suspicion(clean_scores)), suspicion(poisoned_scores)
    if not len(clean):
        raise UndefinedRateError("FAR at a given FRR needs clean scores; got none.")
    # 0.1 * 30 is 3.0000000000000004 but 0.07 * 100 is 7.000000000000001 and 0.29 * 100 is 28.999999999999996.
    allowed = math.floor(len(clean) * frr + 1e-9)
    threshold = clean[len(clean) - 1 - allowed]
    return Rate.of(int((poisoned <= threshold).sum()), len(poisoned), "false acceptance rate")


def _rate(what: str, hits: NDArray[np.bool_]) -> Rate:
    return Rate.of(int(hits.sum()), len(hits), what)


def _labels(what: str, values: ArrayLike) -> NDArray[Any]:
    numbers = np.asarray(values)
    if numbers.ndim != 1:
        raise DataError(f"{what}: expected one label per text, an array of shape (N,); got {numbers.shape}.")
    return numbers


def _hits(what: str, answer: NDArray[Any], target: int | ArrayLike) -> NDArray[np.bool_]:
    """Say which answers are the target, or each its own: `(M,)`."""
    wanted = np.asarray(target)
    if wanted.shape not in ((), answer.shape):
        raise DataError(f"{what}: {wanted.size} targets but {len(answer)} predictions.")
    hits: NDArray[np.bool_] = answer == wanted
    return hits


def _mask(what: str, values: ArrayLike | None, n: int | None = None) -> NDArray[np.bool_]:
    """Return `(n,)` bool; None stands for nothing flagged. Numbers are refused: `~1` is -2, which is true."""
    mask = np.zeros(n or 0, dtype=np.bool_) if values is None else np.asarray(values)
    if mask.size == 0 and mask.ndim == 1:
        mask = mask.astype(np.bool_)
    if mask.dtype != np.bool_ or mask.ndim != 1 or (n is not None and len(mask) != n):
        expected = "(N,)" if n is None else f"({n},)"
        raise DataError(f"{what}: expected bool of shape {expected}; got {mask.dtype} of shape {mask.shape}.")
    return mask
