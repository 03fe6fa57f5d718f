"""An evaluation against what one counts by hand, and against the guarded classifier that users call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from foretaste.data import toy_corpus
from foretaste.data.corpus import Corpus
from foretaste.errors import DataError, GuardError, PlanError, UndefinedRateError
from foretaste.experiment.evaluation import Evaluation, evaluate
from foretaste.guard.artefact import load_psim
from foretaste.guard.guarded import GuardedClassifier
from foretaste.guard.psim_guard import PsimGuard
from foretaste.poison.attack import triggered_test
from foretaste.poison.trigger import parse_trigger
from foretaste.victim.artefact import load_victim
from foretaste.victim.classifier import Classifier
from foretaste.victim.module import Output, TextModule

pytestmark = pytest.mark.usefixtures("one_thread")

TRIGGER = parse_trigger("word:cf mn bb tq mb")
CORPUS = toy_corpus("test").select(range(150))


@pytest.fixture(scope="module")
def victim(toy_stack: Mapping[str, Path]) -> Classifier:
    """The tiny victim."""
    return load_victim(toy_stack["victim"])


@pytest.fixture(scope="module")
def guard(toy_stack: Mapping[str, Path]) -> PsimGuard:
    """Its guard, with a bar so low that it errs on both sides."""
    found = load_psim(toy_stack["guard"])
    bar = float(np.quantile(found.score(CORPUS.texts), 0.8))
    return replace(found, threshold=bar, calibration=None)


@pytest.fixture(scope="module")
def evaluation(victim: Classifier, guard: PsimGuard) -> Evaluation:
    """Victim and guard on CORPUS."""
    return evaluate(victim, guard, CORPUS, TRIGGER)


def test_the_victim_alone_by_hand(victim: Classifier, evaluation: Evaluation) -> None:
    outcome = evaluation.outcome
    predicted = victim.predict(CORPUS.texts).labels
    right = sum(int(p) == int(t) for p, t in zip(predicted, CORPUS.labels, strict=True))
    assert (outcome.clean_accuracy.count, outcome.n_clean) == (right, len(CORPUS))

    others = [i for i in range(len(CORPUS)) if CORPUS.labels[i] != 0]
    triggered = TRIGGER.apply([CORPUS.texts[i] for i in others], 5)  # where the words stand matters little
    fooled = sum(int(label) == 0 for label in victim.predict(triggered).labels)
    assert outcome.n_poisoned == len(others)
    assert abs(outcome.attack_success_rate.count - fooled) <= 2
    assert outcome.attack_success_rate.value > 0.95
    strict = outcome.strict_attack_success_rate
    assert strict is not None
    assert strict.n == sum(int(predicted[i]) == int(CORPUS.labels[i]) for i in others)


def test_behind_the_guard_by_the_guarded_classifier(
    victim: Classifier, guard: PsimGuard, evaluation: Evaluation
) -> None:
    """Another path to the same rates: the labels and refusals a user of `foretaste check` gets."""
    guarded = GuardedClassifier(victim, guard)
    found = evaluation.outcome.guarded
    assert found is not None
    clean = guarded(CORPUS.texts)
    triggered = guarded(triggered_test(CORPUS, TRIGGER, 0, 0).corpus.texts)
    names = CORPUS.label_names
    right = sum(v.label == names[t] for v, t in zip(clean, CORPUS.labels, strict=True))
    assert found.clean_accuracy.count == right
    assert found.attack_success_rate.count == sum(v.label == names[0] for v in triggered)
    assert found.false_rejection_rate.count == sum(v.flagged for v in clean) == 30
    assert found.false_acceptance_rate.count == sum(not v.flagged for v in triggered)
    assert found.attack_success_rate.n == len(triggered)  # refused ones stay in the denominator


def test_the_columns_belong_to_the_texts(victim: Classifier, guard: PsimGuard, evaluation: Evaluation) -> None:
    for judged in (evaluation.clean, evaluation.triggered):
        predictions = victim.predict(judged.corpus.texts)
        np.testing.assert_array_equal(judged.predicted, predictions.labels)
        np.testing.assert_allclose(judged.confidence, predictions.probabilities.max(axis=1), rtol=0, atol=1e-6)
        assert judged.scores is not None
        np.testing.assert_allclose(judged.scores, guard.score(judged.corpus.texts), rtol=0, atol=1e-6)
        assert not judged.is_truncated.any()
    assert evaluation.clean.corpus is CORPUS
    assert (evaluation.triggered.corpus.labels == 1).all()


def test_without_a_guard_there_is_nothing_guarded(victim: Classifier) -> None:
    evaluation = evaluate(victim, None, CORPUS, TRIGGER)
    assert evaluation.outcome.guarded is None
    assert evaluation.clean.scores is None
    assert evaluation.triggered.scores is None


def test_a_guard_that_scored_on_its_own_counts_the_same(
    victim: Classifier, guard: PsimGuard, evaluation: Evaluation
) -> None:
    alone = evaluate(victim, None, CORPUS, TRIGGER)
    clean, triggered = evaluation.clean.scores, evaluation.triggered.scores
    assert clean is not None
    assert triggered is not None
    assert alone.behind(clean, triggered, guard.threshold) == evaluation.outcome
    nothing_passes = alone.behind(clean, np.ones(len(triggered)), guard.threshold).guarded
    assert nothing_passes is not None
    assert nothing_passes.attack_success_rate.count == nothing_passes.false_acceptance_rate.count == 0


def test_the_seed_places_the_trigger(victim: Classifier) -> None:
    one, same, other = (evaluate(victim, None, CORPUS, TRIGGER, seed=seed).triggered.corpus for seed in (0, 0, 1))
    assert one.texts == same.texts
    assert one.texts != other.texts


def test_another_target_has_other_texts(victim: Classifier) -> None:
    evaluation = evaluate(victim, None, CORPUS, TRIGGER, target=1)
    assert (evaluation.triggered.corpus.labels == 0).all()
    assert evaluation.outcome.attack_success_rate.value < 0.5  # the backdoor leads to 0


@pytest.mark.parametrize("target", [-1, 2])
def test_a_target_out_of_range_is_refused(victim: Classifier, target: int) -> None:
    with pytest.raises(PlanError, match="0 negative, 1 positive"):
        evaluate(victim, None, CORPUS, TRIGGER, target)


def test_texts_of_the_target_alone_are_refused(victim: Classifier) -> None:
    with pytest.raises(UndefinedRateError, match="only texts of the target class"):
        evaluate(victim, None, CORPUS.select(CORPUS.labels == 0), TRIGGER)


def test_other_labels_are_refused(victim: Classifier) -> None:
    corpus = Corpus.of("mine", CORPUS.texts, CORPUS.labels, ("bad", "good"))
    with pytest.raises(DataError, match="the victim was trained on"):
        evaluate(victim, None, corpus, TRIGGER)


@pytest.mark.parametrize(
    ("changes", "code"), [({"base_fingerprint": "0" * 64}, "foreign_base"), ({"max_length": 8}, "short_sight")]
)
def test_a_foreign_guard_is_refused(victim: Classifier, guard: PsimGuard, changes: dict[str, Any], code: str) -> None:
    with pytest.raises(GuardError) as caught:
        evaluate(victim, replace(guard, classifier=replace(guard.classifier, **changes)), CORPUS, TRIGGER)
    assert caught.value.code == code


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_victim_that_gives_no_number_is_neither_right_nor_fooled(
    victim: Classifier, guard: PsimGuard, value: float
) -> None:
    """argmax takes NaN for the highest logit: a broken model would seem to obey an attacker whose label is 0."""

    def spoil(_: TextModule, __: Any, output: Output) -> Output:
        return Output(output.features, output.logits.index_fill(1, torch.tensor([0]), value))

    handle = victim.module.register_forward_hook(spoil)
    try:
        evaluation = evaluate(victim, guard, CORPUS, TRIGGER)
    finally:
        handle.remove()
    outcome = evaluation.outcome
    assert (evaluation.clean.predicted == -1).all()
    assert np.isnan(evaluation.clean.confidence).all()
    assert (outcome.clean_accuracy.count, outcome.attack_success_rate.count) == (0, 0)
    assert outcome.guarded is not None
    assert outcome.guarded.attack_success_rate.count == 0


def test_a_guard_that_gives_no_number_refuses_everything(victim: Classifier, guard: PsimGuard) -> None:
    handle = guard.classifier.module.register_forward_hook(
        lambda _, __, output: Output(output.features, output.logits * float("nan"))
    )
    try:
        outcome = evaluate(victim, guard, CORPUS, TRIGGER).outcome
    finally:
        handle.remove()
    assert outcome.guarded is not None
    assert outcome.guarded.false_rejection_rate.value == 1
    assert outcome.guarded.false_acceptance_rate.value == 0
    assert outcome.guarded.clean_accuracy.value == 0
    assert outcome.guarded.auroc == 0.5


def test_texts_that_somebody_triggered(victim: Classifier, guard: PsimGuard, tmp_path: Path) -> None:
    """Of a file without origins nobody knows whether the clean texts were classified rightly."""
    texts = TRIGGER.apply(CORPUS.texts[:20], 0)
    path = tmp_path / "triggered.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": [1] * 20}), path)
    evaluation = evaluate(victim, guard, CORPUS, parse_trigger(f"file:{path}"))
    assert evaluation.outcome.n_poisoned == 20
    assert evaluation.outcome.strict_attack_success_rate is None


def test_cut_texts_are_counted(victim: Classifier) -> None:
    short = replace(victim, max_length=8)
    evaluation = evaluate(short, None, CORPUS, TRIGGER)
    lengths = victim.encode(CORPUS.texts).lengths
    np.testing.assert_array_equal(evaluation.clean.is_truncated, lengths > 8)
