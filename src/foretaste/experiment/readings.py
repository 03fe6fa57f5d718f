"""What models make of test texts: answers, scores, rewritten texts, each with what it cost, as one file each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from foretaste.cost import Cost, Meter, measured_cost, sum_of
from foretaste.errors import DataError, PlanError
from foretaste.experiment.lab import Lab
from foretaste.experiment.step import Step, Texts
from foretaste.experiment.steps import Poisoned, Taster, Trusted, Tuned
from foretaste.experiment.store import Store, digest_of, load_arrays, save_arrays, sources_of
from foretaste.files import write_text
from foretaste.guard.artefact import load_psim
from foretaste.guard.rival import Rival
from foretaste.guard.second_opinion import SecondOpinion
from foretaste.poison.attack import Triggered
from foretaste.poison.trigger import Trigger
from foretaste.rewrite.rewriter import Rewriter, Rewriting
from foretaste.rewrite.stored import StoredRewriting
from foretaste.spec import build
from foretaste.victim.artefact import load_victim
from foretaste.victim.classifier import Classifier

__all__ = ["Answers", "Opinions", "Reading", "Rewritten", "RivalScores", "Scores", "work_of"]


@dataclass(frozen=True, kw_only=True)
class Reading(Step):
    """What comes of texts, clean (`trigger` None) or triggered, as one file of arrays; its cost is per text."""

    is_training: ClassVar[bool] = False
    texts: Texts
    trigger: Trigger | None
    target: int | None
    seed: int

    def place(self, store: Store) -> Path:
        return store.root / self.kind / f"{self.key}.npz"

    def is_made(self, store: Store) -> bool:
        return self.place(store).is_file() and not self.is_outdated(store)

    def recorded_sources(self, store: Store) -> dict[str, str]:
        try:
            return sources_of(load_arrays(self.place(store)))
        except DataError:  # who reads it says that it is damaged
            return self.sources(store)

    def given(self, lab: Lab) -> Triggered:
        """Return the texts as they reach the user, with their true labels, and which rows of the split they are.

        Raises:
            DataError: finished texts that are not there, not those of the split, or none of a class.
        """
        corpus = lab.corpus(self.texts)
        if self.trigger is None:
            return Triggered(corpus, np.arange(len(corpus)))
        return lab.with_trigger(self.texts, self.trigger, self.target, self.seed)

    def both(self, lab: Lab) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the clean texts, and the triggered ones or none."""
        return lab.corpus(self.texts).texts, () if self.trigger is None else self.given(lab).corpus.texts

    def found(self, lab: Lab) -> dict[str, NDArray[Any]]:
        """Return the arrays.

        Raises:
            DataError: the file is damaged.
        """
        return load_arrays(self.place(lab.store))

    def cost(self, lab: Lab) -> Cost:
        """Return what it cost: `seconds` to get ready, the others per text."""
        return work_of(self.place(lab.store))[1]

    def keep(self, lab: Lab, sources: Mapping[str, str], cost: Cost, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write arrays, cost and whose they are."""
        told = {"cost": asdict(cost), "sources": dict(sources), "work": self.work}
        texts = {name: np.asarray(json.dumps(each)) for name, each in told.items()}
        save_arrays(self.place(lab.store), {**arrays, **texts})


def work_of(path: Path) -> tuple[str, Cost]:
    """Return the `work` that made a reading's file, as far as it says so, and its cost.

    Raises:
        DataError: the file is damaged, or cost nothing.
    """
    try:
        if path.suffix == ".json":
            found: Any = json.loads(path.read_text(encoding="utf-8"))
            return str(found.get("work", "")), build(Cost, found["cost"])
        arrays = load_arrays(path)
        work = json.loads(str(arrays.get("work", '""')))
        return str(work), build(Cost, json.loads(str(arrays["cost"])))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, PlanError) as error:
        raise DataError(f"{path} does not say what it cost: {error!r}.") from None


def _per_text(meter: Meter, texts: int, ready: Cost | None = None, stored: int | None = None) -> Cost:
    """The cost of reading so many texts, and of what had to be made `ready` for it."""
    highest = sum_of([meter.cost] if ready is None else [meter.cost, ready])
    return Cost(
        seconds=0.0 if ready is None else ready.seconds,
        texts=texts,
        peak_memory_bytes=highest.peak_memory_bytes,
        peak_gpu_memory_bytes=highest.peak_gpu_memory_bytes,
        seconds_per_text=meter.cost.seconds / texts,
        forwards_per_text=meter.forwards / texts,
        stored_bytes=stored,
    )


def _size(step: Step, lab: Lab) -> int:
    """How many bytes a training left."""
    return sum(path.stat().st_size for path in step.place(lab.store).iterdir())


@dataclass(frozen=True, kw_only=True)
class Rewritten(Reading):
    """Texts as a rewriter leaves them, whatever model reads them then.

    `train` and `validation` are what it learns from, if it does. Finished texts that are stored cost nothing here.
    """

    kind: ClassVar[str] = "rewritten"
    version: ClassVar[int] = 3
    rewriter: Rewriting
    train: Texts | None
    validation: Texts | None

    def place(self, store: Store) -> Path:
        return store.root / self.kind / f"{self.key}.json"

    @property
    def lacking(self) -> str:
        """What it needs and is not on this machine: tools, stored texts; nothing if all is."""
        if isinstance(self.rewriter, StoredRewriting):
            return self.rewriter.lacking_of(self.texts.data, self._trigger_name)
        return self.rewriter.lacking()

    @property
    def _trigger_name(self) -> str | None:
        return None if self.trigger is None else self.trigger.name

    def make_of(self, sources: Mapping[str, str], lab: Lab) -> None:
        given = self.given(lab)
        corpus, cost = lab.corpus(self.texts), None
        if isinstance(self.rewriter, StoredRewriting):
            texts = self.rewriter.texts_of(corpus, given.origins.tolist(), given.corpus.texts, self._trigger_name)
        else:
            rewriter, ready = self._fitted(lab)
            with measured_cost() as meter:
                texts = rewriter.rewrite(given.corpus.texts)
            cost = asdict(_per_text(meter, len(texts), ready, self.rewriter.stored_bytes()))
        write_text(self.place(lab.store), json.dumps({"texts": texts, "cost": cost, "work": self.work}))

    def _fitted(self, lab: Lab) -> tuple[Rewriter, Cost]:
        """The rewriter, ready, and what that took: one for clean texts and for triggered ones."""
        learns_from = [part or self.texts for part in (self.train, self.validation)]
        key = digest_of([self.rewriter, learns_from, self.seed])
        if key not in lab.fitted:
            if self.rewriter.marked() != self.rewriter:
                raise DataError(f"The tools of {self.rewriter.name} are not those that the plan was begun with.")
            with measured_cost() as ready:
                made = self.rewriter.fit(*map(lab.corpus, learns_from), seed=self.seed)
            lab.fitted.clear()  # a language model may fill the memory
            lab.fitted[key] = made, ready.cost
        return lab.fitted[key]

    def written(self, lab: Lab) -> tuple[str, ...]:
        """Return the texts.

        Raises:
            DataError: the file is damaged.
        """
        return tuple(self._made(lab)["texts"])

    def cost(self, lab: Lab) -> Cost:
        found = self._made(lab)["cost"]
        return Cost(seconds=0.0) if found is None else build(Cost, found)

    def _made(self, lab: Lab) -> dict[str, Any]:
        path = self.place(lab.store)
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(found["texts"], list) and "cost" in found:
                return found
        except (OSError, ValueError, LookupError, TypeError):
            pass
        raise DataError(f"{path} is damaged; delete it, and it is made again.")


@dataclass(frozen=True, kw_only=True)
class Answers(Reading):
    """`predicted (N,) int64`, -1 where the victim gives no number, of texts as they are or `rewritten` before.

    Beside it the true `labels (N,) int64`, the victim's `certainty (N,) float32`, the highest class probability, and
    `is_truncated (N,) bool`: longer than the victim reads.
    """

    kind: ClassVar[str] = "answers"
    version: ClassVar[int] = 3
    victim: Tuned | Poisoned
    rewritten: Rewritten | None = None

    def make_of(self, sources: Mapping[str, str], lab: Lab) -> None:
        victim: Classifier = load_victim(self.victim.place(lab.store)).merge()
        given = self.given(lab).corpus
        texts = given.texts if self.rewritten is None else self.rewritten.written(lab)
        with measured_cost() as meter:
            said = victim.predict(texts)
        arrays: dict[str, NDArray[Any]] = {"predicted": said.answers, "labels": given.labels}
        arrays["is_truncated"] = said.is_truncated
        self.keep(
            lab, sources, _per_text(meter, len(texts)), {**arrays, "certainty": said.certainty.astype(np.float32)}
        )


@dataclass(frozen=True, kw_only=True)
class RivalScores(Reading):
    """`clean (N,)` and `triggered (M,) float64` of a rival behind its victim, and its `threshold`."""

    kind: ClassVar[str] = "rivals"
    version: ClassVar[int] = 2
    victim: Tuned | Poisoned
    rival: Rival
    train: Texts
    validation: Texts

    def make_of(self, sources: Mapping[str, str], lab: Lab) -> None:
        with measured_cost() as ready:
            victim = load_victim(self.victim.place(lab.store)).merge()
            guard = self.rival.fit(victim, lab.corpus(self.train), lab.corpus(self.validation), seed=self.seed)
        clean, triggered = self.both(lab)
        with measured_cost() as meter:
            scores = [guard.score(texts) if texts else np.zeros(0) for texts in (clean, triggered)]
        cost = _per_text(meter, len(clean) + len(triggered), ready.cost, guard.stored_bytes)
        arrays = {"clean": scores[0], "triggered": scores[1], "threshold": np.asarray(guard.threshold)}
        self.keep(lab, sources, cost, arrays)


@dataclass(frozen=True, kw_only=True)
class Opinions(Reading):
    """The same of a second opinion, whose trusted model is a step of its own: all victims of a task share it."""

    kind: ClassVar[str] = "rivals"
    victim: Tuned | Poisoned
    trusted: Trusted
    opinion: SecondOpinion
    train: Texts
    validation: Texts

    def make_of(self, sources: Mapping[str, str], lab: Lab) -> None:
        trusted, victim = (load_victim(step.place(lab.store)) for step in (self.trusted, self.victim))
        with measured_cost() as ready:
            victim = victim.merge()
            found = self.opinion.consult([trusted], victim, lab.corpus(self.train), seed=self.seed)
            guard = self.opinion.fit(found, victim, lab.corpus(self.validation))
        clean, triggered = self.both(lab)
        texts = (*clean, *triggered)
        said = victim.predict(texts)  # which it does anyway
        with measured_cost() as meter:
            scores = guard.behind(victim, said, texts, np.zeros(len(texts)))
        size = _size(self.trusted, lab)
        arrays = {"clean": scores[: len(clean)], "triggered": scores[len(clean) :]}
        self.keep(
            lab,
            sources,
            _per_text(meter, len(texts), ready.cost, size),
            {**arrays, "threshold": np.asarray(guard.threshold)},
        )


@dataclass(frozen=True, kw_only=True)
class Scores(Reading):
    """`scores (N,) float64` of a guard, and its `threshold`."""

    kind: ClassVar[str] = "scores"
    version: ClassVar[int] = 2
    guard: Taster

    def make_of(self, sources: Mapping[str, str], lab: Lab) -> None:
        guard = load_psim(self.guard.place(lab.store), lab.base(self.guard.base))
        texts = self.given(lab).corpus.texts
        with measured_cost() as meter:
            scores = guard.score(texts)
        cost = _per_text(meter, len(texts), stored=_size(self.guard, lab))
        self.keep(lab, sources, cost, {"scores": scores, "threshold": np.asarray(guard.threshold)})
