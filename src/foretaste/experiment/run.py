"""Do a plan: whatever is not in the store yet, by one runner or many; killed at any moment, it goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from foretaste.errors import ForetasteError
from foretaste.experiment.cell import Cell
from foretaste.experiment.grid import Job, job_of, record_of
from foretaste.experiment.lab import Checkpoint, Lab, Step
from foretaste.experiment.plan import Plan
from foretaste.files import write_json
from foretaste.record import Record

__all__ = ["Forecast", "Progress", "forecast", "run_plan", "write_sheet"]

WAIT = 0.5  # seconds between two looks at what another runner is making


@dataclass
class Progress:
    """How far a runner has come; `failed` are cells (or steps) with the reason."""

    cells: int
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Forecast:
    """What a plan takes: `cells` and those `done`, distinct `trainings` and those made, `shared` ones, seconds.

    `per_cell` is how many trainings there would be if no cell shared any; `seconds` is None without past records.
    """

    cells: int
    done: int
    trainings: int
    made: int
    per_cell: int
    seconds: float | None
    missing: tuple[str, ...]


def run_plan(plan: Plan, lab: Lab, cells: Sequence[Cell], say: Callable[[str], None], start: int = 0) -> Progress:
    """Finish the cells, in any order, beside other runners on the same store; one that fails does not stop the others.

    `start` is where in the list this runner begins, so that several do not queue for the same step.
    """
    progress = Progress(cells=len(cells))
    jobs = [job_of(cell, plan, lab) for cell in cells]
    pending = jobs[start % max(1, len(jobs)) :] + jobs[: start % max(1, len(jobs))]
    while pending:
        later, has_moved = [], False
        for job in pending:
            lacking = _lacking(job, lab)
            if lacking:
                progress.missing[str(job.cell)] = lacking
            elif not _advance(job, lab, progress, say):
                later.append(job)
                continue
            has_moved = True
        pending = later
        if pending and not has_moved:
            time.sleep(WAIT)
    return progress


def write_sheet(plan: Plan, name: str, lab: Lab) -> None:
    """Write down what a plan asks for, so that reports can show what is missing.

    Raises:
        PlanError: the store cannot be written.
    """
    cells = [{**asdict(cell), "key": job_of(cell, plan, lab).key} for cell in plan.cells]
    sheet = {"title": plan.title, "table": plan.table, "beside": dict(plan.beside), "cells": cells}
    write_json(lab.store.root / "plans" / f"{name}.json", sheet)


def forecast(plan: Plan, lab: Lab, cells: Sequence[Cell]) -> Forecast:
    """Say what a run would do; nothing is made."""
    jobs = [job_of(cell, plan, lab) for cell in cells]
    needed = {step.key: step for job in jobs for step in job.steps if step.is_training}
    past = _past_seconds(lab)
    to_do = [step for step in needed.values() if not step.is_made(lab.store)]
    known = [past[step.kind] for step in to_do if step.kind in past]
    return Forecast(
        cells=len(jobs),
        done=sum(lab.store.cell(job.key).is_file() for job in jobs),
        trainings=len(needed),
        made=len(needed) - len(to_do),
        per_cell=sum(step.is_training for job in jobs for step in job.steps),
        seconds=None if not known and to_do else sum(known) / max(1, len(known)) * len(to_do),
        missing=tuple(dict.fromkeys(lacking for job in jobs if (lacking := _lacking(job, lab)))),
    )


def _advance(job: Job, lab: Lab, progress: Progress, say: Callable[[str], None]) -> bool:
    """Do what is left of a cell; False if another runner is at it, or at a step of it."""
    place = lab.store.cell(job.key)
    for step in () if place.is_file() else job.steps:
        if not _made(step, lab, progress, say):
            if step.key not in progress.failed:
                return False
            progress.failed[str(job.cell)] = progress.failed[step.key]
            return True
    with lab.store.locked(job.key) as is_mine:
        if not is_mine:
            return False
        if not place.is_file():
            record = record_of(job, lab)
            record.write(place)
    progress.done += 1
    say(f"{progress.done}/{progress.cells} {job.cell}: {headline(Record.read(place))}")
    return True


def _made(step: Step, lab: Lab, progress: Progress, say: Callable[[str], None]) -> bool:
    if step.is_made(lab.store):
        return True
    if step.key in progress.failed:
        return False
    with lab.store.locked(step.key) as is_mine:
        if not is_mine:
            return False
        if not step.is_made(lab.store):
            start = time.monotonic()
            try:
                step.make(lab)
            except ForetasteError as error:
                progress.failed[step.key] = str(error)
                say(f"FAILED {step.kind}/{step.key}: {error}")
                return False
            lab.store.forget_partial(step.key)
            if step.is_training:
                say(f"made {step.kind}/{step.key} in {time.monotonic() - start:.0f} s")
    return True


def headline(record: Record) -> str:
    """CA and ASR of a cell in a few words, behind its defence if that is a guard."""
    outcome: dict[str, object] = {**record.outcome, **(record.outcome.get("guarded") or {})}  # type: ignore[dict-item]
    names = (("CA", "clean_accuracy"), ("ASR", "attack_success_rate"))
    return ", ".join(f"{name} {outcome[key]:.1%}" for name, key in names if key in outcome)


def _lacking(job: Job, lab: Lab) -> str:
    """Name the weights that a cell needs and that are not here."""
    for step in job.steps:
        base = getattr(step, "base", None)
        if isinstance(base, Checkpoint) and not base.mark and not job.clean.is_made(lab.store):
            return f"no weights at {base.location}"
    return ""


def _past_seconds(lab: Lab) -> dict[str, float]:
    """Mean seconds of each kind of training in the store."""
    found: dict[str, list[float]] = {}
    for path in lab.store.root.glob("*/*/record.json"):
        record = Record.read(path)
        if record.cost is not None:
            found.setdefault(path.parts[-3], []).append(record.cost.seconds)
    return {kind: sum(times) / len(times) for kind, times in found.items()}
