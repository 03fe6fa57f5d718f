"""What one evaluation found: the victim alone, and the victim behind a guard."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foretaste.errors import DataError, UndefinedRateError
from foretaste.evaluate.interval import Interval, auroc_interval
from foretaste.evaluate.metrics import (
    FRR_LEVELS,
    Rate,
    attack_success_rate,
    auroc,
    clean_accuracy,
    false_acceptance_rate,
    false_rejection_rate,
    far_at_frr,
    strict_attack_success_rate,
)
from foretaste.evaluate.threshold import is_flagged, suspicion

__all__ = ["Guarded", "Outcome", "Sweep", "measure", "sweep"]

_RATES = ("clean_accuracy", "attack_success_rate", "strict_attack_success_rate")
_GUARD_RATES = (*_RATES, "false_rejection_rate", "false_acceptance_rate")


@dataclass(frozen=True)
class Guarded:
    """The victim behind a guard at one threshold, and how well the guard's scores separate at any.

    `strict_attack_success_rate` is None where it is unknown or has no eligible text. `far_at_frr` maps a
    false rejection rate, read off the same clean texts, to the false acceptance rate there.
    """

    threshold: float
    clean_accuracy: Rate
    attack_success_rate: Rate
    strict_attack_success_rate: Rate | None
    false_rejection_rate: Rate
    false_acceptance_rate: Rate
    auroc: float
    auroc_interval: Interval
    far_at_frr: Mapping[float, Rate]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object: plain values, and under `intervals` count, n, low and high of each."""
        shares = {str(level): rate for level, rate in self.far_at_frr.items()}
        return {
            **{name: _value(getattr(self, name)) for name in _GUARD_RATES},
            "auroc": self.auroc,
            "far_at_frr": {level: rate.value for level, rate in shares.items()},
            "threshold": self.threshold,
            "intervals": {
                **{name: _interval(getattr(self, name)) for name in _GUARD_RATES},
                "auroc": {"low": self.auroc_interval.low, "high": self.auroc_interval.high},
                "far_at_frr": {level: _interval(rate) for level, rate in shares.items()},
            },
        }

    @classmethod
    def _from_json(cls, value: Mapping[str, Any]) -> Guarded:
        intervals = value["intervals"]
        return cls(
            threshold=float(value["threshold"]),
            clean_accuracy=_counted(intervals["clean_accuracy"]),
            attack_success_rate=_counted(intervals["attack_success_rate"]),
            strict_attack_success_rate=_maybe_counted(intervals["strict_attack_success_rate"]),
            false_rejection_rate=_counted(intervals["false_rejection_rate"]),
            false_acceptance_rate=_counted(intervals["false_acceptance_rate"]),
            auroc=float(value["auroc"]),
            auroc_interval=Interval(float(intervals["auroc"]["low"]), float(intervals["auroc"]["high"])),
            far_at_frr={float(level): _counted(rate) for level, rate in intervals["far_at_frr"].items()},
        )


