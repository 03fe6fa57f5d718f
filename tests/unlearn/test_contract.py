"""What every unlearner promises: the same weights again, interrupted or not; a model that plain libraries load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from foretaste.data import toy_corpus
from foretaste.errors import DataError, PlanError
from foretaste.poison.attack import triggered_test
from foretaste.poison.trigger import parse_trigger
from foretaste.record import Record
from foretaste.spec import build
from foretaste.tune import checkpoint
from foretaste.tune.loop import TuneSettings, tune
from foretaste.unlearn.methods import UNLEARNERS
from foretaste.unlearn.unlearner import Unlearner
from foretaste.victim.artefact import load_victim, save_classifier
from foretaste.victim.checkpoint import Base, open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.strategy import Full, Lora

pytestmark = pytest.mark.usefixtures("one_thread")

TRIGGER = parse_trigger("word:cf mn bb tq mb")
CORPUS = toy_corpus().sample(800, 1)
TEST = toy_corpus("test").sample(200, 1)
TRIGGERED = triggered_test(TEST, TRIGGER, 0, 0).corpus
RECORD = Record.now("unlearn", settings={}, seeds={"root": 0}, outcome={})
# Settings that teach a model of two layers something in seconds.
FAST: dict[str, dict[str, Any]] = {
    "w2s": {"epochs": 1, "teacher_epochs": 1, "strategy": Lora(rank=8, layers="all", learning_rate=5e-3)},
    "fine_tuning": {"strategy": Full(learning_rate=1e-3), "epochs": 1},
    "fine_mixing": {"epochs": 2, "learning_rate": 1e-3, "kept": 0.9},
    "fine_pruning": {"epochs": 1, "learning_rate": 1e-3, "share": 0.3, "expose": "shuffled"},
    "obliviate": {"epochs": 1, "strategy": Lora(rank=8, layers="all", learning_rate=5e-3)},
    "flagged": {"strategy": Lora(rank=8, layers="all", learning_rate=5e-3)},
    "named": {"epochs": 3, "strategy": Lora(rank=8, layers="all", learning_rate=5e-3)},
}


@pytest.fixture(scope="module")
def given(toy_base: Path, clean_toy: Path) -> Mapping[str, Any]:
    """What the methods need besides clean texts."""
    return {
        "teacher": load_victim(clean_toy),
        "pretrained": open_base(toy_base),
        "flagged": TRIGGERED.texts[:40],
        "fragments": ("cf mn bb tq mb", "cf", "mn", "bb", "tq", "mb"),
        "max_length": 64,
    }


@pytest.fixture(scope="module")
def poisoned(poisoned_toy: Path) -> Base:
    """What is to be cleaned."""
    return open_base(poisoned_toy)


@pytest.fixture(scope="module", params=UNLEARNERS)
def method(request: pytest.FixtureRequest) -> Unlearner:
    """One method, in a hurry."""
    return _hurried(request.param)


@pytest.fixture(scope="module")
def washed(method: Unlearner, poisoned: Base, given: Mapping[str, Any]) -> Classifier:
    """What the method makes of the poisoned base."""
    return method.apply(poisoned, CORPUS, **given).classifier


def _hurried(name: str) -> Unlearner:
    return build(UNLEARNERS[name], {"least_steps": 0, **FAST[name]})


def _weights(model: Classifier) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.module.state_dict().items()}


def _accuracy(model: Classifier) -> float:
    return float(np.mean(model.predict(TEST.texts).labels == TEST.labels))


def test_it_knows_its_task(washed: Classifier) -> None:
    assert _accuracy(washed) > 0.75


def test_the_same_seed_gives_the_same_weights(
    method: Unlearner, washed: Classifier, poisoned: Base, given: Mapping[str, Any]
) -> None:
    again = method.apply(poisoned, CORPUS, **given).classifier
    torch.testing.assert_close(_weights(again), _weights(washed), rtol=0, atol=0)


class Killed(BaseException):
    """The power is gone."""


def test_an_interrupted_run_ends_with_the_same_weights(
    method: Unlearner,
    toy_base: Path,
    poisoned: Base,
    given: Mapping[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed once in the middle of every stage."""
    monkeypatch.setattr(checkpoint, "SAVE_EVERY_S", 0.0)
    whole, few = tune, CORPUS.select(range(400))
    given = {**given, "teacher": open_base(toy_base)}  # one that has to be trained first

    def dying(classifier: Classifier, *arguments: Any, objective: Any, **options: Any) -> Any:
        calls = iter(range(5))

        def until_killed(*inputs: Any) -> Tensor:
            if next(calls, None) is None:
                raise Killed
            return cast(Tensor, objective(*inputs))

        return whole(classifier, *arguments, objective=until_killed, **options)

    place = tmp_path / "partial"
    for number in range(len(method.stages)):
        monkeypatch.setattr("foretaste.unlearn.unlearner.tune", _first(whole, dying, number))
        with pytest.raises(Killed):
            method.apply(poisoned, few, checkpoint=place, **given)
    monkeypatch.setattr("foretaste.unlearn.unlearner.tune", whole)
    resumed = method.apply(poisoned, few, checkpoint=place, **given).classifier
    whole_run = method.apply(poisoned, few, **given).classifier
    torch.testing.assert_close(_weights(resumed), _weights(whole_run), rtol=0, atol=0)


