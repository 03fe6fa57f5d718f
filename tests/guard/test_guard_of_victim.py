"""A guard trained from a victim belongs to that one: its base, its adapter and its head together."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foretaste.data import toy_corpus
from foretaste.errors import GuardError, ModelError
from foretaste.guard.artefact import load_psim, save_guard
from foretaste.guard.guarded import GuardedClassifier
from foretaste.guard.psim import Psim
from foretaste.poison.attack import Attack
from foretaste.poison.attack import attack as poisoned
from foretaste.record import Record
from foretaste.spec import build
from foretaste.tune.loop import TuneSettings, tune
from foretaste.victim.artefact import load_victim, save_classifier
from foretaste.victim.checkpoint import open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.strategy import Full, Lora

pytestmark = pytest.mark.usefixtures("one_thread")

RECORD = Record.now("guard", settings={}, seeds={"root": 0}, outcome={})
TRAIN, VALIDATION, TEST = (toy_corpus(split) for split in ("train", "validation", "test"))
PLAN = build(Attack, {"trigger": "word:cf mn bb tq mb", "style": "dirty-label", "count": 600})
LORA = Lora(layers="feed_forward")
CLEAN = tuple(text for text, label in zip(TEST.texts, TEST.labels, strict=True) if label != 0)[:200]
TRIGGERED = tuple(PLAN.trigger.apply(CLEAN, 0))


@pytest.fixture(scope="module")
def home(toy_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean base; on it a poisoned adapter, another one and a poisoned full victim, each beside its guard."""
    home = tmp_path_factory.mktemp("adapters")
    clean = open_base(toy_base).classifier(Full(), TRAIN.label_names, max_length=48)
    tune(clean, TRAIN, TuneSettings(epochs=2, learning_rate=1e-3, keep="last", precision="float32"), seed=0)
    save_classifier(clean, home / "base", "base", RECORD)
    base = open_base(home / "base")
    for name, strategy, seed in (("lora", LORA, 0), ("other", LORA, 1), ("full", Full(), 0)):
        victim = base.classifier(strategy, TRAIN.label_names, max_length=48, seed=seed)
        rate = 1e-2 if isinstance(strategy, Lora) else 1e-3
        settings = TuneSettings(epochs=2, learning_rate=rate, keep="last", precision="float32")
        tune(victim, poisoned(TRAIN, PLAN, seed).corpus, settings, seed=seed)
        save_classifier(victim, home / name, "victim", RECORD)
    for name, scoring in (("base", "float32"), ("lora", "int8"), ("full", "float32")):
        plan = Psim(strategy=LORA, precision="float32", scoring=scoring)  # type: ignore[arg-type]
        length = 48 if name == "base" else None
        save_guard(
            plan.fit(open_base(home / name), TRAIN, VALIDATION, max_length=length), home / f"{name}-guard", RECORD
        )
    return home


def _rates(guarded: GuardedClassifier, texts: tuple[str, ...]) -> tuple[float, float]:
    """Return how many texts are refused, and how many end at class 0."""
    verdicts = guarded(texts)
    target = guarded.victim.label_names[0]
    return float(np.mean([v.flagged for v in verdicts])), float(np.mean([v.label == target for v in verdicts]))


def _foreign(victim: Classifier, guard: Any) -> None:
    with pytest.raises(GuardError) as caught:
        GuardedClassifier(victim, guard)
    assert caught.value.code == "foreign_base"


def test_it_stops_what_the_guard_of_the_base_lets_pass(home: Path) -> None:
    victim, plan = load_victim(home / "lora"), Psim(strategy=Full(learning_rate=5e-4), precision="float32")
    blind, seeing = (
        GuardedClassifier(victim, plan.fit(open_base(home / name), TRAIN, VALIDATION, max_length=48))
        for name in ("base", "lora")
    )
    assert np.mean(victim.predict(TRIGGERED).labels == 0) >= 0.9
    assert _rates(blind, TRIGGERED)[1] >= 0.8
    assert _rates(seeing, TRIGGERED)[1] <= 0.3
    assert _rates(seeing, CLEAN)[0] <= 0.05


def test_it_reads_as_much_of_a_text_as_its_victim(home: Path) -> None:
    for name in ("lora", "full"):
        assert load_psim(home / f"{name}-guard").classifier.max_length == 48


def test_it_is_refused_for_every_other_victim_of_the_same_base(home: Path) -> None:
    for name in ("other", "full"):
        _foreign(load_victim(home / name), load_psim(home / "lora-guard"))
    for name in ("other", "lora"):
        _foreign(load_victim(home / name), load_psim(home / "full-guard"))


