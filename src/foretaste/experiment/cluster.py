"""The same cells on a Ray cluster: a task for each step, started when those it needs are done, wherever there is room.

A step is one task however many cells share it, so that no task waits for another's lock; locks only keep other runners
away. Tasks return what they would have said; the process that sent them says it, and writes the cells' records.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field

from foretaste.errors import ForetasteError, PlanError, WriteError
from foretaste.experiment.cell import Cell
from foretaste.experiment.job import Job
from foretaste.experiment.lab import Lab
from foretaste.experiment.plan import Plan
from foretaste.experiment.run import WAIT, Progress, finish, forget_finished, jobs_of, made, without_missing
from foretaste.experiment.step import Step
from foretaste.experiment.store import Store
from foretaste.spec import spec

__all__ = ["Cluster", "run_on_cluster"]

Say = Callable[[str], None]
OBJECT_STORE = 100_000_000  # bytes, near the least that Ray takes: tasks return a few lines


@spec
class Cluster:
    """A Ray cluster and what a task takes of it.

    Without `address` it is this machine, for as long as the run takes. `cpus` are a task's threads. `gpus` may be a
    fraction: so many tasks share a GPU, and its memory; None means one for each process of a training where the cluster
    has GPUs. A task whose worker or node died is started again `retries` times.
    """

    address: str | None = None
    cpus: int = Field(default=1, gt=0)
    gpus: float | None = Field(default=None, ge=0.0)
    retries: int = Field(default=3, ge=0)

    def __post_init__(self) -> None:
        if self.gpus is not None and self.gpus > 1 and not self.gpus.is_integer():
            raise PlanError(f"A task takes a part of one GPU or a whole number of them, not {self.gpus:g}.")


@dataclass(frozen=True)
class _Place:
    """Where a task is sent from: what must be the same where it runs."""

    store: Path
    data_root: Path | None
    named_sets: str | None
    directory: Path
    processes: int
    threads: int


@dataclass(frozen=True)
class _Report:
    """What a task said, the reason of each step that failed up to it, and whether it left its own for later."""

    said: tuple[str, ...]
    failed: dict[str, str]
    is_put_off: bool = False


def run_on_cluster(plan: Plan, lab: Lab, cells: Sequence[Cell], say: Say, cluster: Cluster) -> Progress:
    """Finish the cells as `run_plan` does, with the steps made on a cluster.

    Raises:
        PlanError: no Ray, no cluster, or none with room for a task.
    """
    progress = Progress(cells=len(cells))
    jobs = without_missing(jobs_of(plan, lab, cells), lab, progress)
    forget_finished(jobs, lab)
    data_root, named_sets = lab.data_root, os.environ.get("FORETASTE_DATA")
    place = _Place(
        store=lab.store.root.absolute(),
        data_root=None if data_root is None else data_root.absolute(),
        named_sets=None if named_sets is None else str(Path(named_sets).absolute()),
        directory=Path.cwd(),
        processes=lab.processes,
        threads=cluster.cpus,
    )
    with _connected(cluster) as ray:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        options = _demand(cluster, lab.processes, nodes, say)
        tasks: dict[str, Any] = {}
        running: dict[Any, Step] = {}
        put_off: set[str] = set()

        def send(job: Job) -> set[str]:
            """Start what is left to make of a cell, unless it runs; return the keys of all that it waits for."""
            left = {step.key: step for step in job.left(lab.store)}
            for step in left.values():
                if tasks.get(step.key) not in running:
                    # What is kept is not waited for, though another cell may have what it was made of made again.
                    before = [tasks[need.key] for need in step.needs() if need.key in left and need.key in tasks]
                    task = ray.remote(_make).options(name=f"{step.kind}/{step.key}", **options)
                    tasks[step.key] = task.remote(place, step, *before)
                    running[tasks[step.key]] = step
                    put_off.discard(step.key)
            return {step.key for step in job.steps if tasks.get(step.key) in running}

        pending = [(job, send(job)) for job in jobs]
        while pending := [(job, keys) for job, keys in pending if keys or not _is_over(job, lab, progress, say)]:
            if not running:  # another runner is at the records that are left
                time.sleep(WAIT)
                continue
            done, _ = ray.wait(list(running), num_returns=len(running), timeout=WAIT)
            for reference in done:
                step = running.pop(reference)
                if _hear(ray, reference, step, progress, say):
                    put_off.add(step.key)
                for _, keys in pending:
                    keys.discard(step.key)
            for job, keys in pending:
                left = () if keys else job.left(lab.store)
                if not progress.failed.keys().isdisjoint(step.key for step in left):
                    continue
                if any(step.key in put_off or step.is_outdated(lab.store) for step in left):
                    keys |= send(job)
    return progress


@contextmanager
def _connected(cluster: Cluster) -> Iterator[Any]:
    """Start or join the cluster and yield Ray."""
    try:
        import ray
    except ImportError:
        raise PlanError("The engine ray needs Ray: pip install 'foretaste[ray]'.") from None
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with redirect_stdout(sys.stderr):  # Ray says there that a worker died; standard output is for the answer
        try:
            if cluster.address is None:
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
                memory = {"task_oom_retries": cluster.retries}  # as it is, for ever
                ray.init(
                    "local", include_dashboard=False, object_store_memory=OBJECT_STORE, _system_config=memory, **quiet
                )
            else:
                _reach(cluster.address)
                ray.init(cluster.address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise PlanError(f"Cannot start or join a Ray cluster: {error}") from error
        try:
            yield ray
        finally:
            ray.shutdown()


def _reach(address: str) -> None:
    """Raise PlanError where nothing answers: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise PlanError(f"No Ray cluster answers at {address}: {error}.") from error


