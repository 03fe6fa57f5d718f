"""Do a plan: whatever is not in the store yet, by one runner or many; killed at any moment, it goes on where it was."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from foretaste.errors import ForetasteError, PlanError, WriteError
from foretaste.experiment.cell import AXES, Cell, is_page_name
from foretaste.experiment.grid import job_of, record_of
from foretaste.experiment.job import Job
from foretaste.experiment.lab import Lab
from foretaste.experiment.methods import altered_names
from foretaste.experiment.plan import Plan
from foretaste.experiment.processes import in_processes
from foretaste.experiment.readings import Rewritten
from foretaste.experiment.step import Checkpoint, Step
from foretaste.experiment.store import Store, digest_of
from foretaste.files import write_json
from foretaste.record import Record
from foretaste.spec import values_of

__all__ = [
    "WAIT",
    "Progress",
    "finish",
    "forget_finished",
    "jobs_of",
    "made",
    "run_plan",
    "sheet_place",
    "without_missing",
    "write_sheet",
]

WAIT = 0.5  # seconds between two looks at what another runner is making


@dataclass
class Progress:
    """How far a runner has come; `failed` are cells (or steps) with the reason."""

    cells: int
    done: int = 0
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
        began = time.monotonic()
        later = [job for job in pending if not _advance(job, lab, progress, say)]
        if len(later) == len(pending):
            time.sleep(max(WAIT, 9 * (time.monotonic() - began)))  # looking takes a tenth of the time at most
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


def write_sheet(plan: Plan, name: str, lab: Lab) -> None:
    """Write down what a plan asks for, so that reports can show what is missing.

    Cells whose weights, data or tools are not here keep the key written where they are, if their names in the plan
    still mean the same.

    Raises:
        PlanError: the store cannot be written, the plan's name would be that of a page of the site, or is that of
            another plan.
    """
    path = sheet_place(name, lab.store)
    used = {cell.defence for cell in plan.cells}
    content = {
        "title": plan.title,
        "table": plan.table,
        "figure": plan.figure,
        "beside": dict(plan.beside),
        "strategies": {
            each: {**values_of(tuning), **values_of(strategy), "method": strategy.name}
            for each, (strategy, tuning) in sorted(plan.strategies.items())
        },
        "defences": {each: plan.defences[each].to_json() for each in sorted(used)},
        "altered": altered_names(plan.models, plan.attacks, plan.strategies, plan.defences),
    }
    meanings = {cell: _meaning(plan, cell) for cell in plan.cells}
    keys = dict[Cell, str]()
    for cell in plan.cells:
        with suppress(ForetasteError):  # the run says so
            job = job_of(cell, plan, lab)
            if not lacking(job, lab):
                keys[cell] = job.key
    while True:
        with lab.store.locked(f"plan-{name}") as is_mine:
            if is_mine:
                keys = _keys_in(path, plan.title, meanings) | keys
                cells = [{**asdict(cell), "key": keys.get(cell, ""), "meaning": meanings[cell]} for cell in plan.cells]
                return write_json(path, {**content, "cells": cells})
        time.sleep(WAIT)


def sheet_place(name: str, store: Store) -> Path:
    """Return where the sheet of a plan of this name lies or will lie.

    Raises:
        PlanError: the plan's name would be that of a page of the site, or the store is no directory.
    """
    if not is_page_name(name):
        raise PlanError(f"A plan's page is called as the plan is; {name!r} cannot be: take letters, digits, - and _.")
    if store.root.exists() and not store.root.is_dir():
        raise PlanError(f"{store.root} is a file; give the name of a directory.")
    return store.root / "plans" / f"{name}.json"


def _meaning(plan: Plan, cell: Cell) -> str:
    """A digest of what a cell's names stand for in the plan, whatever its other names do."""
    defence = plan.defences[cell.defence]
    models = [plan.models.get(name) for name in (cell.model, getattr(defence.rival, "trusted", ""))]
    attacks = [plan.attacks.get(name or "") for name in (cell.attack, cell.trigger)]
    asked = [plan.strategies.get(cell.strategy), plan.instruction_of(cell)]
    return digest_of([plan.settings, models, attacks, asked, defence])


def _keys_in(path: Path, title: str, meanings: Mapping[Cell, str]) -> dict[Cell, str]:
    """The keys that another runner of the same plan wrote, of cells that mean the same; none in a damaged sheet.

    Raises:
        PlanError: the sheet is of a plan with another title and none of these cells.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cells = [(Cell(**{axis: cell[axis] for axis in AXES}), cell) for cell in content["cells"]]
        keys = {cell: found["key"] for cell, found in cells if found["key"] and found["meaning"] == meanings.get(cell)}
        there = content["title"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    if there != title and not any(cell in meanings for cell, _ in cells):
        raise PlanError(
            f"{path} is of another plan, {there!r}, whose page would go: rename this plan's file, take another store, "
            "or delete that one."
        )
    return keys


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
            except ForetasteError as error:
                progress.failed[step.key] = str(error)
                say(f"FAILED {step.kind}/{step.key}: {error}")
                return False
            lab.store.forget_partial(step.key)
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
        if isinstance(step, Rewritten) and (what := step.rewriter.lacking()):
            return what
        for part in values_of(step).values():
            if isinstance(part, Checkpoint) and part.location and (what := lab.lacking(part)):
                return what
    return ""
