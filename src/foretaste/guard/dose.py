"""The dose: how undecided clean texts have become, read while PSIM trains, and the point at which it has had enough.

0 means that all classes are equally likely, 1 certain. The median over held-out clean texts counts, so that a few that
stay certain do not move it. A step near the end often moves it from twice the wanted dose to half of it, so training
does not end at a step, but on the line between the last two readings where the dose is met.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from foretaste.victim.batch import Encoded
from foretaste.victim.classifier import Classifier, Precision

__all__ = ["Monitor"]

READ_EVERY = 2
TOLERANCE = 0.01
LANDING_READINGS = 6


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
        self._before = self._now = _weights(classifier)

    def should_stop(self, step: int) -> bool:
        """Read the dose if it is time; return whether it is low enough."""
        if self._wanted is None or step % READ_EVERY:
            return False
        self.doses.append(self._read())
        self._before, self._now = self._now, _weights(self._classifier)
        if self._after_reading is not None:
            self._after_reading(step, self._classifier, self.doses[-1])
        return self.doses[-1] <= self._wanted

    def land(self) -> None:
        """Go back from the last reading towards the one before it until the dose is within 0.01 of what is wanted.

        The dose that is met is the last of `doses`. Nothing happens if the base was below the dose from the start.
        """
        if self._wanted is None or self.doses[-1] > self._wanted or self.doses[-2] <= self._wanted:
            return
        above, below = (0.0, self.doses[-2]), (1.0, self.doses[-1])  # share of the way, dose
        for _ in range(LANDING_READINGS):
            if self._wanted - below[1] <= TOLERANCE:
                break
            # A straight line, aimed at the middle of what is allowed; kept off the ends, where the curve's bend would
            # stall it.
            slope = (above[1] - self._wanted + TOLERANCE / 2) / (above[1] - below[1])
            share = above[0] + (below[0] - above[0]) * min(0.9, max(0.1, slope))
            self._go(share)
            dose = self._read()
            above, below = (above, (share, dose)) if dose <= self._wanted else ((share, dose), below)
        self._go(below[0])
        self.doses.append(below[1])

    def _read(self) -> float:
        """Median over texts of (p_max - 1/C) / (1 - 1/C)."""
        probabilities = self._classifier.predict(self._texts, precision=self._precision).probabilities
        chance = 1.0 / probabilities.shape[1]
        return float((np.median(probabilities.max(axis=1)) - chance) / (1.0 - chance))

    @torch.no_grad()
    def _go(self, share: float) -> None:
        """Set the weights to this share of the way between the last two readings."""
        for name, parameter in self._classifier.trainable.items():
            parameter.copy_(torch.lerp(self._before[name], self._now[name], share))


def _weights(classifier: Classifier) -> Mapping[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in classifier.trainable.items()}
