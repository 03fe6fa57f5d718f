"""A share over several runs: what is reported where one seed says little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Spread"]


@dataclass(frozen=True)
class Spread:
    """Mean, lowest and highest of several runs.

    >>> Spread.of([0.25, None, 0.75])
    Spread(mean=0.5, low=0.25, high=0.75)
    """

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        """Return that of the values that are known, if any."""
        known = [value for value in values if value is not None]
        return cls(float(np.mean(known)), min(known), max(known)) if known else None
