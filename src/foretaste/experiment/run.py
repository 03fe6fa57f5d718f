"""Do a plan: whatever is not in the store yet, by one runner or many; killed at any moment, it goes on where it was."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from foretaste.errors import ForetasteError, PlanError, WriteError
from foretaste.experiment.cell import Cell
from foretaste.experiment.grid import job_of, record_of
from foretaste.experiment.job import Job
from foretaste.experiment.lab import Lab
from foretaste.experiment.plan import Plan
from foretaste.experiment.processes import in_processes
from foretaste.experiment.readings import Rewritten
from foretaste.experiment.step import Checkpoint, Step
from foretaste.experiment.store import Store
from foretaste.record import Record
from foretaste.spec import values_of

__all__ = [
    "WAIT",
    "Progress",
    "finish",
    "forget_finished",
    "jobs_of",
    "lacking",
    "made",
    "run_plan",
    "without_missing",
]

WAIT = 0.5  # seconds between two looks at what another runner is making
LONGEST_WAIT = 60.0


@dataclass
class Progress:
    """How far a runner has come: cells `done`, steps `made`; `failed` are cells (or steps) with the reason."""

    cells: int
    done: int = 0
    made: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def reasons(self) -> dict[str, int]:
        """What is not here, and how many cells need it."""
        return dict(Counter(self.missing.values()))


def run_plan(plan: Plan, lab: Lab, cells: Sequence[Cell], say: Callable[[str], None], start: int = 0) -> Progress:
    """Finish the cells, in any order, beside other runners on the same store; one that fails does not stop the others.

    `start` is where in the list this runner begins, so that several do not queue for the same step.

    Raises:
        PlanError: see `jobs_of`; nothing was made then.
    """
    progress = Progress(cells=len(cells))
    jobs = without_missing(jobs_of(plan, lab, cells), lab, progress)
    forget_finished(jobs, lab)
    pending = jobs[start % max(1, len(jobs)) :] + jobs[: start % max(1, len(jobs))]
    while pending:
        began, before = time.monotonic(), progress.made
        later = [job for job in pending if not _advance(job, lab, progress, say)]
        if len(later) == len(pending) and progress.made == before:  # looking takes a tenth of the time, if it can
            time.sleep(min(max(WAIT, 9 * (time.monotonic() - began)), LONGEST_WAIT))
        pending = later
    return progress


def jobs_of(plan: Plan, lab: Lab, cells: Sequence[Cell]) -> list[Job]:
    """Return what each cell needs.

    Raises:
        PlanError: cells that cannot be run with these data, each reason once.
    """
    jobs, wrong = list[Job](), Counter[str]()
    for cell in cells:
        try:
            jobs.append(job_of(cell, plan, lab))
        except ForetasteError as error:
            wrong.update(map(str, error.args))
    if wrong:
        raise PlanError(*(f"{count} of {len(cells)} cells: {reason}" for reason, count in wrong.items()))
    return jobs


def without_missing(jobs: Sequence[Job], lab: Lab, progress: Progress) -> list[Job]:
    """Return the cells whose weights and tools are here; the others are noted in `progress`."""
    missing = {str(job.cell): what for job in jobs if (what := lacking(job, lab))}
    progress.missing |= missing
    return [job for job in jobs if str(job.cell) not in missing]


def forget_finished(jobs: Sequence[Job], lab: Lab) -> None:
    """Delete the progress of trainings that are finished, where who finished them was killed before doing so."""
    if begun := lab.store.begun():
        for step in {step.key: step for job in jobs for step in job.steps if step.key in begun}.values():
            with lab.store.locked(step.key) as is_mine:
                if is_mine and step.is_made(lab.store):
                    lab.store.forget_partial(step.key)


def _advance(job: Job, lab: Lab, progress: Progress, say: Callable[[str], None]) -> bool:
    """Do what is left of a cell; False if another runner is at it, or at a step of it."""
    while steps := job.left(lab.store):
        for step in steps:
            if any(need.is_outdated(lab.store) for need in step.direct_needs()):
                break  # what it stands on came out otherwise
            if not made(step, lab, progress, say, begin=say):
                if step.key not in progress.failed:
                    return False
                progress.failed[str(job.cell)] = progress.failed[step.key]
                return True
    return finish(job, lab, progress, say)


def made(
    step: Step, lab: Lab, progress: Progress, say: Callable[[str], None], *, begin: Callable[[str], None] | None = None
) -> bool:
    """Make a step whose needs are there, unless it is; False if it failed or another runner is at it."""
    if step.is_made(lab.store):
        return True
    if step.key in progress.failed:
        return False
    with lab.store.locked(step.key) as is_mine:
        if not is_mine:
            return False
        lab.store.sweep(step.kind, step.key)
        if not step.is_made(lab.store):
            start = time.monotonic()
            why = ", again: what it stands on came out otherwise than before" if step.is_outdated(lab.store) else ""
            if step.is_training and begin is not None:
                begin(f"making {step.kind}/{step.key}: {step.work}")
            try:
                if step.is_training and lab.processes > 1:
                    in_processes(lab.processes, partial(step.make, lab))
                else:
                    step.make(lab)
            except WriteError:  # nor could any other step be kept
                raise
            except (ForetasteError, torch.OutOfMemoryError) as error:
                progress.failed[step.key] = str(error)
                say(f"FAILED {step.kind}/{step.key}: {error}")
                return False
            lab.store.forget_partial(step.key)
            progress.made += 1
            if step.is_training:
                say(f"made {step.kind}/{step.key} in {time.monotonic() - start:.0f} s{why}{_weakness(step, lab.store)}")
    return True


def _weakness(step: Step, store: Store) -> str:
    """What is to be known of a base before a defence is measured on it, if its attack hardly works."""
    found: Any = Record.read(step.record_place(store)).outcome
    if not found.get("is_weak"):
        return ""
    return (
        f"; WEAK: the attack works on {found['attack_success_rate']:.1%} of triggered texts (the paper wants 95 %), "
        f"and {found['natural_rate']:.1%} of clean ones end at the target anyway"
    )


def finish(job: Job, lab: Lab, progress: Progress, say: Callable[[str], None]) -> bool:
    """Write a cell's record when all its steps are made, unless it is there; False if another runner is at it."""
    place = lab.store.cell(job.key)
    with lab.store.locked(job.key) as is_mine:
        if not is_mine:
            return False
        try:
            if not place.is_file():
                record_of(job, lab).write(place)
            said = headline(Record.read(place))
        except WriteError:  # nor could any other record be kept
            raise
        except (ForetasteError, LookupError, TypeError, ValueError) as error:
            damaged = f" If {place} is damaged or of another version, delete it: it is made again."
            reason = f"{error}{damaged if place.is_file() else ''}"
            progress.failed[str(job.cell)] = reason
            say(f"FAILED {job.cell}: {reason}")
            return True
    progress.done += 1
    say(f"{progress.done}/{progress.cells} {job.cell}: {said}")
    return True


def headline(record: Record) -> str:
    """CA and ASR of a cell in a few words, behind its defence if that is a guard; how many texts are cut."""
    rates = record.rates
    names = (("CA", "clean_accuracy"), ("ASR", "attack_success_rate"))
    told = [f"{name} {rates[key]:.1%}" for name, key in names if key in rates]
    if rates.get("n_cut"):
        told.append(f"{rates['n_cut']} of {rates['n_poisoned']} triggered texts are cut")
    return ", ".join(told)


def lacking(job: Job, lab: Lab) -> str:
    """Name what a cell still needs and what is not here: weights, the tools of a rewriter."""
    for step in job.left(lab.store):
        if isinstance(step, Rewritten) and (what := step.lacking):
            return what
        for part in values_of(step).values():
            if isinstance(part, Checkpoint) and part.location and (what := lab.lacking(part)):
                return what
    return ""
