"""A cell with the steps it reads, and which of them have to be made."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

from foretaste.experiment.cell import Cell
from foretaste.experiment.readings import Answers, Opinions, Reading, RivalScores, Scores
from foretaste.experiment.step import Step, Texts
from foretaste.experiment.steps import Washed
from foretaste.experiment.store import Store, digest_of
from foretaste.poison.attack import Attack

__all__ = ["Job"]

CELL_VERSION = 3  # goes up when the same answers and scores would give another record


@dataclass(frozen=True, eq=False)
class Job:
    """A cell with the steps whose results it reads: clean and triggered texts, in front of them a guard or none.

    `tested` is the attack whose trigger they bear. `threshold` takes the place of the one that the guard is stored
    with: guards that differ in a fixed threshold alone are one.
    """

    cell: Cell
    tested: Attack | None
    clean: Answers
    triggered: Answers | None
    clean_scores: Scores | None
    triggered_scores: Scores | None
    rival: RivalScores | Opinions | None
    threshold: float | None

    @cached_property
    def key(self) -> str:
        """The digest of everything that goes into the cell's record."""
        own = {} if self.threshold is None else {"threshold": self.threshold}
        return digest_of({"version": CELL_VERSION, "cell": self.cell, "of": list(self.ends.values()), **own})

    @property
    def outline(self) -> str:
        """A digest of what of it can be known without weights and tools from elsewhere: its texts, and all versions."""
        steps = self.steps
        own = [getattr(step, each.name) for step in steps for each in fields(step)]
        texts = sorted({each.digest for each in own if isinstance(each, Texts)})
        return digest_of([CELL_VERSION, sorted({f"{step.kind} {step.version}" for step in steps}), texts])

    @property
    def steps(self) -> tuple[Step, ...]:
        """All that has to be made, in an order in which it can be."""
        found: dict[str, Step] = {}
        for end in self.ends.values():
            for step in (*end.needs(), end):
                found.setdefault(step.key, step)
        return tuple(found.values())

    def to_make(self, store: Store) -> tuple[Step, ...]:
        """What is not there yet, in an order in which it can be made; what only finished steps need is not needed.

        So the weights in a store may be deleted: answers, scores and records are enough for what was asked of them.
        What is needed to open something that was kept is made again; if it comes out otherwise, all that was made from
        it follows, which shows when this is asked again.
        """
        found: dict[str, Step] = {}

        def add(step: Step) -> None:
            if not step.is_made(store):
                for need in step.direct_needs():
                    open_(need)
                found.setdefault(step.key, step)

        def open_(step: Step) -> None:
            add(step)
            if step.key not in found:
                for under in step.stands_on(store):
                    open_(under)

        for step in (*self.ends.values(), *(each for each in self.charged if not each.record_place(store).is_file())):
            add(step)
        if not found and self.sources(store) is None:  # weights that are gone, of which each end knew others
            for end in self.ends.values():
                for need in end.direct_needs():
                    open_(need)
        return tuple(found.values())

    def left(self, store: Store) -> tuple[Step, ...]:
        """What is to be made before its record can be written; nothing if that is there."""
        return () if store.cell(self.key).is_file() else self.to_make(store)

    def sources(self, store: Store) -> dict[str, str] | None:
        """Return the digests of the weights whose readings, all made, it reads, by step; None if they disagree."""
        found: dict[str, str] = {}
        for end in self.ends.values():
            for key, mark in end.recorded_sources(store).items():
                if found.setdefault(key, mark) != mark:
                    return None
        return found

    @property
    def charged(self) -> tuple[Step, ...]:
        """The trainings that the defence costs."""
        guard: tuple[Step, ...] = () if self.clean_scores is None else (self.clean_scores.guard,)
        if isinstance(self.rival, Opinions):
            guard = (self.rival.trusted,)
        washed = self.clean.victim.base
        return (*guard, washed) if isinstance(washed, Washed) else guard

    @property
    def ends(self) -> dict[str, Reading]:
        """The steps whose results it reads, by name."""
        names = ("clean", "triggered", "clean_scores", "triggered_scores", "rival")
        return {name: end for name in names if (end := getattr(self, name)) is not None}