def _demand(cluster: Cluster, processes: int, nodes: Sequence[Mapping[str, float]], say: Say) -> dict[str, Any]:
    """Return what a task takes of nodes with such resources, as Ray's options.

    Raises:
        PlanError: fewer GPUs than processes; a machine on its own that has not so much.
    """
    cpus, gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    wanted = cluster.gpus if cluster.gpus is not None else float(processes) if gpus else 0.0
    if 0 < wanted < processes and processes > 1:
        raise PlanError(f"{processes} processes need a GPU each; a task takes {wanted:g}.")
    asked = f"{cluster.cpus} CPUs and {wanted:g} GPUs"
    say(f"Ray: {len(nodes)} nodes, {cpus:g} CPUs, {gpus:g} GPUs; a task takes {asked}")
    if not any(node.get("CPU", 0.0) >= cluster.cpus and node.get("GPU", 0.0) >= wanted for node in nodes):
        if cluster.address is None:
            raise PlanError(f"A task takes {asked}; this machine has not so many.")
        say(f"no node has {asked} now; the run waits for one")
    return {"num_cpus": cluster.cpus, "num_gpus": wanted, "max_retries": cluster.retries}


def _make(place: _Place, step: Step, *before: _Report) -> _Report:
    """Make a step, unless one that it needs failed: the task."""
    lab, said = _lab_at(place), list[str]()
    progress = Progress(cells=0, failed={key: why for report in before for key, why in report.failed.items()})
    for need in step.needs():
        if need.key in progress.failed:
            return _Report((), {**progress.failed, step.key: progress.failed[need.key]})
    if any(need.is_outdated(lab.store) for need in step.direct_needs()):
        return _Report((), progress.failed, is_put_off=True)  # what it stands on came out otherwise
    try:
        _refuse_unseen(step.direct_needs(), lab)
        while not made(step, lab, progress, said.append) and step.key not in progress.failed:
            time.sleep(WAIT)  # another runner is at it
    except WriteError:  # nor could any other step be kept
        raise
    except ForetasteError as error:
        progress.failed[step.key] = str(error)
        said.append(f"FAILED {step.kind}/{step.key}: {error}")
    return _Report(tuple(said), progress.failed)


@cache
def _lab_at(place: _Place) -> Lab:
    """Prepare a worker; what it opens for one task, it has for the next."""
    import torch

    torch.set_num_threads(place.threads)
    if place.named_sets is not None:
        os.environ["FORETASTE_DATA"] = place.named_sets
    if place.directory.is_dir():  # else what a plan names by a relative path is not found, and said so
        os.chdir(place.directory)
    return Lab(Store(place.store), place.data_root, place.processes)


def _hear(ray: Any, reference: Any, step: Step, progress: Progress, say: Say) -> bool:
    """Say what a task said and note what failed; return whether its step has to be sent again.

    An error that is none of ours, or a disk that takes nothing more, ends the run.
    """
    try:
        report: _Report = ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # of what it waited for, too, where a worker died
        if isinstance(error.cause, WriteError):
            raise error.cause from None
        failed = next((progress.failed[need.key] for need in step.needs() if need.key in progress.failed), None)
        if failed is None:
            raise
        progress.failed[step.key] = failed
    except ray.exceptions.RayError as error:
        progress.failed[step.key] = f"its worker died, too often: {' '.join(str(error).split())}"
        say(f"FAILED {step.kind}/{step.key}: {progress.failed[step.key]}")
    else:
        progress.failed.update(report.failed)
        for line in report.said:
            say(line)
        return report.is_put_off
    return False


def _is_over(job: Job, lab: Lab, progress: Progress, say: Say) -> bool:
    """Write the record of a cell none of whose steps is being made; False if another runner is at it."""
    failed = next((progress.failed[step.key] for step in job.left(lab.store) if step.key in progress.failed), None)
    if failed is None and not lab.store.cell(job.key).is_file():
        try:
            _refuse_unseen(job.ends.values(), lab)
        except ForetasteError as error:
            failed = str(error)
            say(f"FAILED {job.cell}: {error}")
    if failed is None:
        return finish(job, lab, progress, say)
    progress.failed[str(job.cell)] = failed
    return True


def _refuse_unseen(steps: Iterable[Step], lab: Lab) -> None:
    """Raise PlanError for a step that was made elsewhere and is not here."""
    for step in steps:
        if not step.is_made(lab.store):
            raise PlanError(
                f"{step.kind}/{step.key} was made, but {platform.node()} does not find it in {lab.store.root}: the "
                "store must be one directory that all nodes share."
            )