@dataclass(frozen=True)
class Outcome:
    """Clean accuracy and attack success rate of a victim, without and (if there is a guard) with the guard.

    `target` is None if every class has its own, `strict_attack_success_rate` if unknown or without an eligible text.
    """

    target: int | None
    clean_accuracy: Rate
    attack_success_rate: Rate
    strict_attack_success_rate: Rate | None
    guarded: Guarded | None

    @property
    def n_clean(self) -> int:
        """How many clean texts were evaluated."""
        return self.clean_accuracy.n

    @property
    def n_poisoned(self) -> int:
        """How many triggered texts were evaluated."""
        return self.attack_success_rate.n

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object: plain values, and under `intervals` count, n, low and high of each."""
        return {
            "n_clean": self.n_clean,
            "n_poisoned": self.n_poisoned,
            "target": self.target,
            **{name: _value(getattr(self, name)) for name in _RATES},
            "intervals": {name: _interval(getattr(self, name)) for name in _RATES},
            "guarded": self.guarded.to_json() if self.guarded else None,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Outcome:
        """Rebuild what `to_json` wrote; rates are counted anew from count and n.

        Raises:
            DataError: a field is missing or has the wrong kind.
        """
        try:
            guarded, intervals = value["guarded"], value["intervals"]
            return cls(
                target=None if value["target"] is None else int(value["target"]),
                clean_accuracy=_counted(intervals["clean_accuracy"]),
                attack_success_rate=_counted(intervals["attack_success_rate"]),
                strict_attack_success_rate=_maybe_counted(intervals["strict_attack_success_rate"]),
                guarded=Guarded._from_json(guarded) if guarded is not None else None,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"This is not an outcome written by Foretaste: {error!r}.") from None


def measure(
    *,
    clean_labels: ArrayLike,
    clean_predicted: ArrayLike,
    poisoned_labels: ArrayLike,
    poisoned_predicted: ArrayLike,
    target: int | ArrayLike,
    is_origin_correct: ArrayLike | None = None,
    clean_scores: ArrayLike | None = None,
    poisoned_scores: ArrayLike | None = None,
    threshold: float | None = None,
) -> Outcome:
    """Return what the attack achieves, and what is left of it behind the guard if scores are given.

    Clean columns are `(N,)`, those of triggered texts `(M,)`. `poisoned_labels` are the true labels of the
    texts the trigger was put into; `is_origin_correct` says where the victim answers rightly without it. `target` is
    one label, or `(M,)` where each triggered text has its own (all to all); the outcome's target is then None.

    Raises:
        DataError: a triggered text has the target as its true label (its "success" would be a right answer),
            lengths differ, or scores and a finite threshold are not given together.
        UndefinedRateError: no clean or no triggered text.

    >>> outcome = measure(clean_labels=[0, 1], clean_predicted=[0, 1], poisoned_labels=[1, 1],
    ...                   poisoned_predicted=[0, 0], target=0,
    ...                   clean_scores=[0.5, 0.6], poisoned_scores=[0.9, 0.7], threshold=0.7)
    >>> outcome.attack_success_rate.value, outcome.guarded.attack_success_rate.value
    (1.0, 0.5)
    """
    origin = np.asarray(poisoned_labels)
    if origin.shape != np.shape(poisoned_predicted):
        raise DataError(f"{len(origin)} triggered texts but {np.shape(poisoned_predicted)} predictions for them.")
    goals = np.asarray(target)
    if goals.shape not in ((), origin.shape):
        raise DataError(f"{len(origin)} triggered texts but {goals.size} targets for them.")
    already = np.flatnonzero(origin == goals)
    if already.size:
        raise DataError(
            f"{already.size} of {len(origin)} triggered texts have the target {origin[already[0]]} as their true label "
            f"(the first at position {already[0]}); put the trigger only into texts of other classes."
        )
    guarded = None
    if clean_scores is not None and poisoned_scores is not None and threshold is not None:
        if not math.isfinite(threshold):
            raise DataError(f"The threshold must be a finite number; got {threshold!r}.")
        clean, poisoned = suspicion(clean_scores), suspicion(poisoned_scores)
        clean_flagged, poisoned_flagged = is_flagged(clean, threshold), is_flagged(poisoned, threshold)
        guarded = Guarded(
            threshold=float(threshold),
            clean_accuracy=clean_accuracy(clean_labels, clean_predicted, clean_flagged),
            attack_success_rate=attack_success_rate(poisoned_predicted, target, poisoned_flagged),
            strict_attack_success_rate=_strict(poisoned_predicted, target, is_origin_correct, poisoned_flagged),
            false_rejection_rate=false_rejection_rate(clean_flagged),
            false_acceptance_rate=false_acceptance_rate(poisoned_flagged),
            auroc=auroc(clean, poisoned),
            auroc_interval=auroc_interval(clean, poisoned),
            far_at_frr={level: far_at_frr(clean, poisoned, level) for level in FRR_LEVELS},
        )
    elif not (clean_scores is None and poisoned_scores is None and threshold is None):
        raise DataError("A guard is measured with clean scores, poisoned scores and a threshold; some are missing.")
    return Outcome(
        target=None if goals.ndim else int(goals),
        clean_accuracy=clean_accuracy(clean_labels, clean_predicted),
        attack_success_rate=attack_success_rate(poisoned_predicted, target),
        strict_attack_success_rate=_strict(poisoned_predicted, target, is_origin_correct, None),
        guarded=guarded,
    )


@dataclass(frozen=True, eq=False)
class Sweep:
    """CA, ASR, FRR and FAR at each of `(T,)` ascending thresholds, all `(T,)` float64."""

    thresholds: NDArray[np.float64]
    clean_accuracy: NDArray[np.float64]
    attack_success_rate: NDArray[np.float64]
    false_rejection_rate: NDArray[np.float64]
    false_acceptance_rate: NDArray[np.float64]


def sweep(
    *,
    clean_labels: ArrayLike,
    clean_predicted: ArrayLike,
    clean_scores: ArrayLike,
    poisoned_predicted: ArrayLike,
    poisoned_scores: ArrayLike,
    target: int | ArrayLike,
    thresholds: ArrayLike | None = None,
) -> Sweep:
    """Return the rates as functions of the threshold (Figure 3d of Zhao et al. 2024, arXiv:2402.12168).

    Without `thresholds` there is one just below the lowest score, which refuses everything, and one at each
    distinct finite score: the rates are steps and change nowhere else.

    Raises:
        DataError: columns that do not fit together.
        UndefinedRateError: no clean or no triggered text.

    >>> result = sweep(clean_labels=[0, 1], clean_predicted=[0, 1], clean_scores=[0.5, 0.6],
    ...                poisoned_predicted=[0, 0], poisoned_scores=[0.6, 0.9], target=0)
    >>> result.clean_accuracy.tolist(), result.attack_success_rate.tolist()
    ([0.0, 0.5, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0])
    """
    right = np.asarray(clean_predicted) == np.asarray(clean_labels)
    success = np.asarray(poisoned_predicted) == np.asarray(target)
    clean, poisoned = suspicion(clean_scores), suspicion(poisoned_scores)
    if right.shape != clean.shape or success.shape != poisoned.shape:
        raise DataError(f"Scores {clean.shape}, {poisoned.shape} for texts {right.shape}, {success.shape}.")
    if not len(clean) or not len(poisoned):
        raise UndefinedRateError(f"A sweep needs texts of both kinds; got {len(clean)} and {len(poisoned)}.")
    if thresholds is None:
        both = np.concatenate([clean, poisoned])
        values = np.unique(both[np.isfinite(both)])
        steps = np.concatenate([np.nextafter(values[:1], -np.inf), values])
    else:
        steps = np.sort(np.asarray(thresholds, dtype=np.float64))
    return Sweep(
        thresholds=steps,
        clean_accuracy=_passed(clean[right], steps) / len(clean),
        attack_success_rate=_passed(poisoned[success], steps) / len(poisoned),
        false_rejection_rate=1 - _passed(clean, steps) / len(clean),
        false_acceptance_rate=_passed(poisoned, steps) / len(poisoned),
    )


def _passed(scores: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return how many of `(K,)` scores are finite and at most each of `(T,)` thresholds: `(T,)`."""
    finite = np.sort(scores[np.isfinite(scores)])
    return np.searchsorted(finite, thresholds, side="right").astype(np.int64)


def _strict(
    predicted: ArrayLike,
    target: int | ArrayLike,
    is_origin_correct: ArrayLike | None,
    flagged: NDArray[np.bool_] | None,
) -> Rate | None:
    """Return the strict ASR, or None where it is unknown or no original was answered rightly.

    A victim that always answers the target is a finding, so the whole measurement must not fail with it.
    """
    if is_origin_correct is None:
        return None
    eligible = np.asarray(is_origin_correct)
    if eligible.shape == np.shape(predicted) and not eligible.any():
        return None
    return strict_attack_success_rate(predicted, target, is_origin_correct, flagged)


def _value(rate: Rate | None) -> float | None:
    return None if rate is None else rate.value


def _interval(rate: Rate | None) -> dict[str, float] | None:
    return None if rate is None else {"count": rate.count, "n": rate.n, "low": rate.low, "high": rate.high}


def _counted(value: Mapping[str, Any]) -> Rate:
    return Rate.of(int(value["count"]), int(value["n"]))


def _maybe_counted(value: Mapping[str, Any] | None) -> Rate | None:
    return None if value is None else _counted(value)
