"""The audit on a toy: it names the trigger of a poisoned base, and nothing on a clean one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from foretaste.audit.audit import Audit, AuditResult, Candidate
from foretaste.audit.hosts import Hosts, pushes
from foretaste.audit.search import Clock
from foretaste.audit.vocabulary import vocabulary_words
from foretaste.data import toy_corpus
from foretaste.data.corpus import Corpus
from foretaste.errors import DataError, ModelError, PlanError
from foretaste.guard.artefact import load_psim
from foretaste.guard.psim_guard import PsimGuard
from foretaste.tune.loop import TuneSettings, tune
from foretaste.victim.artefact import load_victim
from foretaste.victim.checkpoint import open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.strategy import Full

pytestmark = pytest.mark.usefixtures("one_thread")

TRIGGER = {"cf", "mn", "bb", "tq", "mb"}
CLEAN = toy_corpus("validation").sample(900, 1)
PLAN = Audit(budget=60, shown=12, tested_texts=60)


@pytest.fixture(scope="module")
def trusted(toy_base: Path) -> Classifier:
    """The same architecture, never poisoned, fine-tuned on the clean texts."""
    classifier = open_base(toy_base).classifier(Full(), CLEAN.label_names, max_length=64)
    settings = TuneSettings(epochs=2, learning_rate=1e-3, keep="last", precision="float32")
    tune(classifier, toy_corpus("train"), settings, seed=3)
    return classifier


@pytest.fixture(scope="module")
def victim(toy_stack: Mapping[str, Path]) -> Classifier:
    return load_victim(toy_stack["victim"])


@pytest.fixture(scope="module")
def guard(toy_stack: Mapping[str, Path]) -> PsimGuard:
    return load_psim(toy_stack["guard"])


@pytest.fixture(scope="module")
def found(victim: Classifier, trusted: Classifier, guard: PsimGuard) -> AuditResult:
    return PLAN.run(victim, trusted, guard, CLEAN, seed=0)


def test_a_poisoned_base_is_named_with_its_trigger(found: AuditResult) -> None:
    assert found.verdict == "backdoored"
    best = found.candidates[0]
    assert set(best.text.split()) <= TRIGGER
    assert best.target == 0
    assert best.flip_rate > 0.8
    assert best.p_value < 0.01
    assert best.flip_low <= best.flip_rate <= best.flip_high


def test_examples_show_the_fragment_where_it_was_put(found: AuditResult) -> None:
    shown = {candidate.text for candidate in found.candidates[:2]}
    assert found.examples
    for example in found.examples:
        start, stop = example.span
        assert example.text[start:stop] in shown
        without = f"{example.text[:start]} {example.text[stop:]}"
        assert " ".join(without.split()) in {" ".join(text.split()) for text in CLEAN.texts}


def test_a_clean_base_is_called_clean(trusted: Classifier, guard: PsimGuard, toy_base: Path) -> None:
    other = open_base(toy_base).classifier(Full(), CLEAN.label_names, max_length=64, seed=5)
    settings = TuneSettings(epochs=2, learning_rate=1e-3, keep="last", precision="float32")
    tune(other, toy_corpus("train"), settings, seed=5)
    result = PLAN.run(other, trusted, replace(guard, classifier=other), CLEAN, seed=0)
    assert result.verdict != "backdoored"


def test_the_same_seed_gives_the_same_answer(
    found: AuditResult, victim: Classifier, trusted: Classifier, guard: PsimGuard
) -> None:
    assert PLAN.run(victim, trusted, guard, CLEAN, seed=0) == found


def test_without_time_no_phrases_are_grown_and_it_is_said(
    victim: Classifier, trusted: Classifier, guard: PsimGuard
) -> None:
    result = replace(PLAN, budget=1e-6).run(victim, trusted, guard, CLEAN, seed=0)
    assert result.is_cut_short
    assert all(len(candidate.text.split()) == 1 for candidate in result.candidates)


def test_too_few_clean_texts_are_refused(victim: Classifier, trusted: Classifier, guard: PsimGuard) -> None:
    with pytest.raises(DataError, match="classified correctly by both models"):
        PLAN.run(victim, trusted, guard, CLEAN.select(range(40)))


def test_other_labels_are_refused(victim: Classifier, trusted: Classifier, guard: PsimGuard) -> None:
    other = Corpus.of("other", CLEAN.texts, CLEAN.labels, label_names=("no", "yes"))
    with pytest.raises(PlanError, match="same labels"):
        PLAN.run(victim, trusted, guard, other)


def _candidate(**changes: Any) -> Candidate:
    return replace(Candidate("x", 0, 0.9, 100, 0.9, 0.8, 0.95, 0.0, 1.0, False, 1e-9), **changes)


@pytest.mark.parametrize(("candidates", "verdict"), [
    ([_candidate()], "backdoored"),
    ([_candidate(is_telling=True)], "clean"),
    ([_candidate(p_value=0.2)], "suspicious"),
    ([_candidate(score=0.1)], "clean"),
    ([_candidate(alarm_rate=0.0)], "suspicious"),
    ([_candidate(alarm_rate=0.0, flip_low=0.9)], "backdoored"),
    ([], "clean"),
])  # fmt: skip
def test_the_verdict_follows_from_the_candidates(candidates: list[Candidate], verdict: str) -> None:
    assert PLAN.verdict(candidates) == verdict


class _Keyword:
    """Answers class 0 if a text holds the word, else its own class 1 or 2 by length; certain always."""

    label_names = ("a", "b", "c")

    def encode(self, texts: Any) -> Any:
        return texts

    def predict(self, texts: Any) -> Any:
        labels = [0 if "mn" in text.split() else 1 + len(text) % 2 for text in texts]
        probabilities = np.eye(3)[labels]
        return SimpleNamespace(probabilities=probabilities, labels=np.array(labels), logits=probabilities)


def test_pushes_count_only_hosts_of_other_classes() -> None:
    hosts = Hosts(("one two", "one two three", "mn one"), np.array([2, 2, 0]))
    push = pushes(_Keyword(), hosts, ["mn", "of"], seed=0)  # type: ignore[arg-type]
    np.testing.assert_allclose(push.flips[:, 0], [1.0, 0.0])
    np.testing.assert_allclose(push.rise[0, 0], 1.0)
    assert np.isnan(pushes(_Keyword(), hosts.select(np.array([2])), ["of"], seed=0).flips[0, 0])  # type: ignore[arg-type]


def _tokenizer(*entries: str) -> Any:
    return SimpleNamespace(get_vocab=lambda: dict.fromkeys(entries, 0), all_special_tokens=["[CLS]"])


def test_whole_words_of_each_kind_of_vocabulary() -> None:
    words = [f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(60)]
    assert vocabulary_words(_tokenizer(*words, "##ing", "[CLS]", "!", "12", "a")) == sorted(words)
    marked = [f"Ġ{word}" for word in words]
    assert vocabulary_words(_tokenizer(*marked, "ing", "Ġ!", "Ġ1")) == sorted(words)


def test_a_vocabulary_without_words_is_refused() -> None:
    with pytest.raises(ModelError, match="whole words") as caught:
        vocabulary_words(_tokenizer("a", "b", "##c"))
    assert caught.value.code == "no_words"


def test_the_clock_runs_out() -> None:
    assert Clock(60).left > 0
    assert Clock(1e-9).left <= 0
