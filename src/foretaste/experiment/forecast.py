"""What a plan would take: how many trainings, how many of them shared or made, and how long by past records."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from foretaste.errors import DataError
from foretaste.experiment.cell import Cell
from foretaste.experiment.lab import Lab
from foretaste.experiment.plan import Plan
from foretaste.experiment.run import jobs_of, lacking
from foretaste.record import Record

__all__ = ["Forecast", "forecast"]

LATEST = 10  # trainings of a kind by which the next ones' time is told


@dataclass(frozen=True)
class Forecast:
    """What a plan takes: `cells` and those `done`, distinct `trainings` and those `made`, seconds.

    `per_cell` is how many trainings there would be if no cell shared any; `seconds` is None without past records. Cells
    that something is `missing` for have no trainings.
    """

    cells: int
    done: int
    trainings: int
    made: int
    per_cell: int
    seconds: float | None
    missing: tuple[str, ...]


def forecast(plan: Plan, lab: Lab, cells: Sequence[Cell]) -> Forecast:
    """Say what a run would do; nothing is made.

    Raises:
        PlanError: cells that cannot be run with these data, each reason once.
    """
    jobs = jobs_of(plan, lab, cells)
    is_done = [lab.store.cell(job.key).is_file() for job in jobs]
    missing = [lacking(job, lab) for job in jobs]
    able = [job for job, what in zip(jobs, missing, strict=True) if not what]
    left = [job for job, what, done in zip(jobs, missing, is_done, strict=True) if not what and not done]
    needed = {step.key for job in able for step in job.steps if step.is_training}
    to_do = {step.key: step for job in left for step in job.to_make(lab.store) if step.is_training}
    past = _past_seconds(lab)
    known = [past[step.kind] for step in to_do.values() if step.kind in past]
    return Forecast(
        cells=len(jobs),
        done=sum(is_done),
        trainings=len(needed),
        made=len(needed) - len(to_do),
        per_cell=sum(step.is_training for job in able for step in job.steps),
        seconds=None if not known and to_do else sum(known) / max(1, len(known)) * len(to_do),
        missing=tuple(dict.fromkeys(what for what in missing if what)),
    )


def _past_seconds(lab: Lab) -> dict[str, float]:
    """Mean seconds of the latest trainings of each kind in the store: older ones may be another machine's."""
    found: dict[str, list[tuple[datetime, float]]] = {}
    for path in lab.store.root.glob("*/[!.]*/record.json"):
        with suppress(DataError):
            record = Record.read(path)
            if record.cost is not None:
                found.setdefault(path.parts[-3], []).append((record.created, record.cost.seconds))
    latest = {kind: [seconds for _, seconds in sorted(times)[-LATEST:]] for kind, times in found.items()}
    return {kind: sum(times) / len(times) for kind, times in latest.items()}
