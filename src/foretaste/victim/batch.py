"""Texts to padded batches: tokenised once, bucketed by length, deterministic under a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foretaste.errors import ModelError
from foretaste.seeds import generator

__all__ = ["Encoded", "Word", "encode", "pad", "reach", "readable", "scoring_batches", "split", "training_batches"]

# Shuffled texts are sorted by length within pools of this many batches: padding shrinks to a few per cent while
# batches still mix the whole corpus.
_POOL_BATCHES = 32
# A word of more tokens is taken apart: where nothing separates words, a whole text would be one.
_LONGEST_WORD = 8


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
    encodings = tokenizer(readable(texts), padding=False, truncation=True, max_length=max_length).encodings
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
    encodings = tokenizer(readable(texts), padding=False, truncation=True, max_length=max_length).encodings
    ends = [max((end for _, end in e.offsets), default=0) for e in encodings]  # special tokens lie at (0, 0)
    read = [end if e.overflowing else len(text) for text, e, end in zip(texts, encodings, ends, strict=True)]
    return np.array(read, dtype=np.int64)


class Word(NamedTuple):
    """What a tokenizer takes for a word: where it lies in the text, and the tokens that it is read as."""

    start: int
    end: int
    ids: tuple[int, ...]


def split(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[list[Word]]:
    """Divide what `encode` reads of texts that are `readable` into words, in order.

    A word ends where the tokenizer's own words do, at white space, and after eight tokens. Two words with the same
    tokens are the same to the model, however they are written.
    """
    if not texts:
        return []
    encodings = tokenizer(list(texts), padding=False, truncation=True, max_length=max_length).encodings
    return [_words_of(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]


def _words_of(text: str, encoding: Any) -> list[Word]:
    words = list[Word]()
    last = None
    tokens = zip(encoding.ids, encoding.offsets, encoding.word_ids, encoding.special_tokens_mask, strict=True)
    for token, (start, end), number, is_special in tokens:
        if is_special:
            continue
        own = words[-1] if words else None
        is_new = own is None or number != last or start > own.end or text[start : start + 1].isspace()
        if own is None or is_new or len(own.ids) == _LONGEST_WORD:
            words.append(Word(start, end, (token,)))
        else:
            words[-1] = Word(min(own.start, start), max(own.end, end), (*own.ids, token))
        last = number
    return words


def readable(texts: Sequence[str]) -> list[str]:
    """Return texts as tokenizers take them: surrogates in pairs joined, lone ones U+FFFD."""
    return [_without_surrogates(text) for text in texts]


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
