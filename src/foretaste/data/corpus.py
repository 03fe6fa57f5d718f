"""Labelled texts as one frozen value."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foretaste.errors import DataError
from foretaste.seeds import generator

__all__ = ["Corpus", "Example"]


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled text; `id` says where it came from, as in `sst2/test:17`."""

    id: str
    text: str
    label: int


@dataclass(frozen=True, eq=False)
class Corpus:
    """Texts with their labels; slices and samples keep each text's row number in the original.

    `labels` is `(N,) int64` with values in `range(len(label_names))`; `rows` is `(N,) int64`, the row number
    of each text in the split that `name` names.

    Raises:
        DataError: no text, lengths that differ, a label outside the label names, fewer than two label names.
    """

    name: str
    texts: tuple[str, ...]
    labels: NDArray[np.int64]
    label_names: tuple[str, ...]
    rows: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        name: str,
        texts: Sequence[str],
        labels: ArrayLike,
        label_names: Sequence[str] | None = None,
    ) -> Corpus:
        """Build a corpus; without label names the classes are called by their numbers.

        >>> Corpus.of("mine", ["good", "bad"], [1, 0]).label_names
        ('0', '1')
        """
        numbers = np.asarray(labels, dtype=np.int64)
        if label_names is None:
            label_names = [str(k) for k in range(int(numbers.max(initial=0)) + 1)]
        return cls(name, tuple(texts), numbers, tuple(label_names), np.arange(len(numbers)))

    def __post_init__(self) -> None:
        if not self.texts:
            raise DataError(f"{self.name} holds no texts.")
        if self.labels.shape != (len(self.texts),) or self.rows.shape != self.labels.shape:
            raise DataError(f"{self.name}: {len(self.texts)} texts but {self.labels.shape} labels.")
        if len(self.label_names) < 2:
            raise DataError(f"{self.name} has one class only ({self.label_names}); two or more are needed.")
        outside = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.label_names)))
        if outside.size:
            first = int(outside[0])
            raise DataError(
                f"{self.name}:{self.rows[first]} has label {self.labels[first]}; "
                f"expected 0 to {len(self.label_names) - 1}."
            )

    def __len__(self) -> int:
        return len(self.texts)

    def example(self, index: int) -> Example:
        """Return one text with its label and where it came from."""
        return Example(f"{self.name}:{self.rows[index]}", self.texts[index], int(self.labels[index]))

    @property
    def majority(self) -> float:
        """The share of the most frequent class: the accuracy of whoever always names it."""
        return float(np.bincount(self.labels).max() / len(self))

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of texts, labels and label names, in order; the name does not count."""
        state = hashlib.sha256()
        for part in (*self.label_names, *self.texts):
            encoded = part.encode("utf-8", "surrogatepass")
            state.update(len(encoded).to_bytes(8, "big") + encoded)
        state.update(np.ascontiguousarray(self.labels).tobytes())
        return state.hexdigest()

    def select(self, indices: ArrayLike) -> Corpus:
        """Return the texts at `indices` (`(K,)` int, or `(N,)` bool as a mask), in that order."""
        chosen = np.arange(len(self))[np.asarray(indices)]
        texts = tuple(self.texts[i] for i in chosen)
        return replace(self, texts=texts, labels=self.labels[chosen], rows=self.rows[chosen])

    def with_texts(self, texts: Sequence[str], labels: ArrayLike | None = None) -> Corpus:
        """Return the same rows with other texts (and other labels, if given)."""
        numbers = self.labels if labels is None else np.asarray(labels, dtype=np.int64)
        return replace(self, texts=tuple(texts), labels=numbers)

    def sample(self, size: int, seed: int) -> Corpus:
        """Return at most `size` texts drawn without replacement, in their original order."""
        return self.partition([size], seed)[0] if size < len(self) else self

    def partition(self, sizes: Sequence[int], seed: int) -> list[Corpus]:
        """Return disjoint random parts of the given sizes, each in original order.

        Raises:
            DataError: the sizes add up to more texts than there are, or one of them is not positive.
        """
        if min(sizes) < 1 or sum(sizes) > len(self):
            raise DataError(f"{self.name} has {len(self)} texts; parts of {list(sizes)} cannot be drawn.")
        order = generator(seed, "partition", self.name).permutation(len(self))
        bounds = np.cumsum([0, *sizes])
        return [self.select(np.sort(order[a:b])) for a, b in itertools.pairwise(bounds)]
