"""A trained PSIM: its views, its bar, and what looks at the victim's answers beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from foretaste.data.corpus import Corpus
from foretaste.errors import GuardError, PlanError
from foretaste.evaluate.threshold import Calibration, calibrate
from foretaste.guard.guard import Verdict, judge
from foretaste.guard.looks import Looks, View
from foretaste.guard.opinion import Opinion
from foretaste.guard.transplant import Transplant
from foretaste.tune.loop import TuneResult
from foretaste.victim.batch import Encoded
from foretaste.victim.classifier import Classifier, Predictions, Scoring

__all__ = ["PsimGuard"]

# A base whose head was trained for the task answers clean texts far above this (0.6 to 0.9 on MiniLM).
BLIND_DOSE = 0.2

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PsimGuard:
    """A trained PSIM. `calibration` is None when the threshold was given.

    `scoring` float32 gives a text the same score whatever its neighbours (1e-5); bfloat16 and int8 are faster and move
    a score by up to some thousandths, which calibration in the same arithmetic has seen. `doses` are the monitored
    medians, the first before any step; a base that starts undecided (`is_blind`) has no trained head for these labels,
    so that there is no certainty to unlearn and none to give a trigger away.
    """

    classifier: Classifier
    threshold: float
    calibration: Calibration | None
    scoring: Scoring = "float32"
    view: View = "confidence"
    looks: Looks | None = None
    training: TuneResult | None = None
    doses: tuple[float, ...] = ()
    opinion: Opinion | None = None
    transplant: Transplant | None = None

    @property
    def title(self) -> str:
        """What this is, in a few words."""
        more = ["" if self.opinion is None else f", {self.opinion.title}"]
        more += ["" if self.transplant is None else ", transplants"]
        return f"PSIM, {self.classifier.strategy.name}{''.join(more)}"

    @property
    def asks_victim(self) -> bool:
        """True if the victim's answers count, so that only a `GuardedClassifier` can score."""
        return self.opinion is not None or self.transplant is not None

    @property
    def is_blind(self) -> bool:
        """True if the untrained base was as undecided as PSIM is meant to become."""
        return bool(self.doses) and self.doses[0] <= BLIND_DOSE

    @cached_property
    def _scorer(self) -> Callable[..., Predictions]:
        return self.classifier.scorer(self.scoring)

    def predict(self, texts: Sequence[str] | Encoded, *, batch_size: int = 64) -> Predictions:
        """Return what PSIM says of texts, or of texts already encoded, in the arithmetic of its calibration."""
        return self._scorer(texts, batch_size=batch_size)

    def judge(self, predictions: Predictions) -> Array:
        """Return the scores `(N,) float64` in the guard's view of what PSIM says of texts."""
        return predictions.certainty if self.looks is None else self.looks.score(predictions, self.view)

    def score(self, texts: Sequence[str]) -> Array:
        """Return one score per text, `(N,) float64`, higher = more suspicious; NaN if the model gives none.

        In the view `confidence` it is the highest class probability, in `distance` one minus a mean cosine, in `both`
        the higher of the two -log10 p-values against clean texts.

        Raises:
            GuardError: a guard that looks at the victim's answers, which only a `GuardedClassifier` can ask
                (`needs_victim`).
        """
        self._refuse_alone()
        return self.judge(self.predict(texts))

    def reach(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return how many characters of each text the guard reads, `(N,) int64`."""
        return self.classifier.reach(texts)

    def with_victim(
        self,
        victim: Classifier,
        calibration: Corpus,
        *,
        opinion: Opinion | None = None,
        transplant: Transplant | None = None,
        is_progress_shown: bool = False,
    ) -> PsimGuard:
        """Return a guard that also looks at the victim's answers; it answers behind this victim only.

        What `behind` returns is calibrated as one score, on texts that no model here was trained on, to the promise of
        this guard.

        Raises:
            PlanError: a guard whose view is not `both` (other scores are no p-values).
            GuardError: a victim that the opinion or the transplants were not made for.
        """
        if self.view != "both" or self.calibration is None:
            raise PlanError('What looks at the victim joins a calibrated guard of the view "both".')
        bound = replace(self, opinion=opinion, transplant=transplant)
        bound.refuse_misfit(victim)
        texts = calibration.texts
        tasted = self.judge(self.predict(texts))
        scores = bound.behind(victim, victim.predict(texts), texts, tasted, is_progress_shown=is_progress_shown)
        found = calibrate(scores, self.calibration.frr, self.calibration.confidence)
        return replace(bound, threshold=found.threshold, calibration=found)

    def refuse_misfit(self, victim: Classifier) -> None:
        """Raise GuardError for a victim that what looks at its answers was not made for."""
        for look in (self.opinion, self.transplant):
            if look is not None:
                look.refuse_misfit(victim)

    def behind(
        self,
        victim: Classifier,
        said: Predictions,
        texts: Sequence[str],
        tasted: Array,
        *,
        is_progress_shown: bool = False,
    ) -> Array:
        """Return the scores `(N,) float64` behind a victim that `said` this of the texts, and PSIM's scores `tasted`.

        -log10 of p-values: what transplants find is added to PSIM's, the opinion's counts if it is higher. NaN if a
        model gives no number.
        """
        scores = tasted
        if self.transplant is not None:
            scores = scores + self.transplant.surprise(victim, said, texts, tasted, is_progress_shown=is_progress_shown)
        if self.opinion is not None:
            scores = np.maximum(scores, self.opinion.surprise(victim, said, texts))
        return scores

    def check(self, texts: Sequence[str]) -> list[Verdict]:
        """Return one verdict per text; a score that is not finite is refused.

        Raises:
            GuardError: as `score`.
        """
        self._refuse_alone()
        predictions = self.predict(texts)
        return judge(self.judge(predictions), predictions.is_truncated, self.threshold)

    def _refuse_alone(self) -> None:
        if self.asks_victim:
            raise GuardError("This guard looks at the victim's answers; ask it behind its victim.", code="needs_victim")
