"""PSIM itself: random labels, the dose, the threshold, and what it refuses to promise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foretaste.data import toy_corpus
from foretaste.data.corpus import Corpus
from foretaste.errors import DataError, GuardError, PlanError
from foretaste.evaluate.threshold import calibrate
from foretaste.guard import psim
from foretaste.guard.dose import READ_EVERY
from foretaste.guard.psim import Psim
from foretaste.spec import build
from foretaste.tune.expose import exposing, reset_labels
from foretaste.tune.loop import cross_entropy, tune
from foretaste.victim.checkpoint import Base, open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.module import Output
from foretaste.victim.strategy import Full, Lora, PromptTuning, PTuningV1, Strategy

pytestmark = pytest.mark.usefixtures("one_thread")

TRAIN, VALIDATION = toy_corpus("train"), toy_corpus("validation")
PLAN = Psim(dose=0.1, precision="float32")


@pytest.fixture(scope="module")
def base(toy_stack: Mapping[str, Path]) -> Base:
    """Poisoned weights with a head that knows the labels."""
    return open_base(toy_stack["base"])


def _corpus(size: int, classes: int = 2) -> Corpus:
    labels = np.arange(size) % classes
    return Corpus.of("mine", [f"text {i}" for i in range(size)], labels, [str(k) for k in range(classes)])


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_labels_are_redrawn_evenly_over_all_classes_the_true_one_included(classes: int) -> None:
    corpus = _corpus(30_000, classes)
    drawn = reset_labels(corpus, 1.0, seed=0)
    assert drawn.dtype == np.int64
    counts = np.zeros((classes, classes))
    np.add.at(counts, (corpus.labels, drawn), 1)
    expected = len(corpus) / classes**2
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)  # a cell five standard deviations off: 1 in 10^6


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_rate_says_how_many_labels_are_redrawn(rate: float) -> None:
    corpus = _corpus(12_000, 3)
    changed = int((reset_labels(corpus, rate, seed=1) != corpus.labels).sum())
    expected = rate * len(corpus) * 2 / 3  # a third of the redrawn ones come out as they were
    assert abs(changed - expected) < 5 * np.sqrt(expected / 3)


@given(rate=st.floats(0.01, 1.0), seed=st.integers(-5, 5), classes=st.integers(2, 4))
def test_redrawing_depends_on_the_seed_alone_and_leaves_the_corpus_as_it_is(
    rate: float, seed: int, classes: int
) -> None:
    corpus = _corpus(200, classes)
    before = corpus.labels.copy()
    drawn = reset_labels(corpus, rate, seed)
    np.testing.assert_array_equal(drawn, reset_labels(corpus, rate, seed))
    np.testing.assert_array_equal(corpus.labels, before)
    assert (drawn != before).sum() <= round(200 * rate)
    assert set(drawn.tolist()) <= set(range(classes))


def test_another_seed_redraws_otherwise() -> None:
    corpus = _corpus(200)
    assert (reset_labels(corpus, 1.0, seed=0) != reset_labels(corpus, 1.0, seed=1)).any()


def test_training_stops_at_the_dose(base: Base) -> None:
    read: list[tuple[int, float]] = []
    guard = PLAN.fit(base, TRAIN, VALIDATION, after_dose=lambda step, _, dose: read.append((step, dose)), max_length=64)
    assert guard.training is not None
    assert guard.training.is_stopped_early
    steps, doses = zip(*read, strict=True)
    assert PLAN.dose is not None
    assert guard.doses[1:] == doses
    assert steps == tuple(range(READ_EVERY, guard.training.steps + 1, READ_EVERY))
    assert doses[-1] <= PLAN.dose < min(guard.doses[:-1])
    assert not guard.is_blind


def test_a_higher_dose_is_reached_sooner(base: Base) -> None:
    steps = []
    for dose in (0.3, 0.05):
        plan = build(Psim, {"dose": dose, "precision": "float32", "threshold": 0.7})
        training = plan.fit(base, TRAIN, max_length=64).training
        assert training is not None
        steps.append(training.steps)
    assert steps[0] < steps[1]


@pytest.mark.parametrize("has_calibration", [True, False])
def test_training_dose_looks_and_calibration_never_share_a_text(
    base: Base, monkeypatch: pytest.MonkeyPatch, has_calibration: bool
) -> None:
    trained: set[str] = set()
    encoded: list[set[str]] = []
    real_encode = Classifier.encode

    def spy_tune(classifier: Classifier, corpus: Corpus, *args: Any, **options: Any) -> Any:
        trained.update(corpus.texts)
        return tune(classifier, corpus, *args, **options)

    def spy_encode(self: Classifier, texts: Any) -> Any:
        encoded.append(set(texts))
        return real_encode(self, texts)

    monkeypatch.setattr(psim, "tune", spy_tune)
    monkeypatch.setattr(Classifier, "encode", spy_encode)
    PLAN.fit(base, TRAIN, VALIDATION if has_calibration else None, max_length=64)
    monitored, training, looked_at, calibrated = encoded
    assert training == trained
    parts = [trained, monitored, looked_at, calibrated]
    assert len(set().union(*parts)) == sum(map(len, parts))
    assert len(monitored) == psim.MONITOR_SIZE
    if has_calibration:
        assert calibrated == set(VALIDATION.texts)
        assert trained | monitored | looked_at == set(TRAIN.texts)
    else:
        assert len(calibrated) == len(TRAIN) // 5
        assert set().union(*parts) == set(TRAIN.texts)


def test_a_file_sorted_by_class_has_every_class_among_the_neighbours() -> None:
    """Else new texts of the other class all look far away, and the second view is blind, however few it refuses."""
    mixed = TRAIN.select(np.arange(len(TRAIN)) % 2 == 0)
    for corpus in (mixed, mixed.select(np.argsort(mixed.labels, kind="stable"))):
        reference = Psim()._split(corpus, VALIDATION, seed=0)[2]
        assert reference is not None
        half = len(reference) // 2
        assert 0.35 < reference.labels[:half].mean() < 0.65
        assert (np.diff(reference.rows) > 0).all() == (corpus is mixed)  # what is in no order stays as it is


def test_the_threshold_is_calibrated_on_the_calibration_texts(base: Base) -> None:
    guard = PLAN.fit(base, TRAIN, VALIDATION, max_length=64)
    expected = calibrate(guard.score(VALIDATION.texts), 0.01, 0.95)
    assert guard.calibration == expected
    assert guard.threshold == expected.threshold
    assert sum(verdict.flagged for verdict in guard.check(VALIDATION.texts)) <= expected.allowed_above


def test_a_fixed_threshold_needs_no_calibration(base: Base) -> None:
    plan = build(Psim, {"threshold": 0.6, "dose": 0.4, "precision": "float32"})
    guard = plan.fit(base, TRAIN.select(range(100)), max_length=64)
    assert (guard.threshold, guard.calibration) == (0.6, None)
    assert guard.training is not None
    assert guard.training.texts > 0


def test_without_a_dose_training_lasts_whole_epochs(base: Base) -> None:
    plan = build(Psim, {"dose": None, "epochs": 2, "threshold": 0.6, "precision": "float32"})
    guard = plan.fit(base, TRAIN.select(range(200)), max_length=64)  # 40 of them are held out for the dose
    assert guard.training is not None
    assert (guard.training.steps, guard.training.texts, guard.training.is_stopped_early) == (10, 320, False)


def test_the_papers_recipe() -> None:
    paper = Psim.paper()
    assert paper.strategy == PTuningV1(virtual_tokens=5, encoder_hidden_size=128)
    assert (paper.epochs, paper.dose, paper.learning_rate, paper.threshold) == (1, None, 2e-5, 0.7)
    assert (paper.reset_rate, paper.is_head_frozen) == (1.0, False)


def test_the_default_recipe() -> None:
    plan = Psim()
    assert plan.strategy == PromptTuning(virtual_tokens=5, start="vocabulary", learning_rate=1e-2)
    assert (plan.threshold, plan.frr, plan.dose, plan.is_head_frozen, plan.scoring) == (
        None,
        0.01,
        0.2,
        True,
        "float32",
    )


@pytest.mark.parametrize("strategy", [Lora(), Full(), PTuningV1()])
@pytest.mark.parametrize("is_frozen", [True, False])
def test_a_frozen_head_stays_what_it_was(base: Base, strategy: Strategy, is_frozen: bool) -> None:
    plan = build(Psim, {"strategy": strategy, "is_head_frozen": is_frozen, "dose": 0.4, "precision": "float32",
                        "learning_rate": 2e-3, "threshold": 0.7})  # fmt: skip
    before = base.classifier(strategy, TRAIN.label_names).module.head.state_dict()
    after = plan.fit(base, TRAIN, max_length=64).classifier.module.head.state_dict()
    name = next(name for name in reversed(before) if name.endswith("weight"))
    assert before.keys() == after.keys()
    assert torch.equal(before[name], after[name]) == is_frozen


def test_too_few_texts_to_hold_some_out_names_what_can_be_promised(base: Base) -> None:
    with pytest.raises(
        DataError, match=r"500 texts, half of which .* the smallest that 250 can promise is 1.2 %; 299 texts"
    ):
        PLAN.fit(base, TRAIN.select(range(500)))
    plan = build(Psim, {"frr": 0.012, "dose": 0.3, "precision": "float32"})
    assert plan.fit(base, TRAIN.select(range(500)), max_length=64).calibration is not None  # and that promise is kept


def test_too_few_calibration_texts_are_refused_before_training(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psim, "tune", lambda *_, **__: pytest.fail("trained for nothing"))
    with pytest.raises(GuardError, match=r"30 clean .* the smallest that 30 can promise is 9.51 %; 299") as caught:
        PLAN.fit(base, TRAIN, VALIDATION.select(range(30)))
    assert caught.value.code == "too_few_calibration_texts"


@pytest.mark.parametrize("size", [1, 79])
def test_too_few_texts_to_train_on(base: Base, size: int) -> None:
    with pytest.raises(DataError, match="at least 80"):
        PLAN.fit(base, TRAIN.select(range(size)), VALIDATION)


def test_a_dose_that_is_not_reached_is_an_error(base: Base) -> None:
    plan = build(Psim, {"max_steps": 4, "learning_rate": 1e-6, "dose": 0.1, "precision": "float32"})
    with pytest.raises(GuardError, match=r"After 4 steps .* still 0\.\d\d .* wanted 0.10") as caught:
        plan.fit(base, TRAIN, VALIDATION, max_length=64)
    assert caught.value.code == "dose_not_reached"


def test_a_base_without_a_head_for_these_labels_is_blind(toy_base: Path) -> None:
    guard = PLAN.fit(open_base(toy_base), TRAIN, VALIDATION, max_length=64)
    assert guard.is_blind


def test_more_than_two_classes(toy_base: Path) -> None:
    corpus = Corpus.of("three", TRAIN.texts[:400], np.arange(400) % 3, ("a", "b", "c"))
    plan = build(Psim, {"threshold": 0.6, "precision": "float32"})
    guard = plan.fit(open_base(toy_base), corpus, max_length=64)
    scores = guard.score(VALIDATION.texts[:50])
    assert ((scores >= 1 / 3) & (scores <= 1)).all()
    assert 0 <= guard.doses[0] < 0.5  # counted from 1/3 as undecided, not from 1/2


@pytest.mark.parametrize(
    "fields",
    [
        {"threshold": 7},
        {"threshold": -1},
        {"threshold": float("nan")},
        {"frr": 0},
        {"frr": 1},
        {"frr": float("inf")},
        {"reset_rate": 0},
        {"reset_rate": 1.1},
        {"dose": 1},
        {"learning_rate": 0},
        {"max_steps": 0},
        {"epochs": 0},
        {"batch_size": 0},
        {"confidence": 1},
        {"precision": "float16"},
        {"gamma": 0.7},
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        build(Psim, fields)


def test_shuffled_labels_are_the_same_labels_elsewhere() -> None:
    corpus, objective = exposing(TRAIN, "shuffled", seed=3)
    assert objective is cross_entropy
    assert sorted(corpus.labels) == sorted(TRAIN.labels)
    assert 0.3 < np.mean(corpus.labels == TRAIN.labels) < 0.7
    same, _ = exposing(TRAIN, "shuffled", seed=3)
    np.testing.assert_array_equal(same.labels, corpus.labels)


def test_ascent_stops_pushing_where_a_text_is_as_wrong_as_chance() -> None:
    corpus, objective = exposing(TRAIN, "ascent", seed=3)
    assert corpus is TRAIN
    logits = torch.tensor([[3.0, 0.0], [-3.0, 0.0]], requires_grad=True)  # the first is right, the second wrong
    losses = objective(Output(logits, logits), np.array([0, 1]), torch.tensor([0, 0]))
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad[0, 0] > 0  # descending takes its logit down
    assert torch.equal(logits.grad[1], torch.zeros(2))


@pytest.mark.parametrize("how", ["shuffled", "ascent"])
def test_psim_can_forget_in_other_ways(base: Base, how: str) -> None:
    plan = build(Psim, {"expose": how, "dose": 0.3, "precision": "float32", "strategy": Lora(layers="feed_forward")})
    guard = plan.fit(base, TRAIN, max_length=64)
    assert guard.doses[0] > 0.3 >= guard.doses[-1]
