"""The dose: how undecided clean texts have become, read while PSIM trains, and the point at which it has had enough.

0 means that all classes are equally likely, 1 certain. The median over held-out clean texts counts, so that a few that
stay certain do not move it. A step near the end often moves it from twice the wanted dose to half of it; going back to
where it is met exactly was tried and made things worse (docs/decisions/0005).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from foretaste.victim.batch import Encoded
from foretaste.victim.classifier import Classifier, Precision, Predictions

__all__ = ["Monitor", "dose_of"]

READ_EVERY = 2


class Monitor:
    """Reads the dose every second step and stops training once it is `wanted` or lower; None never stops.

    `doses` are the readings, the first before any step; `after_reading` is called with (step, model, dose).
    """

    def __init__(
        self,
        classifier: Classifier,
        texts: Encoded,
        wanted: float | None,
        precision: Precision,
        after_reading: Callable[[int, Classifier, float], None] | None = None,
    ) -> None:
        self._classifier, self._texts, self._precision = classifier, texts, precision
        self._wanted, self._after_reading = wanted, after_reading
        self.doses = [self._read()]

    def should_stop(self, step: int) -> bool:
        """Read the dose if it is time; return whether it is low enough."""
        if self._wanted is None or step % READ_EVERY:
            return False
        self.doses.append(self._read())
        if self._after_reading is not None:
            self._after_reading(step, self._classifier, self.doses[-1])
        return self.doses[-1] <= self._wanted

    def _read(self) -> float:
        return dose_of(self._classifier.predict(self._texts, precision=self._precision))


def dose_of(said: Predictions) -> float:
    """Return the median over texts of (p_max - 1/C) / (1 - 1/C)."""
    chance = 1.0 / said.logits.shape[1]
    return float((np.median(said.certainty) - chance) / (1.0 - chance))
