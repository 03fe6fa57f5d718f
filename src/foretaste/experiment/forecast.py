"""What a plan would take: how many trainings, how many of them shared or made, and how long by past records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from foretaste.cost import Cost
from foretaste.errors import DataError
from foretaste.experiment.cell import Cell
from foretaste.experiment.lab import Lab
from foretaste.experiment.plan import Plan
from foretaste.experiment.readings import work_of
from foretaste.experiment.run import Progress, jobs_of, without_missing
from foretaste.experiment.step import Step
from foretaste.experiment.store import Store
from foretaste.record import Record

__all__ = ["Forecast", "forecast"]

LATEST = 10  # steps of a kind by which the next ones' time is told


@dataclass(frozen=True)
class Forecast:
    """What a plan takes: `cells` and those `done`, distinct `trainings` and those `made`, seconds.

    `per_cell` is how many trainings there would be if no cell shared any. `seconds` are one runner's for all steps of
    which past records tell, None if they tell of none; of so many steps `untold` they do not. `missing` is what is not
    here and how many cells need it; they have no trainings.
    """

    cells: int
    done: int
    trainings: int
    made: int
    per_cell: int
    seconds: float | None
    untold: int
    missing: Mapping[str, int]


def forecast(plan: Plan, lab: Lab, cells: Sequence[Cell]) -> Forecast:
    """Say what a run would do; nothing is made.

    Raises:
        PlanError: cells that cannot be run with these data, each reason once.
    """
    jobs = jobs_of(plan, lab, cells)
    progress = Progress(cells=len(jobs))
    able = without_missing(jobs, lab, progress)
    done = {job.key for job in jobs if lab.store.cell(job.key).is_file()}
    left = [job for job in able if job.key not in done]
    needed = {step.key for job in able for step in job.steps if step.is_training}
    to_do = {step.key: step for job in left for step in job.to_make(lab.store)}
    told = _seconds(list(to_do.values()), lab.store)
    known = [seconds for seconds in told if seconds is not None]
    return Forecast(
        cells=len(jobs),
        done=sum(job.key in done for job in jobs),
        trainings=len(needed),
        made=len(needed) - sum(step.is_training for step in to_do.values()),
        per_cell=sum(step.is_training for job in able for step in job.steps),
        seconds=sum(known) if known or not told else None,
        untold=len(told) - len(known),
        missing=progress.reasons,
    )


def _seconds(steps: Sequence[Step], store: Store) -> list[float | None]:
    """How long each step takes: as the latest of the same work did, or of its kind and weights; None: nobody knows."""
    past = _past_seconds(store) if steps else {}
    return [past.get(step.work, past.get(step.like)) for step in steps]


def _past_seconds(store: Store) -> dict[str, float]:
    """Mean seconds of the latest steps of each `work`, and of all like them: older ones may be another machine's."""
    found: dict[str, list[tuple[float, float]]] = {}
    for path in (
        *store.root.glob("*/[!.]*/record.json"),
        *store.root.glob("*/[!.]*.npz"),
        *store.root.glob("rewritten/[!.]*"),
    ):
        with suppress(DataError):
            when, work, cost = _past(path)
            seconds = cost.seconds + (cost.seconds_per_text or 0.0) * (cost.texts or 0)
            for name in {work, work.rpartition(" in ")[2]}:
                found.setdefault(name, []).append((when, seconds))
    latest = {name: [seconds for _, seconds in sorted(times)[-LATEST:]] for name, times in found.items()}
    return {name: fmean(times) for name, times in latest.items()}


def _past(path: Path) -> tuple[float, str, Cost]:
    """When a step was done, what work that was, as far as it says so, and what it cost."""
    if path.name != "record.json":
        return path.stat().st_mtime, *work_of(path)
    record = Record.read(path)
    if record.cost is None:
        raise DataError(f"{path} says nothing of its cost.")
    return record.created.timestamp(), str(record.settings.get("work", "")), record.cost
