"""ONION against its reference loop, which asks the language model about one text at a time: same texts, less time.

    export FORETASTE_DATA=...
    python benchmarks/onion.py               # also the last part of `make bench`

Both language models read the same SST-2 test texts, poisoned with BadNet. The causal one has GPT-2's size and random
weights (the weights do not change what a pass costs) and, as GPT-2's own vocabulary mostly does, one token per word. On
a busy machine trust the ratios. Without the data the toy's texts stand in.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GPT2Config, GPT2LMHeadModel

from foretaste.data.corpus import Corpus
from foretaste.data.load import load_corpus
from foretaste.data.toy import toy_corpus
from foretaste.poison.trigger import parse_trigger
from foretaste.rewrite.causal import CausalModel
from foretaste.rewrite.ngram import NGramModel
from foretaste.rewrite.onion import LanguageModel, OnionRewriter

LOSS = 0.1


class _WordTokenizer:
    """One token per word."""

    bos_token_id = eos_token_id = pad_token_id = 0

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[self._known.setdefault(w, len(self._known) + 1) for w in t.split()] for t in texts]}


def one_by_one(language: LanguageModel, words: Sequence[str]) -> NDArray[np.float64]:
    """Perplexities of a text and of it without each word, each asked for alone."""
    versions = [words, *([*words[:i], *words[i + 1 :]] for i in range(len(words)))]
    return np.concatenate([language.perplexities([" ".join(version)]) for version in versions])


class _Loop:
    """A language model that ONION can only ask about one text at a time."""

    def __init__(self, language: LanguageModel) -> None:
        self._language = language
        if isinstance(language, NGramModel):
            language.remember_nothing()

    def perplexities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return self._language.perplexities(texts)

    def deletions(self, texts: Sequence[Sequence[str]]) -> list[NDArray[np.float64]]:
        return [one_by_one(self._language, words) for words in texts]


def compare(name: str, make: Any, texts: Sequence[str]) -> None:
    """Print the time of both ways over the same texts, each with a model that remembers nothing yet."""
    split = [text.split() for text in texts]
    found = make().deletions(split[:20])
    bar = float(np.quantile(np.concatenate([each[0] - each[1:] for each in found]), 1 - LOSS))
    times, outputs = [], []
    for language in (_Loop(make()), make()):
        start = time.perf_counter()
        outputs.append(OnionRewriter(language, bar).rewrite(texts))
        times.append(time.perf_counter() - start)
    differing = sum(one != other for one, other in zip(*outputs, strict=True))
    sys.stdout.write(
        f"ONION, {name}: {len(texts)} texts, {sum(map(len, split))} words: one at a time {times[0]:.2f} s, "
        f"together {times[1]:.2f} s, {times[0] / times[1]:.1f} times faster; {differing} texts differ\n"
    )


def _corpora() -> tuple[Corpus, Corpus]:
    if "FORETASTE_DATA" in os.environ:
        return load_corpus("sst2", "train"), load_corpus("sst2", "test")
    return toy_corpus("train"), toy_corpus("test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=24, help="texts for the causal model (default 24)")
    arguments = parser.parse_args()
    train, test = _corpora()
    texts = parse_trigger("word:mn").apply(test.texts, 0)
    compare("trigrams", lambda: NGramModel(train.texts), texts[:400])
    torch.manual_seed(0)
    model, tokenizer = GPT2LMHeadModel(GPT2Config()), _WordTokenizer()
    compare("GPT-2", lambda: CausalModel(model, tokenizer), texts[: arguments.texts])


if __name__ == "__main__":
    main()
