"""A classifier from nothing: a function of texts and seed, and one that learns."""

from __future__ import annotations

import numpy as np
import pytest

from foretaste.data import toy_corpus
from foretaste.tune.loop import TuneSettings, tune
from foretaste.victim.fresh import fresh_classifier

pytestmark = pytest.mark.usefixtures("one_thread")

CORPUS = toy_corpus().sample(300, 1)


def test_it_is_a_function_of_its_arguments() -> None:
    first, again, other = (
        fresh_classifier(CORPUS.texts, CORPUS.label_names, max_length=32, seed=seed) for seed in (0, 0, 1)
    )
    assert first.base_fingerprint == again.base_fingerprint != other.base_fingerprint
    assert first.encode(CORPUS.texts).ids == again.encode(CORPUS.texts).ids


def test_it_reads_any_text_and_no_more_than_it_was_told() -> None:
    model = fresh_classifier(CORPUS.texts, CORPUS.label_names, max_length=16, seed=0, vocabulary=200)
    said = model.predict(["", "\x00 \u4e2d\u6587 \U0001f600", "word " * 500, "A Word"])
    assert np.isfinite(said.logits).all()
    assert said.is_truncated.tolist() == [False, False, True, False]
    assert len(model.tokenizer) <= 200


def test_it_learns_its_task() -> None:
    corpus = toy_corpus()
    model = fresh_classifier(corpus.texts, corpus.label_names, max_length=32, seed=0, width=32)
    tune(model, corpus, TuneSettings(epochs=3, learning_rate=2e-3, keep="last"), seed=0)
    test = toy_corpus("test").sample(200, 1)
    assert float((model.predict(test.texts).labels == test.labels).mean()) > 0.8
