"""What every guard answers: a score per text, and a verdict that fails closed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from foretaste.evaluate.threshold import is_flagged

__all__ = ["Guard", "Reason", "Verdict", "judge"]


class Reason(StrEnum):
    """Why a text was accepted or refused."""

    ACCEPTED = "accepted"
    SCORE_ABOVE_THRESHOLD = "score_above_threshold"
    SCORE_NOT_FINITE = "score_not_finite"
    VICTIM_NOT_FINITE = "victim_not_finite"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A guard's word on one text; `score` is NaN or infinite only with the reason `score_not_finite`.

    `truncated` says that the text was longer than what the guard read.
    """

    score: float
    threshold: float
    flagged: bool
    reason: Reason
    truncated: bool


class Guard(Protocol):
    """Scores texts: higher is more suspicious; above the threshold is refused."""

    @property
    def threshold(self) -> float:
        """The highest score that is accepted."""

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return one score per text, `(N,) float64`, whatever the neighbours and the batch size."""

    def check(self, texts: Sequence[str]) -> list[Verdict]:
        """Return one verdict per text, in order."""


def judge(scores: NDArray[np.float64], is_truncated: NDArray[np.bool_], threshold: float) -> list[Verdict]:
    """Turn scores `(N,)` into verdicts: accepted only if finite and at most the threshold.

    >>> [v.reason.value for v in judge(np.array([0.5, 0.9, np.nan]), np.zeros(3, bool), 0.7)]
    ['accepted', 'score_above_threshold', 'score_not_finite']
    """
    flagged = is_flagged(scores, threshold)
    return [
        Verdict(float(score), threshold, bool(flag), _reason(bool(flag), float(score)), bool(cut))
        for score, flag, cut in zip(scores, flagged, is_truncated, strict=True)
    ]


def _reason(flagged: bool, score: float) -> Reason:
    if not flagged:
        return Reason.ACCEPTED
    return Reason.SCORE_ABOVE_THRESHOLD if np.isfinite(score) else Reason.SCORE_NOT_FINITE
