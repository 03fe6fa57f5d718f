"""What a fragment does to a model's answers when it is put into clean texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foretaste.poison.trigger import SentenceTrigger
from foretaste.victim.batch import Encoded
from foretaste.victim.classifier import Classifier, Predictions

__all__ = ["Hosts", "Push", "pushes"]

Array = NDArray[np.float64]
CHUNK = 8192


@dataclass(frozen=True, eq=False)
class Hosts:
    """Clean texts `(H,)` with their true classes `(H,) int64`, into which fragments are put."""

    texts: tuple[str, ...]
    labels: NDArray[np.int64]

    def carry(self, fragment: str, seed: int) -> list[str]:
        """Return the texts, each with the fragment at a place of its own, as an attacker would put it."""
        return SentenceTrigger(sentence=fragment).apply(self.texts, seed)

    def encode(self, classifier: Classifier, fragments: Sequence[str], seed: int) -> Encoded:
        """Return `fragments x hosts`, fragment by fragment, as the model reads them."""
        return classifier.encode([text for fragment in fragments for text in self.carry(fragment, seed)])

    def select(self, indices: NDArray[np.int64]) -> Hosts:
        """Return the hosts at `indices`."""
        return Hosts(tuple(self.texts[i] for i in indices), self.labels[indices])


@dataclass(frozen=True, eq=False)
class Push:
    """What K fragments do to one model, towards each class; hosts of that class itself are left out.

    `rise (K, C)`: the mean gain of the class's probability; `flips (K, C)`: the share of hosts that end there;
    NaN for a class that all hosts belong to.
    """

    rise: Array
    flips: Array


def pushes(
    classifier: Classifier,
    hosts: Hosts,
    fragments: Sequence[str],
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> Push:
    """Put each of K fragments into each host and return what the model makes of it.

    `progress` is called with the number of fragments done.
    """
    classes, count = len(classifier.label_names), len(hosts.texts)
    plain = classifier.predict(hosts.texts).probabilities  # (H, C)
    is_other = hosts.labels[:, None] != np.arange(classes)  # (H, C)
    shares = is_other / np.where(is_other.any(axis=0), is_other.sum(axis=0), np.nan)  # (H, C): weights of a mean
    rises, flips = np.empty((len(fragments), classes)), np.empty((len(fragments), classes))
    step = max(1, CHUNK // count)
    for start in range(0, len(fragments), step):
        chunk = fragments[start : start + step]
        said = classifier.predict(hosts.encode(classifier, chunk, seed))
        after = said.probabilities.reshape(len(chunk), count, classes)  # (K * H, C) -> (K, H, C)
        rises[start : start + step] = np.einsum("khc,hc->kc", after - plain, shares)
        flips[start : start + step] = np.einsum("khc,hc->kc", _hits(said, classes).reshape(after.shape), shares)
        if progress is not None:
            progress(len(chunk))
    return Push(rises, flips)


def _hits(said: Predictions, classes: int) -> Array:
    """One-hot of the predicted class, `(N, C)`; all zero where the logits are not finite."""
    hits: Array = np.eye(classes)[said.labels]
    hits[~np.isfinite(said.logits).all(axis=1)] = 0.0
    return hits
