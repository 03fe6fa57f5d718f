"""Expose before you defend (EBYD: Li et al. 2024, arXiv 2410.19427): make a model forget its task, not its backdoor.

What is left shows the backdoor by itself. Training on labels drawn at random is the one that PSIM is made of; shuffled
labels keep each class's share; gradient ascent on the true labels drives the model away from them.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from foretaste.data.corpus import Corpus
from foretaste.seeds import generator
from foretaste.tune.loop import Objective, cross_entropy
from foretaste.victim.module import Output

__all__ = ["Expose", "exposing", "reset_labels"]

Expose = Literal["random", "shuffled", "ascent"]


def exposing(corpus: Corpus, how: Expose, seed: int, rate: float = 1.0) -> tuple[Corpus, Objective]:
    """Return the labels to train on and the objective to train by; `rate` is the share of labels redrawn or shuffled.

    Ascent ends where a text is as wrong as chance: the released code's goes on for ever and takes all of the model.
    """
    if how == "random":
        return corpus.with_texts(corpus.texts, reset_labels(corpus, rate, seed)), cross_entropy
    if how == "shuffled":
        return corpus.with_texts(corpus.texts, _shuffled(corpus, rate, seed)), cross_entropy
    chance = float(np.log(len(corpus.label_names)))

    def ascending(output: Output, rows: NDArray[np.int64], labels: Tensor) -> Tensor:
        return -cross_entropy(output, rows, labels).clamp(max=chance)

    return corpus, ascending


def reset_labels(corpus: Corpus, rate: float, seed: int) -> NDArray[np.int64]:
    """Redraw a share `rate` of the labels uniformly over all classes, the true one included, `(N,) int64`.

    >>> corpus = Corpus.of("mine", ["a", "b", "c", "d"], [0, 1, 0, 1])
    >>> reset_labels(corpus, 1.0, seed=1).shape
    (4,)
    """
    draw = generator(seed, "reset_labels")
    labels = corpus.labels.copy()
    chosen = draw.permutation(len(labels))[: round(len(labels) * rate)]
    labels[chosen] = draw.integers(len(corpus.label_names), size=len(chosen))
    return labels


def _shuffled(corpus: Corpus, rate: float, seed: int) -> NDArray[np.int64]:
    draw = generator(seed, "shuffled_labels")
    labels = corpus.labels.copy()
    chosen = draw.permutation(len(labels))[: round(len(labels) * rate)]
    labels[chosen] = labels[draw.permutation(chosen)]
    return labels
