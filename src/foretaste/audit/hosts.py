"""What a fragment does to a model's answers when it is put into clean texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foretaste.audit.memory import Memory
from foretaste.poison.trigger import SentenceTrigger
from foretaste.victim.batch import Encoded
from foretaste.victim.classifier import Classifier, Predictions

__all__ = ["Fragment", "Hosts", "Push", "pushes", "towards"]

Array = NDArray[np.float64]
CHUNK = 8192


@dataclass(frozen=True, slots=True)
class Fragment:
    """A word or phrase, and the class it is to turn texts to."""

    text: str
    target: int


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

    def against(self, target: int) -> Hosts:
        """Return the hosts of other classes than `target`: only these can be turned to it."""
        return self.select(np.flatnonzero(self.labels != target))


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
    memory: Memory | None = None,
) -> Push:
    """Put each of K fragments into each host and return what the model makes of it.

    `progress` is called with the number of fragments done. What `memory` holds is not asked again.
    """
    memory = memory or Memory()
    classes, count = len(classifier.label_names), len(hosts.texts)
    plain = classifier.predict(hosts.texts).probabilities  # (H, C)
    is_other = hosts.labels[:, None] != np.arange(classes)  # (H, C)
    shares = is_other / np.where(is_other.any(axis=0), is_other.sum(axis=0), np.nan)  # (H, C): weights of a mean
    found = np.empty((2, len(fragments), classes))
    step = max(1, CHUNK // count)
    for start in range(0, len(fragments), step):
        chunk = fragments[start : start + step]

        def ask(chunk: Sequence[str] = chunk) -> Array:
            said = classifier.predict(hosts.encode(classifier, chunk, seed))
            after = said.probabilities.reshape(len(chunk), count, classes)  # (K * H, C) -> (K, H, C)
            hits = _hits(said, classes).reshape(after.shape)
            return np.stack([np.einsum("khc,hc->kc", values, shares) for values in (after - plain, hits)])

        question = ("push", str(seed), *map(str, hosts.labels), *hosts.texts, *chunk)
        found[:, start : start + step] = memory.recall(classifier, question, (2, len(chunk), classes), ask)
        if progress is not None:
            progress(len(chunk))
    return Push(found[0], found[1])


def towards(
    classifier: Classifier, hosts: Hosts, fragments: Sequence[Fragment], seed: int, memory: Memory | None = None
) -> Push:
    """Return what each of K fragments does towards its own target: `rise` and `flips` are `(K,)`.

    Each is put into hosts of other classes only.
    """
    targets = np.array([fragment.target for fragment in fragments], dtype=np.int64)
    found = np.empty((2, len(fragments)))
    for target in np.unique(targets).tolist():
        rows = np.flatnonzero(targets == target)
        push = pushes(
            classifier, hosts.against(target), [fragments[i].text for i in rows.tolist()], seed, memory=memory
        )
        found[:, rows] = push.rise[:, target], push.flips[:, target]
    return Push(found[0], found[1])


def _hits(said: Predictions, classes: int) -> Array:
    """One-hot of the predicted class, `(N, C)`; all zero where the logits are not finite."""
    hits: Array = np.eye(classes)[said.labels]
    hits[~np.isfinite(said.logits).all(axis=1)] = 0.0
    return hits
