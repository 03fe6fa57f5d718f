"""Texts to padded batches: tokenised once, bucketed by length, deterministic under a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foretaste.errors import ModelError
from foretaste.seeds import generator

__all__ = ["Encoded", "encode", "pad", "reach", "scoring_batches", "training_batches"]

# Shuffled texts are sorted by length within pools of this many batches: padding shrinks to a few per cent while
# batches still mix the whole corpus.
_POOL_BATCHES = 32


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids per text, at least one each, and whether the text was cut: `is_truncated (N,) bool`."""

    ids: tuple[tuple[int, ...], ...]
    is_truncated: NDArray[np.bool_]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each text, `(N,) int64`."""
        return np.fromiter((len(row) for row in self.ids), dtype=np.int64, count=len(self.ids))

    def select(self, indices: NDArray[np.int64]) -> Encoded:
        """Return the texts at `indices`, in that order."""
        return Encoded(tuple(self.ids[i] for i in indices), self.is_truncated[indices])


def encode(tokenizer: Any, texts: Sequence[str], max_length: int) -> Encoded:
    """Tokenise every text once, cutting at `max_length` tokens, special tokens included.

    Lone surrogates, which no tokenizer takes, are read as U+FFFD; a text without tokens becomes one
    end-of-text (or padding) token, so that there is always a vector to read.

    Raises:
        ModelError: the tokenizer is not a fast one (code `slow_tokenizer`); only those report truncation.
        TypeError: one text instead of a sequence of texts, which would be read letter by letter.
    """
    if isinstance(texts, str):
        raise TypeError(f"Expected a sequence of texts, got one text: {texts[:40]!r}. Put it in a list.")
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError("The tokenizer has no tokenizer.json (fast form); convert it first.", code="slow_tokenizer")
    if not texts:
        return Encoded((), np.zeros(0, dtype=np.bool_))
    readable = [_without_surrogates(text) for text in texts]
    encodings = tokenizer(readable, padding=False, truncation=True, max_length=max_length).encodings
    filler = next(
        (k for k in (tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id) if k is not None),
        0,
    )
    ids = tuple(tuple(e.ids) or (filler,) for e in encodings)
    return Encoded(ids, np.array([bool(e.overflowing) for e in encodings], dtype=np.bool_))


def reach(tokenizer: Any, texts: Sequence[str], max_length: int) -> NDArray[np.int64]:
    """Return how many characters of each text `encode` reads, `(N,) int64`: all of them unless the text is cut.

    Where a cut text holds surrogates in pairs, each pair counts once.
    """
    if not texts:
        return np.zeros(0, dtype=np.int64)
    readable = [_without_surrogates(text) for text in texts]
    encodings = tokenizer(readable, padding=False, truncation=True, max_length=max_length).encodings
    ends = [max((end for _, end in e.offsets), default=0) for e in encodings]  # special tokens lie at (0, 0)
    read = [end if e.overflowing else len(text) for text, e, end in zip(texts, encodings, ends, strict=True)]
    return np.array(read, dtype=np.int64)


def _without_surrogates(text: str) -> str:
    if text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def pad(ids: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return right-padded ids and mask, both `(B, T) int64`; the pad id is 0, never read under the mask."""
    longest = max(map(len, ids))
    rows = np.zeros((len(ids), longest), dtype=np.int64)
    mask = np.zeros((len(ids), longest), dtype=np.int64)
    for i, row in enumerate(ids):
        rows[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return torch.from_numpy(rows).to(device), torch.from_numpy(mask).to(device)


def scoring_batches(lengths: NDArray[np.int64], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Yield indices of texts of similar length, longest first, `batch_size` at a time."""
    order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def training_batches(lengths: NDArray[np.int64], batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Return one epoch's batches: a new shuffle each epoch, similar lengths together, order of batches random."""
    draw = generator(seed, "batches", epoch)
    order = draw.permutation(len(lengths))
    batches: list[NDArray[np.int64]] = []
    pool = batch_size * _POOL_BATCHES
    for start in range(0, len(order), pool):
        part = order[start : start + pool]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches.extend(part[i : i + batch_size] for i in range(0, len(part), batch_size))
    return [batches[i] for i in draw.permutation(len(batches))]
