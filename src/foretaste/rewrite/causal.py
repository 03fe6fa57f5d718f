"""Perplexities by a causal language model, of a text and of all texts that lack one of its words, in few passes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foretaste.cost import count_forwards
from foretaste.errors import ModelError
from foretaste.victim.batch import pad, readable

__all__ = ["CausalModel"]

Array = NDArray[np.float64]
# Letters of a text for each token that the model reads at most: no more are looked at, however long a word.
_LETTERS = 16
# Tokens read at once. On a processor more do not fit its caches, their logits least of all (GPT-2: 1.6 times slower).
_AT_ONCE, _AT_ONCE_ON_GPU = 256, 4096


class _Gap(NamedTuple):
    """A text that lacks a word: which text and (from 1) word, its tokens, and how many begin the whole text, too."""

    text: int
    word: int
    ids: list[int]
    shared: int


class CausalModel:
    """A causal language model with its tokenizer; of each text it reads `max_length` tokens.

    The text that lacks word i begins as the whole text does: those tokens are read once for all, and only what follows
    the gap is read anew, from the model's cache; a model that cannot do this reads every text whole. What a text gets
    does not depend on the texts beside it.
    """

    def __init__(self, model: Any, tokenizer: Any, max_length: int = 256) -> None:
        self._model, self._tokenizer, self._max_length = model.eval(), tokenizer, max_length
        known = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, 0)
        self._start = next(token for token in known if token is not None)
        self._tokens = _AT_ONCE if model.device.type == "cpu" else _AT_ONCE_ON_GPU
        self._check_causal()
        windows = [getattr(model.config, name, None) for name in ("sliding_window", "window_size", "attention_window")]
        is_narrow = any(isinstance(window, int) and window < max_length for window in windows)
        self._is_shared = not is_narrow and self._agrees()

    def perplexities(self, texts: Sequence[str]) -> Array:
        """Return the perplexity of each text, its first token after the start sign included, `(N,) float64`."""
        ids = self._ids(texts)
        found = np.ones(len(ids))
        for batch in self._batches([len(row) for row in ids]):
            rows = [ids[i] for i in batch]
            logits, _ = self._read(rows)
            wanted = [(place, at, token) for place, row in enumerate(rows) for at, token in enumerate(row[1:])]
            terms = iter(_log_likely(logits, wanted))
            for place, row in zip(batch, rows, strict=True):
                own = [next(terms) for _ in row[1:]]
                found[place] = np.exp(-np.mean(own)) if own else 1.0
        return found

    def deletions(self, texts: Sequence[Sequence[str]]) -> list[Array]:
        """Return, for texts as words, the perplexity as they are and without each word, `(n + 1,) float64` each.

        Without a word that the model does not get to read it is infinite: nobody knows that it does not belong.
        """
        read = [self._heads(words) for words in texts]
        unread = [len(words) - len(head) for words, head in zip(texts, read, strict=True)]
        made = self._of_heads(read)
        whole = self._ids([" ".join(words) for words in read])
        for words, ids, own in zip(read, whole, made, strict=True):
            if len(ids) == self._max_length:  # it may be cut: without a word behind the cut the model reads the same
                own[1:][[row == ids for row in self._ids(_versions(words)[1:])]] = np.inf
        return [np.append(own, np.full(more, np.inf)) for own, more in zip(made, unread, strict=True)]

    def _heads(self, words: Sequence[str]) -> list[str]:
        """Return the first words, as many as could be read with any one left out: none is less than a token."""
        ends = np.cumsum([len(word) + 1 for word in words[: self._max_length + 1]])
        count = int((ends <= self._max_length * _LETTERS).sum())
        return list(words[:count])

    def _of_heads(self, texts: Sequence[Sequence[str]]) -> list[Array]:
        if not self._is_shared:
            return [self.perplexities(_versions(words)) for words in texts]
        found = [np.empty(0)] * len(texts)
        lengths = [len(row) for row in self._ids([" ".join(words) for words in texts])]
        for batch in self._batches(lengths):
            for place, own in zip(batch, self._deletions([texts[i] for i in batch]), strict=True):
                found[place] = own
        return found

    def _check_causal(self) -> None:
        """Refuse a model in which a token sees those behind it: it would know every word that it is asked about."""
        one, other = ([self._start, 1, 2, last] for last in (1, 2))
        logits, _ = self._read([one, other])
        if not torch.allclose(logits[0, :3], logits[1, :3], rtol=1e-3, atol=1e-3):
            raise ModelError("This is no causal language model: its tokens see those behind them.", code="not_causal")

    def _agrees(self) -> bool:
        """Say whether the model reads on behind a gap as if nothing had been there.

        Not so where a token's place is told from the cache (ALiBi in MPT and BLOOM), or without a cache at all.
        """
        words = ["a", "b", "c", "d", "e"]
        try:
            return np.allclose(self._deletions([words])[0], self.perplexities(_versions(words)), rtol=1e-3)
        except (AttributeError, TypeError, ValueError, RuntimeError):
            return False

    def _deletions(self, texts: Sequence[Sequence[str]]) -> list[Array]:
        versions = [self._ids(_versions(words)) for words in texts]
        whole, lacking = [rows[0] for rows in versions], [rows[1:] for rows in versions]
        logits, cache = self._read(whole, keeps=True)
        gaps = [
            _Gap(text, word + 1, row, _common(row, whole[text]))
            for text, rows in enumerate(lacking)
            for word, row in enumerate(rows)
        ]
        wanted = [(text, at, token) for text, row in enumerate(whole) for at, token in enumerate(row[1:])]
        size = len(wanted)
        hanging = [gap for gap in gaps if gap.shared < len(gap.ids)]
        wanted += [(gap.text, gap.shared - 1, gap.ids[gap.shared]) for gap in hanging]  # it follows what was read
        terms = _log_likely(logits, wanted)
        del logits
        ends = np.cumsum([len(row) - 1 for row in whole])
        own = np.split(terms[:size], ends[:-1])  # of each text's own tokens
        sums = [np.empty(len(words) + 1) for words in texts]
        counts = [np.ones(len(words) + 1) for words in texts]
        for text, row in enumerate(whole):
            sums[text][0], counts[text][0] = own[text].sum(), max(1, len(row) - 1)
        for gap in gaps:
            sums[gap.text][gap.word] = own[gap.text][: gap.shared - 1].sum()
            counts[gap.text][gap.word] = max(1, len(gap.ids) - 1)
        for gap, term in zip(hanging, terms[size:], strict=True):
            sums[gap.text][gap.word] += term
        longer = [gap for gap in hanging if gap.shared < len(gap.ids) - 1]
        for batch in self._batches([len(gap.ids) - gap.shared for gap in longer]):
            chosen = [longer[i] for i in batch]
            for gap, rest in zip(chosen, self._behind(chosen, cache), strict=True):
                sums[gap.text][gap.word] += rest
        return [np.exp(-total / count) for total, count in zip(sums, counts, strict=True)]

    def _batches(self, lengths: Sequence[int]) -> Iterator[NDArray[np.int64]]:
        """Yield indices of texts of similar length, longest first, as many at a time as make so many tokens."""
        order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
        start = 0
        while start < len(order):
            size = max(1, self._tokens // max(1, lengths[order[start]]))
            yield order[start : start + size]
            start += size

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        rows = self._tokenizer(readable(texts), add_special_tokens=False)["input_ids"]
        return [[self._start, *row[: self._max_length - 1]] for row in rows]

    @torch.inference_mode()
    def _read(self, rows: Sequence[Sequence[int]], keeps: bool = False) -> tuple[Tensor, Any]:
        """Return logits `(B, T, V)` of what follows each token, and the cache if it `keeps` one."""
        ids, mask = pad(rows, self._model.device)
        count_forwards(len(rows))
        output = self._model(input_ids=ids, attention_mask=mask, use_cache=keeps)
        return output.logits, output.past_key_values if keeps else None

    @torch.inference_mode()
    def _behind(self, gaps: Sequence[_Gap], cache: Any) -> Array:
        """Return the log probability of what stands behind each gap but its first token, `(B,) float64`."""
        device = self._model.device
        rest = [gap.ids[gap.shared :] for gap in gaps]
        ids, mask = pad([row[:-1] for row in rest], device)
        shared = torch.tensor([gap.shared for gap in gaps], device=device)
        longest = int(shared.max())
        count_forwards(len(gaps))
        before = torch.arange(longest, device=device) < shared[:, None]  # (B, P)
        output = self._model(
            input_ids=ids,
            attention_mask=torch.cat([before.long(), mask], dim=1),
            position_ids=shared[:, None] + torch.arange(ids.shape[1], device=device),  # (B, T)
            past_key_values=_rows_of(cache, [gap.text for gap in gaps], longest),
            use_cache=True,
        )
        terms = _log_likely(
            output.logits, [(place, at, token) for place, row in enumerate(rest) for at, token in enumerate(row[1:])]
        )
        starts = np.cumsum([0, *(len(row) - 1 for row in rest[:-1])])
        found: Array = np.add.reduceat(terms, starts)
        return found


def _versions(words: Sequence[str]) -> list[str]:
    return [" ".join(words), *(" ".join([*words[:i], *words[i + 1 :]]) for i in range(len(words)))]


def _rows_of(cache: Any, rows: Sequence[int], longest: int) -> Any:
    """Return a cache of these rows, cut to so many tokens; the one given stays as it is."""
    own = copy.copy(cache)
    own.layers = [copy.copy(layer) for layer in cache.layers]
    own.batch_select_indices(torch.tensor(rows, device=own.layers[0].keys.device))
    own.crop(longest - own.get_seq_length())
    return own


def _log_likely(logits: Tensor, wanted: Sequence[tuple[int, int, int]]) -> Array:
    """Return the log probability of tokens, each (text, place, token) where `logits` say what follows the place."""
    texts, places, tokens = torch.tensor(wanted, dtype=torch.int64, device=logits.device).reshape(-1, 3).unbind(1)
    whole = logits.float().logsumexp(-1)  # (B, T, V) -> (B, T)
    found: Array = (logits[texts, places, tokens].float() - whole[texts, places]).double().cpu().numpy()
    return found


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts have in common at their beginnings, the start sign among them."""
    shared = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        shared += 1
    return shared
