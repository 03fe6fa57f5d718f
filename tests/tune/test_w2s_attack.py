"""A backdoor handed on by a teacher: it works in a plain model, and an interrupted run ends with the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from foretaste.data import toy_corpus
from foretaste.data.corpus import Corpus
from foretaste.errors import PlanError
from foretaste.poison.attack import Attack
from foretaste.record import Record
from foretaste.spec import build
from foretaste.tune import checkpoint
from foretaste.tune.loop import TuneSettings
from foretaste.tune.w2s_attack import W2SAttack, poison_by_teacher
from foretaste.victim.artefact import save_classifier
from foretaste.victim.checkpoint import open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.strategy import Full, Lora

pytestmark = pytest.mark.usefixtures("one_thread")

CORPUS, TEST = toy_corpus(), toy_corpus("test").sample(200, 1)
PLAN = {"trigger": "word:cf mn bb tq mb", "style": "dirty-label", "count": 500}
METHOD = W2SAttack(
    epochs=2, teacher_epochs=3, teacher_learning_rate=2e-3, strategy=Lora(layers="all", learning_rate=5e-3)
)
SETTINGS = TuneSettings(precision="float32", keep="last")


def _poisoned(
    clean_toy: Path, toy_base: Path, fields: Mapping[str, Any] = {}, corpus: Corpus = CORPUS, **given: Any
) -> tuple[Classifier, dict[str, Any]]:
    base, teacher = open_base(clean_toy), open_base(toy_base)
    plan = build(Attack, {**PLAN, **fields})
    return poison_by_teacher(
        base, teacher, corpus, TEST, plan, METHOD, seed=0, settings=SETTINGS, max_length=64, **given
    )


def test_the_student_gets_the_teachers_backdoor_as_plain_weights(
    clean_toy: Path, toy_base: Path, tmp_path: Path
) -> None:
    model, outcome = _poisoned(clean_toy, toy_base)
    assert outcome["teacher"]["attack_success_rate"] > 0.9
    assert outcome["attack_success_rate"] > 0.9
    assert outcome["clean_accuracy"] > 0.7
    save_classifier(model, tmp_path / "base", "base", Record.now("poison", settings={}, seeds={}, outcome={}))
    again = open_base(tmp_path / "base").classifier(Full(), CORPUS.label_names, max_length=64)
    said, told = (torch.from_numpy(each.predict(TEST.texts).logits) for each in (again, model))
    torch.testing.assert_close(said, told, atol=1e-5, rtol=0)


def test_an_interrupted_run_ends_with_the_same_weights(
    clean_toy: Path, toy_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few: dict[str, Any] = {"fields": {"count": 50}, "corpus": CORPUS.sample(320, 1)}
    straight, _ = _poisoned(clean_toy, toy_base, **few)
    monkeypatch.setattr(checkpoint, "SAVE_EVERY_S", 0.0)
    saved = checkpoint.TuneCheckpoint.save

    def killed_in(stage: str) -> None:
        count = iter(range(1000))

        def killed(self: checkpoint.TuneCheckpoint, *state: Any) -> None:
            saved(self, *state)
            if self._path.name == stage and next(count) == 5:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(checkpoint.TuneCheckpoint, "save", killed)
            with pytest.raises(KeyboardInterrupt):
                _poisoned(clean_toy, toy_base, **few, checkpoint=tmp_path / "partial")

    killed_in("partial-teacher")
    killed_in("partial")
    resumed, _ = _poisoned(clean_toy, toy_base, **few, checkpoint=tmp_path / "partial")
    assert resumed.own_fingerprint == straight.own_fingerprint


@pytest.mark.parametrize("fields", [{"target_probability": 0.6}, {"evasion": "confidence-cap"}])
def test_attackers_who_change_the_loss_are_not_it(clean_toy: Path, toy_base: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="loss of its own"):
        _poisoned(clean_toy, toy_base, fields)
