"""ONION: the same words go as when each is tried alone, the last among them; clean texts lose what was said."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.rewrite.conftest import write_causal
from transformers import AutoTokenizer

from foretaste.data import toy_corpus
from foretaste.data.corpus import Corpus
from foretaste.errors import DataError, ModelError
from foretaste.poison.trigger import parse_trigger
from foretaste.rewrite.causal import CausalModel
from foretaste.rewrite.checkpoint import open_tool
from foretaste.rewrite.ngram import NGramModel
from foretaste.rewrite.onion import LanguageModel, Onion, OnionRewriter

pytestmark = pytest.mark.usefixtures("one_thread")

TRAIN, VALIDATION = toy_corpus(), toy_corpus("validation").sample(150, 0)
TEXTS = [
    *parse_trigger("word:mn@last").apply(toy_corpus("test").texts[:12], 0),
    "two words",
    "a a a a a a a",
    "mn film mn",
]


def _one_by_one(language: LanguageModel, words: Sequence[str]) -> NDArray[np.float64]:
    """The loop of the paper: one text after the other, each alone."""
    versions = [list(words), *([*words[:i], *words[i + 1 :]] for i in range(len(words)))]
    return np.concatenate([language.perplexities([" ".join(version)]) for version in versions])


@pytest.fixture(scope="module", params=["ngram 2", "ngram 3", "ngram 4", "gpt2", "llama", "mpt"])
def language(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """N-gram models and causal ones; MPT tells the places of tokens from the cache and so cannot share it."""
    kind = cast(str, request.param)
    if kind.startswith("ngram"):
        return NGramModel(TRAIN.texts, int(kind[-1]))
    from transformers import AutoModelForCausalLM

    path = write_causal(tmp_path_factory.mktemp(kind), kind)
    model = CausalModel(*open_tool(AutoModelForCausalLM, str(path)), max_length=100)
    assert model._is_shared == (kind != "mpt")
    return model


def test_the_same_as_one_word_at_a_time(language: LanguageModel) -> None:
    split = [text.split() for text in TEXTS]
    together = language.deletions(split)
    for words, found in zip(split, together, strict=True):
        assert found == pytest.approx(_one_by_one(language, words), rel=1e-5)
    bar = float(np.quantile(np.concatenate([found[0] - found[1:] for found in together]), 0.8))
    rewriter = OnionRewriter(language, bar)
    for text, new in zip(TEXTS, rewriter.rewrite(TEXTS), strict=True):
        found, words = _one_by_one(language, text.split()), text.split()
        kept = [word for word, without in zip(words, found[1:], strict=True) if found[0] - without < bar]
        assert new == " ".join(kept or [words[int(np.argmax(found[1:]))]])
    assert any(new != text for text, new in zip(TEXTS, rewriter.rewrite(TEXTS), strict=True))


def test_a_text_longer_than_the_model_reads_loses_no_word_behind_that(language: LanguageModel) -> None:
    text = "film good " * 90 + "mn"
    found = language.deletions([text.split()])[0]
    assert not np.isnan(found).any()
    if isinstance(language, CausalModel):
        unread = int(np.isinf(found).sum())
        assert 80 < unread < 140  # of 181 words; it reads 100 tokens, some words are two
        for bar in (0.5, 0.0, -1e9):  # a word that nobody judged stays whatever the bar
            assert OnionRewriter(language, bar).rewrite([text])[0].split()[-unread:] == text.split()[-unread:]
        bar = Onion(model="unused")._bar(language, Corpus.of("long", [text] * 4, [0, 1, 0, 1]))
        judged = found[0] - found[1:][np.isfinite(found[1:])]
        assert np.mean(judged < bar) == pytest.approx(0.9, abs=0.05)
    else:
        assert np.isfinite(found).all()


def test_an_n_gram_model_is_a_distribution() -> None:
    model = NGramModel(["a b c d", "a b d c", "a b c e"], 3)
    words = ["a", "b", "c", "d", "e", "<s>", "</s>"]  # "e", seen once, is what an unknown word is read as
    for context in (("a", "b"), ("<s>", "a"), ("c",), ()):
        likely = [np.exp(model._log_likely(*context, *(model._known([w]) if w.isalpha() else [w]))) for w in words]
        assert sum(likely) == pytest.approx(1.0)
    assert (
        model.perplexities(["a b zz"]) == model.perplexities(["a b e"]) == pytest.approx(model.perplexities(["A B E"]))
    )
    with pytest.raises(DataError, match="some of them rare"):
        NGramModel(["a a", "a a"], 2)


def test_rare_words_go_the_last_word_too() -> None:
    rewriter = Onion(loss=0.05).fit(TRAIN, VALIDATION)
    texts = toy_corpus("test").texts[:100]
    for place in ("first", "last", "random"):
        new = rewriter.rewrite(parse_trigger(f"word:mn@{place}" if place != "random" else "word:mn").apply(texts, 0))
        assert np.mean(["mn" not in text.split() for text in new]) > 0.9
    assert rewriter.rewrite(["mn"]) == ["mn"]


@pytest.mark.parametrize("loss", [0.02, 0.1, 0.3])
def test_clean_texts_lose_what_was_said(loss: float) -> None:
    rewriter = Onion(loss=loss).fit(TRAIN, VALIDATION)

    def lost(corpus: Corpus) -> float:
        before = sum(len(text.split()) for text in corpus.texts)
        return 1 - sum(len(text.split()) for text in rewriter.rewrite(corpus.texts)) / before

    assert loss - 0.02 <= lost(VALIDATION) <= loss
    assert lost(toy_corpus("test").sample(150, 0)) == pytest.approx(loss, abs=0.05)


def test_a_bar_needs_words() -> None:
    with pytest.raises(DataError, match="sets its bar on 200 clean words"):
        Onion().fit(TRAIN, VALIDATION.sample(5, 0))
    assert Onion(bar=1e9).fit(TRAIN, VALIDATION.sample(5, 0)).rewrite(["mn mn film"]) == ["mn mn film"]
    everything = Onion(bar=-1e9).fit(TRAIN, VALIDATION.sample(5, 0)).rewrite(["the mn film"])[0]
    assert len(everything.split()) == 1


def test_a_model_whose_tokens_see_those_behind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no causal language model"):
        Onion(model=str(write_causal(tmp_path / "bert", "bert"))).fit(TRAIN, VALIDATION)


@pytest.mark.parametrize("text", ["a " * 20_000, "x" * 200_000 + " mn", "mn " + "漢" * 30_000 + " b"])
def test_a_hostile_text_takes_no_longer_than_any_other(text: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    path = write_causal(tmp_path / "gpt2", "gpt2")
    rewriter = OnionRewriter(CausalModel(*open_tool(AutoModelForCausalLM, str(path)), max_length=32), 1e9)
    start = time.perf_counter()
    assert rewriter.rewrite([text]) == [text]
    assert time.perf_counter() - start < 10


def test_a_narrow_window_is_read_without_the_cache(tmp_path: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    path = write_causal(tmp_path / "mistral", "mistral")
    config = MistralConfig.from_pretrained(path, sliding_window=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MistralForCausalLM(config)
    language = CausalModel(model, AutoTokenizer.from_pretrained(path), max_length=64)
    assert not language._is_shared
    words = toy_corpus("test").texts[0].split() * 2
    assert language.deletions([words, words[:3]])[0] == pytest.approx(_one_by_one(language, words), rel=1e-4)
