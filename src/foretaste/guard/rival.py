"""What rival detectors share: they are asked behind a victim, and calibrated on clean texts as PSIM is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from foretaste.data.corpus import Corpus
from foretaste.errors import DataError
from foretaste.evaluate.threshold import Calibration, allowed_above, calibrate
from foretaste.spec import spec
from foretaste.victim.classifier import Classifier

__all__ = ["Rival", "RivalGuard", "Scorer"]

Scorer = Callable[[Sequence[str]], NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class RivalGuard:
    """A rival made for one victim: `score` gives `(N,) float64`, higher = more suspicious; above the bar is refused.

    `stored_bytes` is what it keeps beside the victim.
    """

    score: Scorer
    threshold: float
    calibration: Calibration
    stored_bytes: int


@spec
class Rival(ABC):
    """A detector, as a frozen spec; its bar is calibrated so that at most `frr` of clean texts are refused."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Goes up when the same settings would give other scores."""

    frr: float = Field(default=0.01, gt=0.0, lt=1.0)
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)

    def fit(self, victim: Classifier, corpus: Corpus, calibration: Corpus, *, seed: int = 0) -> RivalGuard:
        """Look at clean texts; no poisoned text is needed.

        Raises:
            DataError: labels that are not the victim's.
            GuardError: too few calibration texts for `frr` (code `too_few_calibration_texts`).
        """
        for own in (corpus, calibration):
            if own.label_names != victim.label_names:
                raise DataError(f"{own.name} has the labels {own.label_names}, the victim {victim.label_names}.")
        allowed_above(len(calibration), self.frr, self.confidence)
        score, stored = self.scorer(victim, corpus, seed)
        found = calibrate(score(calibration.texts), self.frr, self.confidence)
        return RivalGuard(score, found.threshold, found, stored)

    @abstractmethod
    def scorer(self, victim: Classifier, corpus: Corpus, seed: int) -> tuple[Scorer, int]:
        """Return what scores texts, each by itself and the seed alone, and how many bytes it keeps for that."""
