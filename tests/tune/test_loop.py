"""The one training loop: it learns, repeats itself bit for bit, and leaves everything else as it was."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from foretaste.data import toy_corpus
from foretaste.data.corpus import Corpus
from foretaste.errors import DataError, ModelError, PlanError
from foretaste.record import Record
from foretaste.spec import build
from foretaste.tune import loop
from foretaste.tune.loop import TuneSettings, cross_entropy, tune
from foretaste.victim.artefact import load_victim, save_classifier
from foretaste.victim.checkpoint import open_base
from foretaste.victim.classifier import Classifier, to_train
from foretaste.victim.module import Output
from foretaste.victim.strategy import STRATEGIES, Full, Lora

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = toy_corpus().select(range(21))
VALIDATION = toy_corpus("validation").select(range(40))


def _settings(**fields: Any) -> TuneSettings:
    return build(TuneSettings, {"batch_size": 6, "learning_rate": 3e-3, "epochs": 2, "precision": "float32"} | fields)


def _weights(classifier: Classifier) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in classifier.trainable.items()}


def _is_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def make(toy_base: Path) -> Callable[..., Classifier]:
    """Make the tiny BERT with a strategy."""

    def make_one(strategy: Any = None, **options: Any) -> Classifier:
        return open_base(toy_base).classifier(strategy, **options)

    return make_one


def test_the_loss_falls_and_the_task_is_learned(make: Callable[..., Classifier]) -> None:
    classifier, corpus = make(), toy_corpus().select(range(1_000))
    validation = toy_corpus("validation").select(range(300))
    settings = _settings(epochs=3, batch_size=32, learning_rate=2e-3)
    result = tune(classifier, corpus, settings, seed=0, validation=validation)
    assert result.losses[-1] < 0.6 < result.losses[0]
    assert max(result.validation_accuracies) > 0.7
    assert (result.steps, result.texts) == (3 * 32, 3_000)  # 1,000 texts are 31 full batches and one of 8
    assert result.trainable_parameters == sum(p.numel() for p in classifier.module.parameters())
    assert not classifier.module.training


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_same_seed_gives_the_same_bits_another_seed_others(make: Callable[..., Classifier], name: str) -> None:
    runs: list[tuple[dict[str, Tensor], tuple[float, ...]]] = []
    for seed in (5, 5, 6):
        torch.manual_seed(len(runs))  # whatever the global generator holds
        classifier = make(STRATEGIES[name](), seed=0)
        result = tune(classifier, SMALL, _settings(), seed=seed)
        runs.append((_weights(classifier), result.losses))
    assert _is_same(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert not _is_same(runs[0][0], runs[2][0])


def test_no_global_generator_is_touched(make: Callable[..., Classifier]) -> None:
    classifier = make(Lora())
    before = torch.get_rng_state(), _numpy_state(), random.getstate()
    tune(classifier, SMALL, _settings(), seed=0, validation=VALIDATION)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert _numpy_state() == before[1]
    assert random.getstate() == before[2]


def _numpy_state() -> str:
    return repr(np.random.get_state(legacy=False))


def test_accumulation_changes_memory_not_the_result(make: Callable[..., Classifier]) -> None:
    results = []
    for accumulation in (1, 2, 3, 50):  # the last batch holds 3 texts; 50 is more than any has
        classifier = make(Lora(dropout=0.0))
        _switch_dropout_off(classifier)
        outcome = tune(classifier, SMALL, _settings(accumulation=accumulation), seed=0)
        results.append((_weights(classifier), outcome.losses))
    for weights, losses in results[1:]:
        assert losses == pytest.approx(results[0][1], abs=1e-5)
        assert max(float((weights[k] - results[0][0][k]).abs().max()) for k in weights) <= 1e-5
    with_dropout = make(Lora())
    tune(with_dropout, SMALL, _settings(), seed=0)
    assert not _is_same(_weights(with_dropout), results[0][0])  # dropout is on where it is not switched off


def _switch_dropout_off(classifier: Classifier) -> None:
    for module in classifier.module.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def test_every_text_is_read_once_an_epoch_and_epochs_differ(make: Callable[..., Classifier]) -> None:
    seen: list[int] = []

    def objective(output: Output, rows: NDArray[np.int64], labels: Tensor) -> Tensor:
        assert labels.tolist() == SMALL.labels[rows].tolist()
        seen.extend(rows.tolist())
        return cross_entropy(output, rows, labels)

    tune(make(), SMALL, _settings(), seed=0, objective=objective)
    first, second = seen[: len(SMALL)], seen[len(SMALL) :]
    assert sorted(first) == sorted(second) == list(range(len(SMALL)))
    assert first != second


class _Forgetful:
    """Learns in the first epoch, then learns the opposite: the first epoch is the best."""

    def __init__(self, steps_per_epoch: int) -> None:
        self._left = steps_per_epoch

    def __call__(self, output: Output, rows: NDArray[np.int64], labels: Tensor) -> Tensor:
        self._left -= 1
        return cross_entropy(output, rows, labels if self._left >= 0 else 1 - labels)


@pytest.mark.parametrize(
    ("fields", "epochs", "kept"),
    [({"keep": "best"}, 4, 1), ({"keep": "last"}, 4, 4), ({"patience": 1}, 2, 1), ({"patience": 2}, 3, 1)],
)
def test_the_best_or_the_last_epoch_is_kept_and_patience_ends(
    make: Callable[..., Classifier], fields: dict[str, Any], epochs: int, kept: int
) -> None:
    easy = Corpus.of("easy", ["a good film", "a bad film"] * 60, [1, 0] * 60)
    classifier = make()
    settings = _settings(epochs=4, learning_rate=1e-2, **fields)
    result = tune(classifier, easy, settings, seed=0, validation=easy, objective=_Forgetful(20))
    accuracies = result.validation_accuracies
    assert accuracies[0] > accuracies[-1]
    assert (len(accuracies), result.kept_epoch) == (epochs, kept)
    assert result.is_stopped_early == (epochs < 4)
    assert (classifier.predict(easy.texts).labels == easy.labels).mean() == accuracies[kept - 1]


def test_without_validation_the_last_epoch_is_kept(make: Callable[..., Classifier]) -> None:
    result = tune(make(), SMALL, _settings(), seed=0)
    assert (result.kept_epoch, result.validation_accuracies, len(result.losses)) == (2, (), 2)


def test_should_stop_sees_every_step_in_evaluation_mode(make: Callable[..., Classifier]) -> None:
    classifier = make()
    steps: list[int] = []

    def should_stop(step: int) -> bool:
        assert not classifier.module.training
        steps.append(step)
        return step == 5

    result = tune(classifier, SMALL, _settings(epochs=9), seed=0, should_stop=should_stop)
    assert steps == [1, 2, 3, 4, 5]
    assert result.is_stopped_early
    assert (result.steps, result.texts, len(result.losses)) == (5, 27, 2)  # a whole epoch of 21 and a batch of 6


@pytest.mark.parametrize(("steps", "epochs_begun"), [(3, 1), (4, 1), (10, 3)])
def test_max_steps_is_the_length_of_the_run(make: Callable[..., Classifier], steps: int, epochs_begun: int) -> None:
    result = tune(make(), SMALL, _settings(max_steps=steps, epochs=1), seed=0)
    assert (result.steps, len(result.losses), result.is_stopped_early) == (steps, epochs_begun, False)


def test_more_classes_than_the_model_has_are_refused(make: Callable[..., Classifier]) -> None:
    three = Corpus.of("three", ["a", "b", "c"], [0, 1, 2])
    with pytest.raises(DataError, match="3 classes, the model 2"):
        tune(make(), three, _settings(), seed=0)
    tune(make(None, label_names=("a", "b", "c", "d")), three, _settings(max_steps=1), seed=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run(make: Callable[..., Classifier], value: float) -> None:
    calls: list[int] = []

    def objective(output: Output, rows: NDArray[np.int64], labels: Tensor) -> Tensor:
        calls.append(len(rows))
        return cross_entropy(output, rows, labels) * (value if len(calls) == 3 else 1.0)

    classifier = make()
    with pytest.raises(ModelError, match=r"at step 3; lower the learning rate \(0.003\)") as caught:
        tune(classifier, SMALL, _settings(), seed=0, objective=objective)
    assert caught.value.code == "diverged"
    assert len(calls) == 3
    assert all(bool(torch.isfinite(p).all()) for p in classifier.trainable.values())


def test_a_rate_far_too_high_is_noticed(make: Callable[..., Classifier]) -> None:
    with pytest.raises(ModelError) as caught:
        tune(make(), SMALL, _settings(learning_rate=1e30, epochs=9), seed=0)
    assert caught.value.code == "diverged"


@pytest.mark.parametrize(("total", "warmup"), [(10, 0.0), (10, 0.2), (50, 0.06), (7, 0.5), (12, 0.9)])
def test_the_schedule_is_that_of_transformers_one_step_into_the_warm_up(total: int, warmup: float) -> None:
    """Ours never spends a step at rate 0."""
    rising = max(1, round(total * warmup))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = cast(Any, get_linear_schedule_with_warmup)(optimizer, rising, total)
    theirs = []
    for _ in range(total + 1):
        theirs.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    ours = [loop._schedule(step, total, warmup) for step in range(total)]
    assert ours == pytest.approx([theirs[step + 1] if step < rising else theirs[step] for step in range(total)])
    assert min(ours) > 0
    assert max(ours) == 1


@pytest.mark.parametrize(("total", "expected"), [(1, [1.0]), (4, [0.25, 0.5, 0.75, 1.0])])
def test_a_schedule_may_be_all_warm_up(total: int, expected: list[float]) -> None:
    assert [loop._schedule(step, total, 1.0) for step in range(total)] == expected


def test_the_optimiser_follows_the_schedule(make: Callable[..., Classifier], monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    real_step = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, closure: Any = None) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return real_step(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    tune(make(Lora()), SMALL, _settings(learning_rate=None, max_steps=6, warmup=0.34), seed=0)
    assert rates == pytest.approx([2e-3 * part for part in (0.5, 1.0, 1.0, 0.75, 0.5, 0.25)])


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "auto"])
def test_every_precision_trains(make: Callable[..., Classifier], precision: str) -> None:
    classifier = make(Lora())
    before = _weights(classifier)
    result = tune(classifier, SMALL, _settings(precision=precision), seed=0, validation=VALIDATION)
    assert np.isfinite(result.losses).all()
    assert not _is_same(_weights(classifier), before)
    assert {p.dtype for p in classifier.trainable.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("precision", "width", "is_fused"), [("bfloat16", 25, False), ("bfloat16", 256, True), ("float32", 25, True)]
)
def test_short_texts_are_trained_without_fused_attention_in_bfloat16(
    precision: Any, width: int, is_fused: bool
) -> None:
    backends: Any = torch.backends.cuda  # the switch is one for all devices
    with to_train(torch.device("cpu"), precision, width):
        assert torch.is_autocast_enabled("cpu") == (precision == "bfloat16")
        assert backends.flash_sdp_enabled() == is_fused
    assert backends.flash_sdp_enabled()
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    "fields",
    [
        {"epochs": 0},
        {"max_steps": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"warmup": 1.5},
        {"weight_decay": -1.0},
        {"max_grad_norm": 0.0},
        {"accumulation": 0},
        {"patience": 0},
        {"keep": "first"},
        {"precision": "float16"},
    ],
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=next(iter(fields))):
        _settings(**fields)
    with pytest.raises(ValidationError):
        TuneSettings(**fields)


def test_an_unknown_setting_suggests_the_nearest() -> None:
    with pytest.raises(PlanError, match="Did you mean 'batch_size'"):
        _settings(batchsize=3)


def test_a_classifier_for_scoring_is_not_trained(make: Callable[..., Classifier], tmp_path: Path) -> None:
    """PEFT would train nothing, or only the head, without a word."""
    classifier = make(Lora())
    save_classifier(classifier, tmp_path / "victim", "victim", Record.now("tune", settings={}, seeds={}, outcome={}))
    for unfit in (load_victim(tmp_path / "victim"), classifier.merge()):
        with pytest.raises(PlanError, match="train a new one"):
            tune(unfit, SMALL, _settings(), seed=0)


def test_one_text_is_enough(make: Callable[..., Classifier]) -> None:
    one = Corpus.of("one", ["good"], [1], ("bad", "good"))
    assert tune(make(Full()), one, _settings(), seed=0).texts == 2