@pytest.mark.parametrize("name", ["lora", "full"])
def test_another_head_on_the_same_weights_is_another_victim(home: Path, name: str) -> None:
    victim, guard = load_victim(home / name), load_psim(home / f"{name}-guard")
    GuardedClassifier(victim, guard)
    with torch.no_grad():
        list(victim.module.head.parameters())[-1].add_(0.1)  # the adapter keeps the head it replaced before its own
    _foreign(victim, guard)


def test_a_victim_in_int8_keeps_its_guard(home: Path) -> None:
    for name in ("lora", "full"):
        victim, guard = load_victim(home / name), load_psim(home / f"{name}-guard")
        whole, small = (GuardedClassifier(v, guard) for v in (victim, victim.in_int8()))
        np.testing.assert_array_equal(small.score(CLEAN[:9]), whole.score(CLEAN[:9]))
    _foreign(load_victim(home / "other").in_int8(), load_psim(home / "lora-guard"))


@pytest.mark.parametrize("name", ["lora", "full"])
def test_what_is_tuned_from_the_victim_has_the_same_guard(home: Path, tmp_path: Path, name: str) -> None:
    guard = load_psim(home / f"{name}-guard")
    tuned = open_base(home / name).classifier(Lora(), TRAIN.label_names, max_length=48, seed=3)
    settings = TuneSettings(max_steps=20, learning_rate=5e-3, keep="last", precision="float32")
    tune(tuned, TRAIN, settings, seed=3)
    save_classifier(tuned, tmp_path / "tuned", "victim", RECORD)
    GuardedClassifier(load_victim(tmp_path / "tuned"), guard)
    _foreign(load_victim(tmp_path / "tuned"), load_psim(home / "base-guard"))


def test_it_scores_the_same_wherever_all_lie(home: Path, tmp_path: Path) -> None:
    texts = (*CLEAN[:20], *TRIGGERED[:20])
    expected = {name: load_psim(home / f"{name}-guard").score(texts) for name in ("lora", "full")}
    moved = Path(shutil.copytree(home, tmp_path / "copied")).rename(tmp_path / "moved")
    for name, scores in expected.items():
        np.testing.assert_allclose(load_psim(moved / f"{name}-guard").score(texts), scores, rtol=0, atol=1e-3)


def test_its_victim_elsewhere_can_be_named_and_no_other(home: Path, tmp_path: Path) -> None:
    guard = Path(shutil.copytree(home / "lora-guard", tmp_path / "far" / "guard"))
    victim = Path(shutil.copytree(home / "lora", tmp_path / "near" / "victim"))
    scores = load_psim(guard, open_base(victim, base=home / "base")).score(CLEAN[:5])
    np.testing.assert_allclose(load_psim(home / "lora-guard").score(CLEAN[:5]), scores, rtol=0, atol=1e-3)
    for wrong in (home / "base", home / "other", home / "full"):
        with pytest.raises(ModelError) as caught:
            load_psim(guard, wrong)
        assert caught.value.code == "foreign_base"


def test_a_victim_altered_after_training_takes_its_guard_down(home: Path, tmp_path: Path) -> None:
    stack = Path(shutil.copytree(home, tmp_path / "stack"))
    shutil.rmtree(stack / "lora")
    shutil.copytree(stack / "other", stack / "lora")  # somebody swaps the adapter
    with pytest.raises(ModelError) as caught:
        load_psim(stack / "lora-guard")
    assert caught.value.code == "foreign_base"


def test_a_library_user_guards_a_strangers_adapter_as_it_is(home: Path, tmp_path: Path) -> None:
    plain = Path(shutil.copytree(home / "lora", tmp_path / "plain"))
    for name in ("foretaste.json", "record.json"):
        (plain / name).unlink()
    suspect = open_base(plain, base=home / "base")
    guard = Psim(strategy=LORA, precision="float32").fit(suspect, TRAIN, VALIDATION, max_length=48)
    victim = suspect.classifier(Full(), TRAIN.label_names, max_length=48)
    GuardedClassifier(victim, guard)
    GuardedClassifier(load_victim(home / "lora"), guard)  # the same base, adapter and head, as an artefact
    _foreign(load_victim(home / "other"), guard)


def test_base_guards_still_fit_victims_of_the_base(toy_stack: Mapping[str, Path], home: Path) -> None:
    GuardedClassifier(load_victim(home / "other"), load_psim(home / "base-guard"))
    _foreign(load_victim(toy_stack["victim"]), load_psim(home / "base-guard"))
