"""The trainings that cells are made from. Equal steps have equal keys, so that none is done twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from foretaste.cost import measured_cost
from foretaste.data.corpus import Corpus
from foretaste.experiment.lab import Lab
from foretaste.experiment.step import Checkpoint, Step, Texts
from foretaste.experiment.store import Store
from foretaste.guard.artefact import save_guard
from foretaste.guard.psim import Psim
from foretaste.guard.second_opinion import SecondOpinion
from foretaste.poison.attack import unpoisoned
from foretaste.poison.plan import Attack
from foretaste.tune.launch import write_once
from foretaste.tune.loop import TuneSettings, tune
from foretaste.tune.poison import poison_base
from foretaste.unlearn.unlearner import Unlearner
from foretaste.victim.artefact import save_classifier
from foretaste.victim.strategy import Strategy

__all__ = ["Poisoned", "Taster", "Trusted", "Tuned", "TunedAsLong", "Washed"]


@dataclass(frozen=True, kw_only=True)
class Poisoned(Step):
    """A base somebody poisoned; if it is asked with an instruction, it is the victim as it is."""

    kind: ClassVar[str] = "bases"
    base: Checkpoint
    attack: Attack
    proxy: Texts
    validation: Texts
    settings: TuneSettings
    max_length: int
    seed: int

    def make_of(self, sources: Mapping[str, str], lab: Lab) -> None:
        with measured_cost() as meter:
            made, outcome = poison_base(
                lab.base(self.base), lab.corpus(self.proxy), lab.corpus(self.validation), self.attack, seed=self.seed,
                settings=self.settings, max_length=self.max_length, checkpoint=self.partial(sources, lab),
            )  # fmt: skip
        record = self.record(lab, sources, outcome, meter.cost, self.seed, self.proxy, self.validation)
        write_once(lambda: save_classifier(made, self.place(lab.store), "base", record))


@dataclass(frozen=True, kw_only=True)
class Washed(Step):
    """A base after an unlearner."""

    kind: ClassVar[str] = "washed"
    base: Poisoned | Tuned
    unlearner: Unlearner
    pretrained: Checkpoint
    teacher: Checkpoint
    train: Texts
    validation: Texts
    max_length: int
    seed: int

    def make_of(self, sources: Mapping[str, str], lab: Lab) -> None:
        given: dict[str, Any] = {}
        if "teacher" in self.unlearner.needs:
            given["teacher"] = lab.base(self.teacher)
        if "pretrained" in self.unlearner.needs:
            given["pretrained"] = lab.base(self.pretrained)
        with measured_cost() as meter:
            found = self.unlearner.apply(
                lab.base(self.base), lab.corpus(self.train), validation=lab.corpus(self.validation), seed=self.seed,
                max_length=self.max_length, checkpoint=self.partial(sources, lab), **given,
            )  # fmt: skip
            meter.trainable_parameters = found.outcome["trainable_parameters"]
        record = self.record(lab, sources, found.outcome, meter.cost, self.seed, self.train, self.validation)
        write_once(lambda: save_classifier(found.classifier, self.place(lab.store), "victim", record))


@dataclass(frozen=True, kw_only=True)
class Tuned(Step):
    """A victim: a base and what its user fine-tuned on it."""

    kind: ClassVar[str] = "victims"
    base: Checkpoint | Poisoned | Tuned | Washed
    strategy: Strategy
    settings: TuneSettings
    train: Texts
    validation: Texts
    max_length: int
    seed: int

    def learnt(self, lab: Lab) -> Corpus:
        """The texts that it is tuned on."""
        return lab.corpus(self.train)

    def make_of(self, sources: Mapping[str, str], lab: Lab) -> None:
        train = self.learnt(lab)
        made = lab.base(self.base).classifier(
            self.strategy, train.label_names, max_length=self.max_length, seed=self.seed
        )
        with measured_cost() as meter:
            result = tune(
                made, train, self.settings, seed=self.seed, validation=lab.corpus(self.validation),
                checkpoint=self.partial(sources, lab), title="victim",
            )  # fmt: skip
            meter.texts, meter.trainable_parameters = result.texts, result.trainable_parameters
        outcome = {"steps": result.steps, "validation_accuracies": result.validation_accuracies}
        record = self.record(lab, sources, outcome, meter.cost, self.seed, self.train, self.validation)
        write_once(lambda: save_classifier(made, self.place(lab.store), "victim", record))


@dataclass(frozen=True, kw_only=True)
class TunedAsLong(Tuned):
    """The same on texts cut as an attacker cuts his clean ones (`match_lengths`): all but the poison is his."""

    attack: Attack

    def learnt(self, lab: Lab) -> Corpus:
        return unpoisoned(lab.corpus(self.train), self.attack, self.seed)


@dataclass(frozen=True, kw_only=True)
class Taster(Step):
    """PSIM on a base."""

    kind: ClassVar[str] = "guards"
    base: Poisoned | Tuned
    psim: Psim
    train: Texts
    validation: Texts
    max_length: int
    seed: int

    def stands_on(self, store: Store) -> Iterator[Step]:
        yield from self.direct_needs()  # however it was trained, it is bound to its base

    def make_of(self, sources: Mapping[str, str], lab: Lab) -> None:
        with measured_cost() as meter:
            made = self.psim.fit(
                lab.base(self.base), lab.corpus(self.train), lab.corpus(self.validation), seed=self.seed,
                max_length=self.max_length,
            )  # fmt: skip
            if made.training is not None:
                meter.texts, meter.trainable_parameters = made.training.texts, made.training.trainable_parameters
        outcome = {"threshold": made.threshold, "doses": made.doses, "is_blind": made.is_blind}
        record = self.record(lab, sources, outcome, meter.cost, self.seed, self.train, self.validation)
        write_once(lambda: save_guard(made, self.place(lab.store), record))


@dataclass(frozen=True, kw_only=True)
class Trusted(Step):
    """A model of known origin, fine-tuned on the clean texts: what a second opinion asks."""

    kind: ClassVar[str] = "trusted"
    base: Checkpoint
    opinion: SecondOpinion
    train: Texts
    max_length: int
    seed: int

    def make_of(self, sources: Mapping[str, str], lab: Lab) -> None:
        with measured_cost() as meter:
            made = self.opinion.tuned(
                lab.base(self.base), lab.corpus(self.train), max_length=self.max_length, seed=self.seed,
                checkpoint=self.partial(sources, lab),
            )  # fmt: skip
            meter.trainable_parameters = sum(each.numel() for each in made.trainable.values())
        record = self.record(lab, sources, {}, meter.cost, self.seed, self.train)
        write_once(lambda: save_classifier(made, self.place(lab.store), "victim", record))