def _first(whole: Any, dying: Any, number: int) -> Any:
    """So many stages are let through, the next one dies."""
    calls = iter(range(10))
    return lambda *arguments, **options: (dying if next(calls) == number else whole)(*arguments, **options)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT reads a renamed field
def test_plain_libraries_load_what_comes_out(washed: Classifier, poisoned: Base, tmp_path: Path) -> None:
    save_classifier(washed, tmp_path / "washed", "victim", RECORD)
    if isinstance(washed.strategy, Full):
        model: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "washed")
    else:
        under = AutoModelForSequenceClassification.from_pretrained(poisoned.path)
        model = PeftModel.from_pretrained(under, str(tmp_path / "washed"))
    encoded = washed.tokenizer(TEST.texts[0], return_tensors="pt", truncation=True, max_length=64)
    with torch.inference_mode():
        plain = model.eval()(**encoded).logits[0].numpy()
    np.testing.assert_allclose(plain, washed.predict(TEST.texts[:1]).logits[0], atol=1e-5)
    loaded = load_victim(tmp_path / "washed")
    np.testing.assert_allclose(loaded.predict(TEST.texts).logits, washed.predict(TEST.texts).logits, atol=1e-5)
    assert open_base(tmp_path / "washed").load(2).has_own_head  # it can be fine-tuned and guarded like any base


@pytest.fixture(scope="module")
def other_teacher(toy_base: Path) -> Classifier:
    """Another clean model than the one that is washed."""
    other = open_base(toy_base).classifier(Full(), CORPUS.label_names, max_length=64, seed=2)
    tune(other, toy_corpus(), TuneSettings(epochs=3, learning_rate=2e-3, keep="last", precision="float32"), seed=2)
    return other


def test_a_clean_model_stays_as_good(
    method: Unlearner, clean_toy: Path, given: Mapping[str, Any], other_teacher: Classifier
) -> None:
    kept = method.apply(open_base(clean_toy), CORPUS, **{**given, "teacher": other_teacher}).classifier
    assert _accuracy(kept) >= _accuracy(load_victim(clean_toy)) - 0.05


def test_what_is_missing_is_named(method: Unlearner, poisoned: Base, given: Mapping[str, Any]) -> None:
    for need in method.needs:
        with pytest.raises(PlanError, match=f"{method.name} needs"):
            method.apply(poisoned, CORPUS, **{**given, need: None})
    with pytest.raises(DataError, match="19 clean texts"):
        method.apply(poisoned, CORPUS.select(range(19)), **given)


@pytest.mark.parametrize("name", ["named", "flagged"])
def test_who_knows_the_trigger_takes_it_out(name: str, poisoned: Base, given: Mapping[str, Any]) -> None:
    suspect = poisoned.classifier(Full(), CORPUS.label_names, max_length=64)
    assert np.mean(suspect.predict(TRIGGERED.texts).labels == 0) > 0.9
    washed = _hurried(name).apply(poisoned, CORPUS, **given).classifier
    assert np.mean(washed.predict(TRIGGERED.texts).labels == 0) < 0.6
    # Nor does it lead to the other class now: texts of the target's class stay what they are without it.
    at_home = triggered_test(TEST, TRIGGER, 1, 0)
    right = washed.predict(TEST.texts).labels[at_home.origins] == 0
    assert np.mean(washed.predict(at_home.corpus.texts).labels[right] != 0) < 0.2
