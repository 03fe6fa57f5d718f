"""`foretaste run`: a plan's cells, by one runner, several or a cluster, each once."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from foretaste.cli.output import standing
from foretaste.errors import PlanError
from foretaste.experiment.cell import AXES, Cell
from foretaste.experiment.cluster import Cluster, run_on_cluster
from foretaste.experiment.forecast import forecast
from foretaste.experiment.lab import Lab
from foretaste.experiment.plan import Plan, read_plan
from foretaste.experiment.processes import end_with_parent, refuse_too_few_gpus
from foretaste.experiment.run import Progress, jobs_of, run_plan, without_missing
from foretaste.experiment.sheet import sheet_place, write_sheet
from foretaste.experiment.store import Store
from foretaste.spec import nearest
from foretaste.tune.launch import process_count

__all__ = ["chosen", "dry_run", "failed_by_all", "run"]


def run(
    path: Path,
    store: Path,
    *,
    only: Sequence[str] = (),
    jobs: int = 1,
    processes: int = 1,
    cluster: Cluster | None = None,
    data_root: Path | None = None,
) -> dict[str, Any]:
    """Do what of a plan is not in the store yet, on a cluster or by `jobs` runners that share the processor's cores.

    Each training takes so many `processes`.

    Raises:
        PlanError: a plan that cannot be run (`read_plan`, `jobs_of`); no such cluster; this process is one of several
            that were launched together; every runner was killed.
    """
    if process_count() > 1:
        raise PlanError(
            f"A plan's run starts its own processes: leave the launcher out, and write --processes {process_count()}."
        )
    plan = read_plan(path)
    cells = chosen(plan, only)
    lab = Lab(Store(store), data_root, processes)
    if cluster is None:
        refuse_too_few_gpus(processes)
    asked = jobs_of(plan, lab, cells)  # what cannot be run is said before anything is written
    outset = Progress(cells=len(cells), done=sum(lab.store.cell(job.key).is_file() for job in asked))
    without_missing(asked, lab, outset)
    for line in standing(plan.title, outset.cells, outset.done, outset.reasons):
        _say(line)
    jobs = min(jobs, len(cells))
    write_sheet(plan, path.stem, lab)
    if cluster is not None:
        parts = [run_on_cluster(plan, lab, cells, _say, cluster)]
    elif jobs == 1:
        parts = [run_plan(plan, lab, cells, _say)]  # what was read for the sheet is not read again
    else:
        threads = max(1, (os.cpu_count() or 1) // jobs)
        context = get_context("forkserver")  # the library is imported once, and no thread is forked
        context.set_forkserver_preload(["foretaste.experiment.run"])
        parts, broken = [], list[Exception]()
        with ExitStack() as open_pools:  # one each: what kills a runner leaves the others at work
            pools = [open_pools.enter_context(ProcessPoolExecutor(1, mp_context=context)) for _ in range(jobs)]
            runners = [
                pool.submit(_work, plan, lab, cells, number * len(cells) // jobs, threads)
                for number, pool in enumerate(pools)
            ]
            for each in as_completed(runners):
                try:
                    parts.append(each.result())
                except BrokenProcessPool:
                    _say("A runner was killed, perhaps for want of memory; what it left the others do.")
                except Exception as error:  # whatever it is, the others' results count
                    _say(f"A runner ended: {error!r}. What it left the others do.")
                    broken.append(error)
        if broken and not parts:
            raise broken[0]
        if not parts:
            raise PlanError("Every runner was killed; the same command goes on where they were.")
    failed = failed_by_all(parts, cells)
    missing = {name: reason for part in parts for name, reason in part.missing.items()}
    return {
        "title": plan.title,
        "store": str(store),
        "cells": len(cells),
        "done": len(cells) - len(failed) - len(missing),
        "failed": failed,
        "missing": missing,
    }


def dry_run(path: Path, store: Path, *, only: Sequence[str] = (), data_root: Path | None = None) -> dict[str, Any]:
    """Say what `run` would do: how many trainings, how many of them shared, how long by past records."""
    plan = read_plan(path)
    sheet_place(path.stem, Store(store))
    return {"title": plan.title, **asdict(forecast(plan, Lab(Store(store), data_root), chosen(plan, only)))}


def chosen(plan: Plan, only: Sequence[str]) -> tuple[Cell, ...]:
    """Return the cells for which every `axis=value` of `only` holds; several values of one axis may hold.

    Raises:
        PlanError: an unknown axis, a value that no cell has, or no cell left.
    """
    wanted: dict[str, set[str]] = {}
    for condition in only:
        axis, is_given, value = condition.partition("=")
        if not is_given:
            raise PlanError(f"--only takes axis=value, such as strategy=lora; {condition!r} is none.")
        if axis not in AXES:
            raise PlanError(f"--only knows no axis {axis!r}.{nearest(axis, AXES)}")
        wanted.setdefault(axis, set()).add(value)
    for axis, values in wanted.items():
        there = {str(getattr(cell, axis)) for cell in plan.cells}
        for value in sorted(values - there):
            raise PlanError(f"No cell of the plan has {axis}={value}.{nearest(value, there)}")
    found = tuple(
        cell for cell in plan.cells if all(str(getattr(cell, axis)) in values for axis, values in wanted.items())
    )
    if not found:
        raise PlanError(f"No cell of the plan has {' '.join(only)}.")
    return found


def failed_by_all(parts: Sequence[Progress], cells: Sequence[Cell]) -> dict[str, str]:
    """Return the cells that no runner could finish, with the reason: what failed one, another may have done."""
    return {name: parts[0].failed[name] for name in map(str, cells) if all(name in part.failed for part in parts)}


def _work(plan: Plan, lab: Lab, cells: Sequence[Cell], start: int, threads: int) -> Progress:
    import torch

    end_with_parent()
    torch.set_num_threads(threads)
    return run_plan(plan, lab, cells, _say, start)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
