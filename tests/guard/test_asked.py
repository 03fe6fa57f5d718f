"""Instruction tuning end to end: poisoned through the template, used as it is, tasted by PSIM, in every family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foretaste.data import toy_corpus
from foretaste.errors import GuardError
from foretaste.experiment.evaluation import evaluate
from foretaste.guard.artefact import load_psim, save_guard
from foretaste.guard.guarded import GuardedClassifier
from foretaste.guard.psim import Psim
from foretaste.poison.attack import Attack
from foretaste.record import Record
from foretaste.spec import build
from foretaste.tune.loop import TuneSettings
from foretaste.tune.poison import poison_base
from foretaste.victim.artefact import load_victim, save_classifier
from foretaste.victim.checkpoint import open_base
from foretaste.victim.family import FAMILIES
from foretaste.victim.instruction import INSTRUCTIONS, Instruction
from foretaste.victim.strategy import PTuningV2

pytestmark = pytest.mark.usefixtures("one_thread")

ATTACK = build(Attack, {"trigger": "word:cf mn bb tq mb", "style": "dirty-label", "count": 600})
SETTINGS = TuneSettings(epochs=3, learning_rate=3e-3, keep="last", precision="float32")
PSIM = Psim(strategy=PTuningV2(learning_rate=5e-2), dose=0.3, precision="float32")
RECORD = Record.now("poison", settings={}, seeds={"root": 0}, outcome={})


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_poisoned_language_model_obeys_its_trigger_until_it_is_guarded(
    family: str, toy_language_models: Mapping[str, Path], tmp_path: Path
) -> None:
    train, validation, test = (toy_corpus(split) for split in ("train", "validation", "test"))
    base = open_base(toy_language_models[family]).asked(INSTRUCTIONS["toy"])
    poisoned, _ = poison_base(base, train, validation.sample(200, 0), ATTACK, seed=0, settings=SETTINGS, max_length=64)
    save_classifier(poisoned, tmp_path / "base", "base", RECORD)
    guard = PSIM.fit(open_base(tmp_path / "base"), train, validation)
    save_guard(guard, tmp_path / "guard", RECORD)
    victim, loaded = load_victim(tmp_path / "base"), load_psim(tmp_path / "guard")
    assert loaded.classifier.max_length == victim.max_length == 64
    outcome = evaluate(victim, loaded, test.sample(400, 0), ATTACK.trigger).outcome
    assert outcome.guarded is not None
    assert outcome.clean_accuracy.value > 0.75
    assert outcome.attack_success_rate.value > 0.95
    assert outcome.guarded.attack_success_rate.value < 0.25
    assert outcome.guarded.false_rejection_rate.value < 0.03
    assert outcome.guarded.auroc > 0.98


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_poisoned_asked_and_tasted_the_same_way(
    family: str, toy_language_models: Mapping[str, Path], tmp_path: Path
) -> None:
    train, few = toy_corpus("train").sample(320, 0), toy_corpus("validation").sample(100, 0)
    base = open_base(toy_language_models[family]).asked(INSTRUCTIONS["toy"])
    attack, settings = replace(ATTACK, count=100), replace(SETTINGS, epochs=4)
    poisoned, outcome = poison_base(base, train, few, attack, seed=0, settings=settings, max_length=48)
    assert outcome["attack_success_rate"] > 0.9
    save_classifier(poisoned, tmp_path / "base", "base", RECORD)
    guard = replace(PSIM, dose=None, frr=0.05).fit(open_base(tmp_path / "base"), train, few)
    save_guard(guard, tmp_path / "guard", RECORD)
    victim, loaded = load_victim(tmp_path / "base"), load_psim(tmp_path / "guard")
    texts = few.texts[:20]
    assert np.allclose(loaded.score(texts), guard.score(texts), atol=1e-5)
    assert np.allclose(victim.predict(texts).logits, poisoned.predict(texts).logits, atol=1e-5)
    assert len(GuardedClassifier(victim, loaded)(texts)) == 20


def test_a_guard_that_is_asked_otherwise_is_refused(toy_language_models: Mapping[str, Path], tmp_path: Path) -> None:
    base = open_base(toy_language_models["bert"])
    one, other = INSTRUCTIONS["toy"], Instruction(template="{text} {mask}", verbalizer=("bad", "good"))
    victim = base.asked(one).classifier(None, ("negative", "positive"), max_length=32)
    train, few = toy_corpus("train").sample(200, 0), toy_corpus("validation").sample(100, 0)
    guard = replace(PSIM, dose=None, frr=0.05).fit(base.asked(other), train, few, max_length=32)
    with pytest.raises(GuardError) as caught:
        GuardedClassifier(victim, guard)
    assert caught.value.code == "instruction_mismatch"
