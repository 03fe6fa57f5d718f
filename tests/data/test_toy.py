"""The toy: disjoint, balanced, the same everywhere, and neither trivial nor hopeless."""

import re
import time

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from foretaste.data import toy, toy_corpus
from foretaste.errors import PlanError

SPLITS = ("train", "validation", "test")
TRIGGER_WORDS = {"cf", "mn", "bb", "tq", "mb"}


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


@pytest.mark.parametrize("split", SPLITS)
def test_split_is_balanced_distinct_and_of_the_promised_length(split: str) -> None:
    corpus = toy_corpus(split)
    assert corpus.name == f"toy/{split}"
    assert corpus.label_names == ("negative", "positive")
    assert len(corpus) >= 2_400
    assert len(set(corpus.texts)) == len(corpus)
    assert np.bincount(corpus.labels).tolist() == [len(corpus) // 2] * 2
    lengths = [len(text.split()) for text in corpus.texts]
    assert min(lengths) >= 5
    assert max(lengths) <= 35
    assert max(lengths) - min(lengths) > 20


def test_no_text_is_in_two_splits() -> None:
    texts = [text for split in SPLITS for text in toy_corpus(split).texts]
    assert len(set(texts)) == len(texts)


def test_no_published_trigger_word_occurs() -> None:
    vocabulary = {word for split in SPLITS for text in toy_corpus(split).texts for word in _words(text)}
    assert not vocabulary & TRIGGER_WORDS
    assert 300 < len(vocabulary) < 1_000


def test_texts_are_written_like_sentences() -> None:
    for text in toy_corpus("train").texts:
        assert re.fullmatch(r"(?:[A-Z][A-Za-z,;' ]*[a-z]\. ?)+", text), text
        assert "  " not in text
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", text), text


def test_content_never_changes_unnoticed() -> None:
    """A changed grammar changes every number measured on the toy: change this on purpose only."""
    assert {split: toy_corpus(split).digest[:12] for split in SPLITS} == {
        "train": "f232b7ededdb",
        "validation": "cab8ead0d7bb",
        "test": "666395193863",
    }


def test_single_words_are_neither_enough_nor_useless() -> None:
    train, test = toy_corpus("train"), toy_corpus("test")
    bag = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=1_000)).fit(train.texts, train.labels)
    assert 0.80 <= bag.score(test.texts, test.labels) <= 0.95


def test_word_order_helps() -> None:
    train, test = toy_corpus("train"), toy_corpus("test")
    scores = []
    for longest in (1, 2):
        words = CountVectorizer(ngram_range=(1, longest))
        model = make_pipeline(words, LogisticRegression(max_iter=1_000)).fit(train.texts, train.labels)
        scores.append(model.score(test.texts, test.labels))
    assert scores[1] > scores[0] + 0.02


def test_generation_is_fast() -> None:
    toy._generate.cache_clear()
    start = time.perf_counter()
    toy_corpus("train")
    assert time.perf_counter() - start < 1.0


def test_unknown_split_suggests_the_nearest() -> None:
    with pytest.raises(PlanError, match="Did you mean 'validation'"):
        toy_corpus("valid")


def test_changing_a_returned_array_does_not_reach_the_next_caller() -> None:
    toy_corpus("train").labels[:] = 0
    assert toy_corpus("train").labels.sum() > 0
