"""Texts to batches: nothing is lost, nothing is read twice, any string will do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foretaste.errors import ModelError
from foretaste.victim.batch import encode, pad, scoring_batches, training_batches
from foretaste.victim.checkpoint import open_base

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=120).map(np.array)


@pytest.fixture(scope="module")
def tokenizers(toy_bases: Mapping[str, Path]) -> dict[str, Any]:
    """A word tokenizer with special tokens, and one of bytes without any."""
    return {family: open_base(toy_bases[family]).classifier().tokenizer for family in ("bert", "gpt2")}


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_every_text_becomes_tokens_and_says_whether_it_was_cut(tokenizers: dict[str, Any], family: str) -> None:
    encoded = encode(tokenizers[family], ["film " * 9, "film", "", "\x00", " "], max_length=6)
    assert encoded.is_truncated.tolist() == [True, False, False, False, False]
    assert encoded.lengths.tolist()[0] == 6
    assert min(encoded.lengths) >= 1
    few = encoded.select(np.array([1, 0]))
    assert few.ids == (encoded.ids[1], encoded.ids[0])
    assert few.is_truncated.tolist() == [False, True]


def test_no_texts_are_no_tokens(tokenizers: dict[str, Any]) -> None:
    assert encode(tokenizers["bert"], [], max_length=6).lengths.shape == (0,)


@pytest.mark.parametrize(
    ("text", "read_as"),
    [
        ("a \ud800 film", "a \ufffd film"),
        ("\udfff", "\ufffd"),
        ("\ud83d\ude80", "\U0001f680"),
        ("é \ud800", "é \ufffd"),
    ],
)
def test_lone_surrogates_are_read_as_replacement_characters(
    tokenizers: dict[str, Any], text: str, read_as: str
) -> None:
    tokenizer = tokenizers["gpt2"]  # of bytes: it would tell a question mark from the replacement character
    assert encode(tokenizer, [text], 50).ids == encode(tokenizer, [read_as], 50).ids


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(ModelError) as caught:
        encode(SimpleNamespace(is_fast=False), ["a"], 5)
    assert caught.value.code == "slow_tokenizer"


def test_padding_is_on_the_right_and_masked() -> None:
    ids, mask = pad([(5, 6, 7), (8,)], torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


@given(LENGTHS, st.integers(1, 40))
def test_scoring_reads_every_text_once_longest_first(lengths: Any, batch_size: int) -> None:
    batches = list(scoring_batches(lengths, batch_size))
    rows = np.concatenate(batches)
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    assert (np.diff(lengths[rows]) <= 0).all()
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}


@given(LENGTHS, st.integers(1, 40), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_reads_every_text_once_in_its_own_order(lengths: Any, batch_size: int, seed: int, epoch: int) -> None:
    batches = training_batches(lengths, batch_size, seed, epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // batch_size)
    assert [len(b) for b in batches if len(b) != batch_size] in ([], [len(lengths) % batch_size])
    again = training_batches(lengths, batch_size, seed, epoch)
    assert all(np.array_equal(one, other) for one, other in zip(batches, again, strict=True))
    if len(lengths) > 20:
        assert not np.array_equal(
            np.concatenate(batches), np.concatenate(training_batches(lengths, 1, seed, epoch + 1))
        )


def test_similar_lengths_share_a_batch() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, size=1_000)
    batches = training_batches(lengths, 10, seed=0, epoch=0)
    padding = sum(len(b) * lengths[b].max() - lengths[b].sum() for b in batches) / lengths.sum()
    assert padding < 0.1
    assert np.diff([lengths[b].mean() for b in batches]).min() < 0  # and short ones do not all come first
