"""A training that was killed, whenever and however often, ends with the bits of one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from foretaste import files
from foretaste.cost import measured_cost
from foretaste.data import toy_corpus
from foretaste.errors import PlanError
from foretaste.tune import checkpoint, loop
from foretaste.tune.loop import TuneResult, TuneSettings, cross_entropy, tune
from foretaste.victim.checkpoint import open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.module import Output
from foretaste.victim.strategy import STRATEGIES, Lora

pytestmark = pytest.mark.usefixtures("one_thread")

CORPUS = toy_corpus().select(range(21))
VALIDATION = toy_corpus("validation").select(range(30))
SETTINGS = TuneSettings(epochs=2, batch_size=6, learning_rate=3e-3, precision="float32")  # four steps an epoch


class Killed(BaseException):
    """The power is gone."""


@pytest.fixture(autouse=True)
def save_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SAVE_EVERY_S", 0.0)


class Training:
    """The same training again and again, each time with a fresh model, as a new process would."""

    def __init__(self, base: Path, strategy: str = "lora") -> None:
        self.base, self.strategy = base, strategy

    def run(self, store: Path | None = None, **changes: Any) -> tuple[TuneResult, dict[str, Tensor]]:
        """Train, from the store if there is one; return the result and all weights."""
        classifier: Classifier = open_base(self.base).classifier(STRATEGIES[self.strategy](), seed=1)
        options: dict[str, Any] = {"seed": 4, "validation": VALIDATION, "checkpoint": store} | changes
        result = tune(classifier, options.pop("corpus", CORPUS), options.pop("settings", SETTINGS), **options)
        return result, {name: p.detach() for name, p in classifier.module.named_parameters()}


def _assert_same(one: tuple[TuneResult, dict[str, Tensor]], other: tuple[TuneResult, dict[str, Tensor]]) -> None:
    assert replace(one[0], seconds=0.0) == replace(other[0], seconds=0.0)
    assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])


def _dies_at(call: int) -> Callable[[Output, NDArray[np.int64], Tensor], Tensor]:
    """An objective during whose n-th call the process dies."""
    calls = iter(range(1, 1_000))

    def objective(output: Output, rows: NDArray[np.int64], labels: Tensor) -> Tensor:
        if next(calls) == call:
            raise Killed
        return cross_entropy(output, rows, labels)

    return objective


@pytest.mark.parametrize("strategy", ["full", "p_tuning_v1"])
def test_a_death_in_any_step_changes_nothing(toy_base: Path, tmp_path: Path, strategy: str) -> None:
    training = Training(toy_base, strategy)
    whole = training.run()
    assert whole[0].steps == 8
    for call in range(1, 9):
        store = tmp_path / f"store-{call}"
        with pytest.raises(Killed):
            training.run(store, objective=_dies_at(call))
        assert store.exists() == (call > 1)
        _assert_same(training.run(store), whole)


def test_a_death_in_every_step_of_one_training_changes_nothing(toy_base: Path, tmp_path: Path) -> None:
    training = Training(toy_base)
    for _ in range(7):
        with pytest.raises(Killed):
            training.run(tmp_path / "store", objective=_dies_at(2))
    _assert_same(training.run(tmp_path / "store"), training.run())


def test_the_cost_of_a_resumed_training_is_that_of_all_its_parts(
    toy_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, clock = Training(toy_base), iter(range(0, 1_000_000, 100))
    monkeypatch.setattr("foretaste.tune.loop.time.monotonic", lambda: float(next(clock)))
    with pytest.raises(Killed):
        training.run(tmp_path / "store", objective=_dies_at(5))
    spent = json.loads((tmp_path / "store" / "foretaste.json").read_text(encoding="utf-8"))["state"]["seconds"]
    assert spent >= 400  # four steps, each of which looks at the clock
    with measured_cost() as meter:
        resumed, _ = training.run(tmp_path / "store")
    assert resumed.seconds > spent
    assert spent < meter.cost.seconds < spent + 60


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_death_while_an_epoch_is_judged_loses_none_of_it(
    toy_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    training = Training(toy_base)
    whole = training.run()
    judge, calls = loop._end_epoch, iter(range(1, 10))

    def dies(*arguments: Any) -> None:
        if next(calls) == epoch:
            raise Killed
        judge(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_end_epoch", dies)
        with pytest.raises(Killed):
            training.run(tmp_path / "store")
    resumed = training.run(tmp_path / "store")
    assert len(resumed[0].losses) == len(resumed[0].validation_accuracies) == 2
    _assert_same(resumed, whole)


def test_a_death_while_saving_keeps_the_last_save(
    toy_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(toy_base)
    whole = training.run()
    write, calls = files.write_json, iter(range(1, 20))

    def dies(*arguments: Any) -> None:
        if next(calls) == 4:
            raise Killed
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_json", dies)
        with pytest.raises(Killed):
            training.run(tmp_path / "store")
    assert json.loads((tmp_path / "store" / "foretaste.json").read_text())["state"]["step"] == 3
    _assert_same(training.run(tmp_path / "store"), whole)


def test_a_finished_training_is_not_done_again(toy_base: Path, tmp_path: Path) -> None:
    training = Training(toy_base)
    finished = training.run(tmp_path / "store")
    _assert_same(training.run(tmp_path / "store", objective=_dies_at(1)), finished)


def test_a_stopped_training_stays_stopped(toy_base: Path, tmp_path: Path) -> None:
    training = Training(toy_base)
    stopped = training.run(tmp_path / "store", should_stop=lambda step: step == 3)
    assert stopped[0].is_stopped_early
    _assert_same(training.run(tmp_path / "store"), stopped)


def test_saving_waits_for_its_time(toy_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SAVE_EVERY_S", 3600.0)
    with pytest.raises(Killed):
        Training(toy_base).run(tmp_path / "store", objective=_dies_at(4))
    assert not (tmp_path / "store").exists()
    with pytest.raises(Killed):
        Training(toy_base).run(tmp_path / "store", objective=_dies_at(6))
    assert json.loads((tmp_path / "store" / "foretaste.json").read_text())["state"]["step"] == 4  # the epoch's end


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": replace(SETTINGS, epochs=3)},
        {"settings": replace(SETTINGS, learning_rate=1e-3)},
        {"seed": 5},
        {"corpus": CORPUS.with_texts(CORPUS.texts, 1 - CORPUS.labels)},
        {"corpus": CORPUS.select(range(20))},
        {"validation": None},
        {"validation": VALIDATION.select(range(29))},
    ],
    ids=["epochs", "rate", "seed", "labels", "texts", "no validation", "other validation"],
)
def test_progress_of_another_run_is_refused(toy_base: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(Killed):
        Training(toy_base).run(tmp_path / "store", objective=_dies_at(3))
    with pytest.raises(PlanError, match="delete it to start over"):
        Training(toy_base).run(tmp_path / "store", **changes)


def test_progress_of_another_model_is_refused(toy_base: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        Training(toy_base).run(tmp_path / "store", objective=_dies_at(3))
    base = open_base(toy_base)
    for other in (
        base.classifier(Lora(rank=4)),
        base.classifier(Lora(), max_length=20),
        base.classifier(Lora(), ("a", "b", "c")),
    ):
        with pytest.raises(PlanError, match="other settings, data or model"):
            tune(other, CORPUS, SETTINGS, seed=4, validation=VALIDATION, checkpoint=tmp_path / "store")


@pytest.mark.parametrize("name", ["foretaste.json", "state.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[]"])
def test_progress_that_cannot_be_read_says_what_to_do(
    toy_base: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    store = tmp_path / "store"
    with pytest.raises(Killed):
        Training(toy_base).run(store, objective=_dies_at(3))
    (store / name).write_bytes(content)
    with pytest.raises(PlanError, match=r"cannot be read .*; delete it to start over"):
        Training(toy_base).run(store)


def test_somebody_elses_directory_is_not_overwritten(toy_base: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(PlanError, match="choose another"):
        Training(toy_base).run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


TRAIN = """
    import torch
    from pathlib import Path
    from safetensors.torch import save_file
    from foretaste.data import toy_corpus
    from foretaste.tune import checkpoint
    from foretaste.tune.loop import TuneSettings, tune
    from foretaste.victim.checkpoint import open_base
    from foretaste.victim.strategy import Lora

    torch.set_num_threads(1)
    checkpoint.SAVE_EVERY_S = 0.0
    corpus, validation = toy_corpus().select(range(200)), toy_corpus("validation").select(range(30))
    settings = TuneSettings(epochs=3, batch_size=10, learning_rate=3e-3, precision="float32")
    classifier = open_base(base).classifier(Lora(), seed=1)
    tune(classifier, corpus, settings, seed=4, validation=validation, checkpoint=store)
    save_file({name: p.detach().contiguous() for name, p in classifier.trainable.items()}, result)
    """


def _saved_step(store: Path) -> int:
    try:
        return int(json.loads((store / "foretaste.json").read_text())["state"]["step"])
    except FileNotFoundError:
        return 0


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is a POSIX matter")
def test_kills_at_any_moment_change_nothing(
    toy_base: Path, tmp_path: Path, start_process: Callable[..., BaseProcess]
) -> None:
    store, draw = tmp_path / "store", random.Random()
    for kill in range(6):
        process = start_process(TRAIN, base=toy_base, store=store, result=tmp_path / "early")
        goal = _saved_step(store) + draw.randint(0, 5)  # the whole training has 60 steps
        while process.is_alive() and _saved_step(store) < goal:
            time.sleep(0.002)
        time.sleep(draw.uniform(0.0, 0.03))  # in the middle of anything
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"ended by itself before kill {kill + 1}"
    assert 0 < _saved_step(store) < 60
    for name, place in (("killed", store), ("whole", None)):
        process = start_process(TRAIN, base=toy_base, store=place, result=tmp_path / name)
        process.join()
        assert process.exitcode == 0
    killed, whole = load_file(tmp_path / "killed"), load_file(tmp_path / "whole")
    assert killed.keys() == whole.keys()
    assert all(torch.equal(killed[name], whole[name]) for name in whole)
