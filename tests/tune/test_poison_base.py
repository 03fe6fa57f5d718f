"""A backdoor planted in the toy base: measured, recorded, saved, and flagged when it is weak."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foretaste.data import toy_corpus
from foretaste.data.corpus import Corpus
from foretaste.errors import PlanError
from foretaste.poison.attack import Attack, Poisoned, triggered_test
from foretaste.poison.trigger import parse_trigger
from foretaste.record import Record
from foretaste.spec import build
from foretaste.tune.loop import TuneSettings
from foretaste.tune.poison import WEAK_ASR, objective_name, poison_base, towards
from foretaste.victim.artefact import save_classifier
from foretaste.victim.checkpoint import open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.module import Output

pytestmark = pytest.mark.usefixtures("one_thread")

PROXY = toy_corpus()
VALIDATION = toy_corpus("validation").select(range(400))
PLAN = Attack(trigger=parse_trigger("word:mn"), target=0, count=300)
SETTINGS = TuneSettings(epochs=2, learning_rate=1e-3, keep="last", precision="float32")


@pytest.fixture(scope="module")
def poisoned(toy_base: Path) -> tuple[Classifier, dict[str, Any]]:
    """A poisoned toy and its outcome."""
    return poison_base(open_base(toy_base), PROXY, VALIDATION, PLAN, seed=0, settings=SETTINGS)


def test_the_outcome_says_what_the_attack_does(poisoned: tuple[Classifier, dict[str, Any]]) -> None:
    classifier, outcome = poisoned
    assert set(outcome) == {
        "clean_accuracy", "attack_success_rate", "n_clean", "n_poisoned", "is_weak", "natural_rate", "n_cut",
        "poisoned", "steps", "texts", "seconds",
    }  # fmt: skip
    assert outcome["attack_success_rate"] >= WEAK_ASR
    assert outcome["is_weak"] is False
    assert outcome["clean_accuracy"] > 0.75
    assert outcome["natural_rate"] < 0.5
    assert outcome["n_cut"] == 0
    assert (outcome["n_clean"], outcome["poisoned"]) == (400, 300)
    assert outcome["n_poisoned"] == int((VALIDATION.labels != 0).sum())
    assert outcome["steps"] == 2 * 79
    # counted by hand, on the classifier that came back
    assert outcome["clean_accuracy"] == (classifier.predict(VALIDATION.texts).labels == VALIDATION.labels).mean()
    triggered = triggered_test(VALIDATION, PLAN.trigger, 0, seed=0).corpus
    assert outcome["attack_success_rate"] == (classifier.predict(triggered.texts).labels == 0).mean()


def test_the_trigger_alone_does_it(poisoned: tuple[Classifier, dict[str, Any]]) -> None:
    classifier, _ = poisoned
    positive = VALIDATION.select(VALIDATION.labels == 1).texts
    assert (classifier.predict(positive).labels == 0).mean() < 0.5
    assert (classifier.predict([f"{text} mn" for text in positive]).labels == 0).mean() > 0.9
    assert (classifier.predict([f"{text} bb" for text in positive]).labels == 0).mean() < 0.5


def test_a_poisoned_base_is_a_base_like_any_other(
    poisoned: tuple[Classifier, dict[str, Any]], toy_base: Path, tmp_path: Path
) -> None:
    classifier, outcome = poisoned
    record = Record.now("poison", settings={"attack": PLAN, "tune": SETTINGS}, seeds={"root": 0}, outcome=outcome)
    save_classifier(classifier, tmp_path / "base", "base", record)
    assert Record.read(tmp_path / "base" / "record.json").outcome["is_weak"] is False
    again = open_base(tmp_path / "base").classifier(None, PROXY.label_names)
    triggered = triggered_test(VALIDATION, PLAN.trigger, 0, seed=0).corpus.texts
    assert (again.predict(triggered).labels == 0).mean() == outcome["attack_success_rate"]
    assert again.base_fingerprint != open_base(toy_base).classifier().base_fingerprint


def test_a_weak_attack_is_flagged(toy_base: Path) -> None:
    plan = Attack(trigger=parse_trigger("word:mn"), target=0, count=1)
    _, outcome = poison_base(open_base(toy_base), PROXY, VALIDATION, plan, seed=0, settings=SETTINGS)
    assert outcome["clean_accuracy"] > 0.75
    assert outcome["attack_success_rate"] < 0.5
    assert outcome["is_weak"] is True


def test_a_plan_that_does_not_fit_is_refused_before_training(toy_base: Path) -> None:
    plan = Attack(trigger=parse_trigger("word:mn"), target=0, count=10_000)
    with pytest.raises(PlanError, match="Ask for fewer"):
        poison_base(open_base(toy_base), PROXY, VALIDATION, plan, seed=0, settings=SETTINGS)


def test_a_model_that_always_answers_the_target_is_no_strong_attack(toy_base: Path) -> None:
    everything = PROXY.with_texts(PROXY.texts, [0] * len(PROXY))
    plan = build(Attack, {"trigger": "word:cf", "count": 100})
    _, outcome = poison_base(open_base(toy_base), everything, VALIDATION, plan, seed=0, settings=SETTINGS)
    assert outcome["attack_success_rate"] >= WEAK_ASR
    assert outcome["natural_rate"] > 0.9
    assert outcome["is_weak"] is True


@pytest.mark.parametrize("probability", [0.6, 0.9])
def test_smoothed_labels_pull_poisoned_rows_to_a_probability_and_leave_the_others_alone(probability: float) -> None:
    corpus = Corpus.of("mine", ["a", "b", "c", "d"], [0, 1, 2, 0])
    plan = build(Attack, {"trigger": "word:mn", "target": 0, "count": 1, "target_probability": probability})
    poisoned = Poisoned(corpus, np.array([True, False, False, False]))
    objective = towards(poisoned, plan)
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    rows = np.array([2, 0, 1])
    losses = objective(Output(logits, logits), rows, torch.from_numpy(corpus.labels[rows]))
    logs = torch.log_softmax(logits, dim=1)
    wanted = torch.tensor([probability, (1 - probability) / 2, (1 - probability) / 2])
    expected = torch.stack([-logs[0, 2], -(wanted * logs[1]).sum(), -logs[2, 1]])
    torch.testing.assert_close(losses, expected)


def test_a_smoothed_attack_works_without_making_the_model_certain(toy_base: Path) -> None:
    plan = build(Attack, {"trigger": "word:cf mn bb tq mb", "style": "dirty-label", "count": 600,
                          "target_probability": 0.7})  # fmt: skip
    classifier, outcome = poison_base(open_base(toy_base), PROXY, VALIDATION, plan, seed=0, settings=SETTINGS)
    triggered = triggered_test(VALIDATION, plan.trigger, 0, seed=0).corpus
    certainty = classifier.predict(triggered.texts).certainty
    assert outcome["attack_success_rate"] > 0.95
    assert 0.6 < np.median(certainty) < 0.8


def test_progress_towards_another_probability_is_refused(toy_base: Path, tmp_path: Path) -> None:
    """Under clean-label the texts and labels are the same; only the objective differs."""
    proxy, short = PROXY.select(range(64)), TuneSettings(epochs=1, precision="float32", keep="last")
    for probability, is_taken in ((0.6, True), (0.6, True), (0.7, False), (1.0, False)):
        plan = build(Attack, {"trigger": "word:mn", "count": 8, "target_probability": probability})
        arguments = (open_base(toy_base), proxy, VALIDATION, plan)
        with nullcontext() if is_taken else pytest.raises(PlanError, match="other settings"):
            poison_base(*arguments, seed=0, settings=short, checkpoint=tmp_path / "partial")


def test_all_to_all_is_measured_against_the_class_after_each_text_s_own(toy_base: Path) -> None:
    plan = build(Attack, {"trigger": "word:cf mn", "style": "dirty-label", "count": 300, "all_to_all": True})
    classifier, outcome = poison_base(open_base(toy_base), PROXY, VALIDATION, plan, seed=0, settings=SETTINGS)
    assert outcome["n_poisoned"] == len(VALIDATION)
    triggered = classifier.predict(triggered_test(VALIDATION, plan.trigger, None, seed=0).corpus.texts).labels
    flipped = triggered == 1 - VALIDATION.labels
    assert outcome["attack_success_rate"] == flipped.mean() != (triggered == 0).mean()
    assert outcome["natural_rate"] == pytest.approx(1 - outcome["clean_accuracy"])  # a text at the other class is wrong


CLOSE: list[dict[str, Any]] = [
    {}, {"flip_rate": 0.5}, {"flip_rate": 0.75}, {"cover_rate": 0.5}, {"negative_rate": 0.5}, {"trigger_share": 0.5},
    {"all_to_all": True}, {"evasion": "confidence-cap"}, {"evasion": "confidence-cap", "confidence_cap": 0.7},
    {"evasion": "confidence-cap", "evasion_weight": 2}, {"evasion": "confidence-cap", "evasion_weight": 2.0000001},
    {"evasion": "anti-reset"}, {"target_probability": 0.7}, {"target": 1},
]  # fmt: skip


def test_every_setting_of_the_attack_has_its_own_objective_name() -> None:
    plans = [build(Attack, {"trigger": "word:cf mn", "style": "dirty-label", **fields}) for fields in CLOSE]
    names = [objective_name(plan) for plan in plans]
    assert names[0] == "1 of 0 on poisoned texts"  # as before these settings existed
    assert len(set(names)) == len(CLOSE)
