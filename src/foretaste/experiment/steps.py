"""What cells are made from. A step is a frozen spec; equal specs have equal keys, so that no step is done twice."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from foretaste.data.corpus import Corpus
from foretaste.errors import DataError
from foretaste.experiment.lab import Checkpoint, Lab, Step, Texts
from foretaste.experiment.store import Store, save_arrays
from foretaste.files import write_text
from foretaste.guard.artefact import load_psim, save_guard
from foretaste.guard.psim import Psim
from foretaste.guard.rival import Rival
from foretaste.poison.attack import Attack, triggered_test
from foretaste.poison.trigger import Trigger
from foretaste.record import measured_cost
from foretaste.rewrite.rewriter import Rewriting
from foretaste.rewrite.stored import StoredRewriting
from foretaste.tune.loop import TuneSettings, tune
from foretaste.tune.poison import poison_base
from foretaste.unlearn.unlearner import Unlearner
from foretaste.victim.artefact import load_victim, save_classifier
from foretaste.victim.classifier import Classifier
from foretaste.victim.strategy import Strategy

__all__ = ["Answers", "Poisoned", "Rewritten", "RivalScores", "Scores", "Taster", "Tuned", "Washed"]


@dataclass(frozen=True, kw_only=True)
class Poisoned(Step):
    """A base somebody poisoned."""

    kind: ClassVar[str] = "bases"
    base: Checkpoint
    attack: Attack
    proxy: Texts
    validation: Texts
    settings: TuneSettings
    max_length: int
    seed: int

    def make(self, lab: Lab) -> None:
        with measured_cost() as meter:
            made, outcome = poison_base(
                lab.base(self.base), lab.corpus(self.proxy), lab.corpus(self.validation), self.attack, seed=self.seed,
                settings=self.settings, max_length=self.max_length, checkpoint=lab.store.partial(self.key),
            )  # fmt: skip
        record = self.record(lab, outcome, meter.cost, self.seed, self.proxy, self.validation)
        save_classifier(made, self.place(lab.store), "base", record)


@dataclass(frozen=True, kw_only=True)
class Washed(Step):
    """A base after an unlearner."""

    kind: ClassVar[str] = "washed"
    base: Checkpoint | Poisoned
    unlearner: Unlearner
    pretrained: Checkpoint
    teacher: Checkpoint
    train: Texts
    validation: Texts
    max_length: int
    seed: int

    def make(self, lab: Lab) -> None:
        given: dict[str, Any] = {}
        if "teacher" in self.unlearner.needs:
            given["teacher"] = lab.base(self.teacher)
        if "pretrained" in self.unlearner.needs:
            given["pretrained"] = lab.base(self.pretrained)
        with measured_cost() as meter:
            found = self.unlearner.apply(
                lab.base(self.base), lab.corpus(self.train), validation=lab.corpus(self.validation), seed=self.seed,
                max_length=self.max_length, checkpoint=lab.store.partial(self.key), **given,
            )  # fmt: skip
            meter.trainable_parameters = found.outcome["trainable_parameters"]
        record = self.record(lab, found.outcome, meter.cost, self.seed, self.train, self.validation)
        save_classifier(found.classifier, self.place(lab.store), "victim", record)


@dataclass(frozen=True, kw_only=True)
class Tuned(Step):
    """A victim: a base and what its user fine-tuned on it."""

    kind: ClassVar[str] = "victims"
    base: Checkpoint | Poisoned | Washed
    strategy: Strategy
    settings: TuneSettings
    train: Texts
    validation: Texts
    max_length: int
    seed: int

    def make(self, lab: Lab) -> None:
        train = lab.corpus(self.train)
        made = lab.base(self.base).classifier(
            self.strategy, train.label_names, max_length=self.max_length, seed=self.seed
        )
        with measured_cost() as meter:
            result = tune(
                made, train, self.settings, seed=self.seed, validation=lab.corpus(self.validation),
                checkpoint=lab.store.partial(self.key), title="victim",
            )  # fmt: skip
            meter.texts, meter.trainable_parameters = result.texts, result.trainable_parameters
        outcome = {"steps": result.steps, "validation_accuracies": result.validation_accuracies}
        record = self.record(lab, outcome, meter.cost, self.seed, self.train, self.validation)
        save_classifier(made, self.place(lab.store), "victim", record)


@dataclass(frozen=True, kw_only=True)
class Taster(Step):
    """PSIM on a base."""

    kind: ClassVar[str] = "guards"
    base: Checkpoint | Poisoned
    psim: Psim
    train: Texts
    validation: Texts
    max_length: int
    seed: int

    def make(self, lab: Lab) -> None:
        with measured_cost() as meter:
            made = self.psim.fit(
                lab.base(self.base), lab.corpus(self.train), lab.corpus(self.validation), seed=self.seed,
                max_length=self.max_length,
            )  # fmt: skip
            if made.training is not None:
                meter.texts, meter.trainable_parameters = made.training.texts, made.training.trainable_parameters
        outcome = {"threshold": made.threshold, "doses": made.doses, "is_blind": made.is_blind}
        record = self.record(lab, outcome, meter.cost, self.seed, self.train, self.validation)
        save_guard(made, self.place(lab.store), record)


@dataclass(frozen=True, kw_only=True)
class _Read(Step):
    """What a model says of texts, clean (`trigger` None) or triggered, as one file of arrays."""

    is_training: ClassVar[bool] = False
    texts: Texts
    trigger: Trigger | None
    target: int
    seed: int

    def place(self, store: Store) -> Path:
        return store.root / self.kind / f"{self.key}.npz"

    def is_made(self, store: Store) -> bool:
        return self.place(store).is_file()

    def read(self, lab: Lab) -> tuple[str, ...]:
        """Return the texts as they reach the user."""
        return self.rows(lab)[1].texts

    def rows(self, lab: Lab) -> tuple[list[int], Corpus]:
        """Return which rows of the split they are, and the texts with their true labels."""
        corpus = lab.corpus(self.texts)
        if self.trigger is None:
            return list(range(len(corpus))), corpus
        found = triggered_test(corpus, self.trigger, self.target, self.seed)
        return found.origins.tolist(), found.corpus


@dataclass(frozen=True, kw_only=True)
class Rewritten(_Read):
    """Texts as a rewriter leaves them, whatever model reads them then: `texts` and the `seconds` that it took.

    `train` and `validation` are what it learns from, if it does.
    """

    kind: ClassVar[str] = "rewritten"
    version: ClassVar[int] = 2
    rewriter: Rewriting
    train: Texts | None
    validation: Texts | None

    def place(self, store: Store) -> Path:
        return store.root / self.kind / f"{self.key}.json"

    def make(self, lab: Lab) -> None:
        corpus, start = lab.corpus(self.texts), time.monotonic()
        if isinstance(self.rewriter, StoredRewriting):
            rows, given = self.rows(lab)
            trigger = None if self.trigger is None else self.trigger.name
            texts = self.rewriter.texts_of(corpus, rows, given.texts, trigger)
        else:
            clean = [corpus if part is None else lab.corpus(part) for part in (self.train, self.validation)]
            texts = self.rewriter.fit(*clean, seed=self.seed).rewrite(self.read(lab))
        made = {"texts": texts, "seconds": time.monotonic() - start}
        write_text(self.place(lab.store), json.dumps(made))

    def read_made(self, lab: Lab) -> tuple[str, ...]:
        """Return the texts as they were written.

        Raises:
            DataError: the file is damaged.
        """
        path = self.place(lab.store)
        try:
            return tuple(json.loads(path.read_text(encoding="utf-8"))["texts"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise DataError(f"{path} cannot be read ({error!r}); delete it, and it is made again.") from error


@dataclass(frozen=True, kw_only=True)
class Answers(_Read):
    """`predicted (N,) int64`, -1 where the victim gives no number, of texts as they are or `rewritten` before.

    Beside it the true `labels (N,) int64`.
    """

    kind: ClassVar[str] = "answers"
    version: ClassVar[int] = 2
    victim: Tuned
    rewritten: Rewritten | None = None

    def make(self, lab: Lab) -> None:
        victim: Classifier = load_victim(self.victim.place(lab.store)).merge()
        said = victim.predict(self.read(lab) if self.rewritten is None else self.rewritten.read_made(lab))
        is_sound = np.isfinite(said.logits).all(axis=1)
        found = {"predicted": np.where(is_sound, said.labels, -1), "labels": self.rows(lab)[1].labels}
        save_arrays(self.place(lab.store), found)


@dataclass(frozen=True, kw_only=True)
class RivalScores(_Read):
    """`clean (N,)` and `triggered (M,) float64` of a rival behind its victim, its `threshold`, and `seconds` it took.

    `seconds` are those of making and calibrating it, and of scoring.
    """

    kind: ClassVar[str] = "rivals"
    victim: Tuned
    rival: Rival
    train: Texts
    validation: Texts

    def make(self, lab: Lab) -> None:
        start = time.monotonic()
        victim = load_victim(self.victim.place(lab.store)).merge()
        guard = self.rival.fit(victim, lab.corpus(self.train), lab.corpus(self.validation), seed=self.seed)
        made = time.monotonic()
        arrays = {"clean": guard.score(lab.corpus(self.texts).texts), "triggered": np.zeros(0)}
        if self.trigger is not None:
            arrays["triggered"] = guard.score(self.read(lab))
        seconds = np.asarray([made - start, time.monotonic() - made])
        save_arrays(self.place(lab.store), {**arrays, "threshold": np.asarray(guard.threshold), "seconds": seconds})


@dataclass(frozen=True, kw_only=True)
class Scores(_Read):
    """`scores (N,) float64` of a guard, and its `threshold`."""

    kind: ClassVar[str] = "scores"
    guard: Taster

    def make(self, lab: Lab) -> None:
        guard = load_psim(self.guard.place(lab.store), lab.base(self.guard.base))
        scores = guard.score(self.read(lab))
        save_arrays(self.place(lab.store), {"scores": scores, "threshold": np.asarray(guard.threshold)})
