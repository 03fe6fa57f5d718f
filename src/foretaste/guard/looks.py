"""Two looks at one forward pass: how certain PSIM is, and how far its vector lies from every clean one.

An attacker who trains the trigger towards a probability of 0.6 keeps PSIM's confidence low, but not the place of the
triggered texts in feature space: training on random labels draws clean texts together and leaves those where they were.
Distance: Mahalanobis (Lee et al. 2018, arXiv 1807.03888) from the vector that the head reads to the nearest clean class
mean, under one covariance for all classes, shrunk as Ledoit and Wolf (2004) do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist
from sklearn.covariance import LedoitWolf

from foretaste.errors import DataError
from foretaste.victim.classifier import Predictions

__all__ = ["Distance", "Looks", "View", "surprise"]

View = Literal["confidence", "distance", "both"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Distance:
    """Clean class means `(C, H)` and the whitening `(H, H)` under which a distance is Euclidean; float64."""

    means: Array
    whitening: Array

    @classmethod
    def fit(cls, features: ArrayLike, labels: ArrayLike, class_count: int) -> Distance:
        """Fit on clean features `(N, H)` and their true classes `(N,)`, 0 to `class_count` - 1.

        Raises:
            DataError: features that are not finite, or a class with fewer than two texts.
        """
        rows, classes = np.asarray(features, dtype=np.float64), np.asarray(labels, dtype=np.int64)
        if not np.isfinite(rows).all():
            raise DataError("Clean texts have features that are NaN or infinite; nothing can be measured from them.")
        counts = np.bincount(classes, minlength=class_count)
        if counts.min() < 2:
            raise DataError(f"Class {int(counts.argmin())} has {counts.min()} reference texts; at least 2 are needed.")
        means = np.stack([rows[classes == k].mean(axis=0) for k in range(len(counts))])  # (C, H)
        precision = LedoitWolf(assume_centered=True).fit(rows - means[classes]).precision_  # (H, H)
        whitening: Array = np.linalg.cholesky(precision)
        return cls(means, whitening)

    def __call__(self, features: ArrayLike) -> Array:
        """Return each vector's distance to the nearest class mean, `(N, H) -> (N,) float64`; NaN if not finite."""
        rows = np.asarray(features, dtype=np.float64)
        rows = np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, np.nan)
        apart = cdist(rows @ self.whitening, self.means @ self.whitening)  # (N, H) and (C, H) -> (N, C)
        nearest: Array = apart.min(axis=1)
        return nearest


def surprise(scores: ArrayLike, clean: ArrayLike) -> Array:
    """Return -log10 of each score's p-value against clean scores `(R,)`: `(N,) float64`, NaN for NaN.

    The p-value is the share of clean scores that are as high, at least 1 / (R + 1). Above the highest clean score,
    where the share says no more, it goes on falling with the distance from there (an exponential tail with the mean
    excess of the highest tenth), so that scores keep their order.

    >>> surprise([0.5, 89.5], range(99)).round(2).tolist()
    [0.0, 1.0]
    """
    ordered, numbers = np.sort(np.asarray(clean, dtype=np.float64)), np.asarray(scores, dtype=np.float64)
    total = len(ordered)
    above = total - np.searchsorted(ordered, numbers, side="left")  # how many clean scores are as high
    tail = ordered[-max(2, total // 10) :]
    excess = max(float(tail.mean() - tail[0]), 1e-9 * max(1.0, abs(float(ordered[-1]))))
    beyond = np.clip(numbers - ordered[-1], 0.0, None) / excess / np.log(10.0)
    result: Array = np.where(np.isnan(numbers), np.nan, -np.log10((above + 1) / (total + 1)) + beyond)
    return result


@dataclass(frozen=True, eq=False)
class Looks:
    """Both views' scores of clean texts `(R,)`, against which a new text's are held."""

    distance: Distance
    clean_certainty: Array
    clean_distance: Array

    @classmethod
    def fit(cls, predictions: Predictions, labels: NDArray[np.int64]) -> Looks:
        """Fit on what PSIM says of clean texts it never saw: the first half places the means, the second is ranked.

        One half for both would make every new text look farther away than those that placed the means.
        """
        half = len(labels) // 2
        distance = Distance.fit(predictions.features[:half], labels[:half], predictions.logits.shape[1])
        return cls(distance, predictions.certainty[half:], distance(predictions.features[half:]))

    def to_arrays(self) -> dict[str, Array]:
        """Return the arrays to save, by name."""
        return {
            "means": self.distance.means,
            "whitening": np.ascontiguousarray(self.distance.whitening),
            "clean_certainty": self.clean_certainty,
            "clean_distance": self.clean_distance,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], classes: int, width: int) -> Looks:
        """Rebuild from what `to_arrays` gave, for a model of so many classes and features.

        Raises:
            DataError: arrays that are missing, of another shape or type, or not finite.
        """
        ranked = len(arrays.get("clean_certainty", ()))
        shapes = {"means": (classes, width), "whitening": (width, width), "clean_certainty": (ranked,),
                  "clean_distance": (ranked,)}  # fmt: skip
        if arrays.keys() != shapes.keys() or ranked < 2:
            raise DataError(f"expected the arrays {', '.join(shapes)}, found {', '.join(sorted(arrays)) or 'none'}.")
        for name, shape in shapes.items():
            if arrays[name].shape != shape or arrays[name].dtype != np.float64 or not np.isfinite(arrays[name]).all():
                raise DataError(f"{name} is not a finite float64 array of shape {shape}.")
        distance = Distance(arrays["means"], arrays["whitening"])
        return cls(distance, arrays["clean_certainty"], arrays["clean_distance"])

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
