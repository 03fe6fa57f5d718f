"""Two looks at one forward pass: how certain PSIM is, and how far its vector points away from every clean one.

An attacker who trains the trigger towards a probability of 0.6 keeps PSIM's confidence low, but triggered texts still
share a direction in feature space that no clean text has, and training on random labels draws the clean ones together.
Distance: one minus the mean cosine to the 50 nearest clean vectors, of those that the head reads (deep nearest
neighbours: Sun et al. 2022, arXiv 2204.06507, who take the k-th alone). docs/decisions/0004 says why not Mahalanobis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foretaste.errors import DataError
from foretaste.victim.classifier import Predictions

__all__ = ["Distance", "Looks", "View", "surprise"]

View = Literal["confidence", "distance", "both"]
NEIGHBOURS = 50
FEWEST = 10
# Smaller distances are noise of single precision; where training has drawn all clean texts to one point, none counts.
RESOLUTION = 1e-4

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Distance:
    """The directions of clean texts, unit vectors `(K, H) float32`."""

    directions: NDArray[np.float32]

    @classmethod
    def fit(cls, features: ArrayLike) -> Distance:
        """Keep the directions of clean features `(K, H)`.

        Raises:
            DataError: fewer than 10 vectors, or one that is zero, NaN or infinite.
        """
        directions = _directions(features)
        if len(directions) < FEWEST:
            raise DataError(f"{len(directions)} reference texts are too few; at least {FEWEST} are needed.")
        if not np.isfinite(directions).all():
            raise DataError("Clean texts have features that are zero, NaN or infinite; they measure nothing.")
        return cls(directions)

    def __call__(self, features: ArrayLike) -> Array:
        """Return 1 - the mean cosine to the 50 nearest, `(N, H) -> (N,) float64`, 0 to 2; NaN without a direction.

        Of fewer than 100 clean vectors, to the nearest half.
        """
        cosines = _directions(features) @ self.directions.T  # (N, H) @ (H, K) -> (N, K)
        count = min(NEIGHBOURS, len(self.directions) // 2)
        nearest = np.partition(cosines, -count, axis=1)[:, -count:]
        result: Array = np.maximum(1.0 - nearest.mean(axis=1, dtype=np.float64), RESOLUTION)
        # NaN is sorted last, so it would be among the nearest anyway; said here, it does not hang on that.
        result[~np.isfinite(cosines).all(axis=1)] = np.nan
        return result


def surprise(scores: ArrayLike, clean: ArrayLike) -> Array:
    """Return -log10 of each score's p-value against clean scores `(R,)`: `(N,) float64`, NaN for NaN.

    The p-value of a clean score is the share of clean scores that are as high, at least 1 / (R + 1); in between its
    logarithm is interpolated, so that no two scores tie that differ: what ties with the threshold passes. Above the
    highest clean score it goes on falling with the distance from there (an exponential tail with the mean excess of the
    highest tenth).

    >>> surprise([0, 89.5, 90, 98], range(99)).round(2).tolist()
    [0.0, 0.98, 1.0, 1.7]
    """
    ordered, numbers = np.sort(np.asarray(clean, dtype=np.float64)), np.asarray(scores, dtype=np.float64)
    total = len(ordered)
    knots, first = np.unique(ordered, return_index=True)
    levels = -np.log10((total - first + 1) / (total + 1))  # total - first: how many clean scores are as high
    tail = ordered[-max(2, total // 10) :]
    excess = max(float(tail.mean() - tail[0]), 1e-9 * max(1.0, abs(float(ordered[-1]))))
    beyond = np.clip(numbers - ordered[-1], 0.0, None) / excess / np.log(10.0)
    result: Array = np.interp(numbers, knots, levels) + beyond  # NaN stays NaN
    return result


@dataclass(frozen=True, eq=False)
class Looks:
    """Both views' scores of clean texts `(R,)`, against which a new text's are held."""

    distance: Distance
    clean_certainty: Array
    clean_distance: Array

    @classmethod
    def fit(cls, predictions: Predictions) -> Looks:
        """Fit on what PSIM says of clean texts it never saw: the first half are the neighbours, the second is ranked.

        One half for both would make every new text look farther away than the neighbours are from each other.

        Raises:
            DataError: too few texts, or features without a direction (see `Distance.fit`).
        """
        half = len(predictions.features) // 2
        distance = Distance.fit(predictions.features[:half])
        return cls(distance, predictions.certainty[half:], distance(predictions.features[half:]))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays to save, by name."""
        return {
            "directions": self.distance.directions,
            "ranked_certainty": self.clean_certainty,
            "ranked_distance": self.clean_distance,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], width: int) -> Looks:
        """Rebuild from what `to_arrays` gave, for a model with so many features.

        Raises:
            DataError: arrays that are missing, of another shape or type, not finite, or not unit vectors.
        """
        kept, ranked = len(arrays.get("directions", ())), len(arrays.get("ranked_certainty", ()))
        expected: dict[str, tuple[tuple[int, ...], Any]] = {
            "directions": ((kept, width), np.float32),
            "ranked_certainty": ((ranked,), np.float64),
            "ranked_distance": ((ranked,), np.float64),
        }
        if arrays.keys() != expected.keys() or ranked < 2 or kept < FEWEST:
            raise DataError(f"expected the arrays {', '.join(expected)}, found {', '.join(sorted(arrays)) or 'none'}.")
        for name, (shape, kind) in expected.items():
            if arrays[name].shape != shape or arrays[name].dtype != kind or not np.isfinite(arrays[name]).all():
                raise DataError(f"{name} is not a finite {np.dtype(kind)} array of shape {shape}.")
        if np.abs(np.linalg.norm(arrays["directions"], axis=1) - 1.0).max() > 1e-3:
            raise DataError("directions are not vectors of length 1.")  # longer ones would make every text look near
        return cls(Distance(arrays["directions"]), arrays["ranked_certainty"], arrays["ranked_distance"])

    def score(self, predictions: Predictions, view: View) -> Array:
        """Return one score per text, `(N,) float64`, higher = more suspicious; NaN if a number is not finite."""
        if view == "confidence":
            return predictions.certainty
        distance = self.distance(predictions.features)
        if view == "distance":
            return distance
        # np.maximum keeps NaN: a text that one view cannot judge is judged by neither.
        return np.maximum(
            surprise(predictions.certainty, self.clean_certainty), surprise(distance, self.clean_distance)
        )


def _directions(features: ArrayLike) -> NDArray[np.float32]:
    """Unit vectors, `(N, H) float32`; NaN for a vector of length zero or with a number that is not finite."""
    rows = np.asarray(features, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        directions: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    directions[~np.isfinite(directions).all(axis=1)] = np.nan
    return directions
