"""Plans on a Ray cluster of two nodes whose workers are killed: the same cells as without it, each step once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.experiment.toy import NAMES, plan_of

from foretaste.errors import PlanError, WriteError
from foretaste.experiment import steps
from foretaste.experiment.cluster import Cluster, _demand, _hear, _make, _Place, _Report, run_on_cluster
from foretaste.experiment.grid import job_of
from foretaste.experiment.job import Job
from foretaste.experiment.lab import Lab
from foretaste.experiment.plan import Plan
from foretaste.experiment.run import Progress, run_plan
from foretaste.experiment.step import Step
from foretaste.experiment.store import Store, load_arrays, save_arrays
from foretaste.report.cells import read_cells
from foretaste.spec import build
from foretaste.tune.poison import poison_base

pytestmark = pytest.mark.usefixtures("one_thread")

PLAN = (
    """
title = "Four cells"

[settings]
max_length = 32
limit = 200
poisoning_epochs = 3
poisoning_rate = 1e-3

[[grid]]
model = "tiny"
data = "{data}"
knowledge = "full_data"
attack = "badnet"
strategy = ["lora", "full"]
defence = ["none", "psim", "hasty"]
psim_strategy = "lora"
"""
    + NAMES
    + """
[defence.hasty]
method = "psim"
frr = 0.05
dose = 0.1
precision = "float32"
max_steps = 1
"""
)


@pytest.fixture(scope="module")
def plan(toy_base: Path, small_toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A base, two victims, a guard, and another one that cannot be trained."""
    return plan_of(PLAN, toy_base, small_toy, tmp_path_factory.mktemp("plan"))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cluster of two nodes, each with one processor, and a GPU as far as Ray is told."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as TwoNodes

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # it would write a token to the home directory
        node = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 80_000_000}
        cluster = TwoNodes(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        cluster.add_node(**node)
        yield cluster.address
        cluster.shutdown()


@pytest.fixture(scope="module")
def stores(
    plan: Plan, address: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, list[str], list[int]]:
    """The store of a local run, that of a cluster whose worker was killed while it poisoned, and what the latter said.

    At last the steps at which the poisoning was saved first before the kill and first after it.
    """
    local, shared, said = tmp_path_factory.mktemp("local"), tmp_path_factory.mktemp("shared"), list[str]()
    here = run_plan(plan, Lab(Store(local)), plan.cells, lambda line: None)
    base = job_of(plan.cells[0], plan, Lab(Store(shared))).steps[0]
    saved: list[int] = []

    def watch() -> None:
        saved.append(_kill(shared, base))
        while (now := _saved(shared, base)) in (0, *saved):
            time.sleep(0.01)
        saved.append(now)

    killer = Thread(target=watch, daemon=True)
    killer.start()
    there = run_on_cluster(plan, Lab(Store(shared)), plan.cells, said.append, Cluster(address=address, gpus=0.5))
    assert (there.done, there.missing) == (here.done, here.missing) == (4, {})
    assert _cells(there.failed) == _cells(here.failed)
    assert len(_cells(here.failed)) == 2
    killer.join(1)
    return local, shared, said, saved


def _kill(store: Path, step: Step) -> int:
    """Kill whoever makes a step as soon as some of it is saved; return how many optimiser steps that were."""
    while not (saved := _saved(store, step)):
        time.sleep(0.01)
    os.kill(_holder(store / "locks" / step.key), signal.SIGKILL)
    return saved


def _saved(store: Path, step: Step) -> int:
    """How many optimiser steps of an unfinished training are saved."""
    try:
        (place,) = store.glob(f"partial/{step.key}.*/foretaste.json")
        found = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0
    return int(found["state"]["step"])


def _holder(lock: Path) -> int:
    """Return the process that holds a lock."""
    number = str(lock.stat().st_ino)
    for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
        kind, _, _, process, place = line.split()[1:6]
        if kind == "FLOCK" and place.rpartition(":")[2] == number:
            return int(process)
    raise AssertionError(f"nobody holds {lock}")


def test_a_worker_killed_in_a_training_is_replaced_and_goes_on_where_it_was(
    stores: tuple[Path, Path, list[str], list[int]],
) -> None:
    _, shared, said, saved = stores
    assert said[0] == "Ray: 2 nodes, 2 CPUs, 2 GPUs; a task takes 1 CPUs and 0.5 GPUs"
    assert saved == [7, 14]  # begun anew, it would be at 7 again
    made = [line.split(" in ")[0] for line in said if line.startswith("made")]
    assert len(made) == len(set(made)) == 4  # no training twice
    assert [line.split()[0] for line in said if "model=" in line] == ["1/6", "2/6", "3/6", "4/6"]
    assert not list((shared / "partial").glob("*"))


def test_a_cluster_makes_what_one_process_makes(stores: tuple[Path, Path, list[str], list[int]]) -> None:
    local, shared, _, _ = stores
    names = {path.relative_to(local) for path in local.rglob("*") if path.is_file()}
    assert names == {path.relative_to(shared) for path in shared.rglob("*") if path.is_file()}
    for name in names:
        if name.suffix == ".safetensors":
            assert (local / name).read_bytes() == (shared / name).read_bytes()
        if name.suffix == ".npz":
            ours, theirs = load_arrays(local / name), load_arrays(shared / name)
            assert all(np.array_equal(ours[key], theirs[key]) for key in ours.keys() - {"cost"})
    assert _told(local) == _told(shared)


def _told(store: Path) -> dict[str, Any]:
    """What the records of cells say, but for when they were made and what that took."""
    return {key: (found.outcome, found.settings, found.seeds, found.data) for key, found in read_cells(store).items()}


def test_a_guard_that_cannot_be_trained_costs_its_cells_alone(stores: tuple[Path, Path, list[str], list[int]]) -> None:
    _, _, said, _ = stores
    failed = [line for line in said if line.startswith("FAILED")]
    assert len(failed) == 1
    assert "After 1 steps the median clean confidence" in failed[0]


def test_a_worker_that_dies_too_often_costs_its_cells_alone(
    plan: Plan, address: str, stores: tuple[Path, Path, list[str], list[int]]
) -> None:
    """One of the others is half of weights that were deleted."""
    _, shared, _, _ = stores
    sound = [cell for cell in plan.cells if cell.defence != "hasty"]
    unpoisoned = replace(sound[0], attack="none")
    lab, said = Lab(Store(shared)), list[str]()
    halved = job_of(next(cell for cell in sound if cell.defence == "psim"), plan, lab)
    old = _as_of_other_weights(halved, lab)
    killer = Thread(target=_kill, args=(shared, job_of(unpoisoned, plan, lab).steps[0]), daemon=True)
    killer.start()
    progress = run_on_cluster(plan, lab, [*sound, unpoisoned], said.append, Cluster(address=address, gpus=0, retries=0))
    killer.join(1)
    assert progress.done == len(sound) == 4
    assert _cells(progress.failed).keys() == {str(unpoisoned)}
    assert "its worker died" in progress.failed[str(unpoisoned)]
    assert len([line for line in said if line.startswith("FAILED")]) == 1
    made = [line.split("/")[0] for line in said if line.startswith("made")]
    assert made == ["made bases", "made guards"]
    new = load_arrays(halved.ends["clean_scores"].place(lab.store))
    assert new["sources"] != old["sources"]
    assert np.array_equal(new["scores"], old["scores"])


def test_a_cluster_is_started_for_a_run_that_names_none(
    plan: Plan, stores: tuple[Path, Path, list[str], list[int]]
) -> None:
    said: list[str] = []
    sound = [cell for cell in plan.cells if cell.defence != "hasty"]
    assert run_on_cluster(plan, Lab(Store(stores[1])), sound, said.append, Cluster()).done == len(sound)
    assert said[0].startswith("Ray: 1 nodes, ")
    assert not any(line.startswith("made") for line in said)


def _as_of_other_weights(job: Job, lab: Lab) -> dict[str, Any]:
    """Leave of a cell with a guard its answers, and the scores of clean texts as if its base had been another one."""
    base, place = job.steps[0], job.ends["clean_scores"].place(lab.store)
    kept = load_arrays(place)
    save_arrays(place, {**kept, "sources": np.asarray(json.dumps({base.key: "another one"}))})
    job.ends["triggered_scores"].place(lab.store).unlink()
    lab.store.cell(job.key).unlink()
    for step in job.steps:
        for path in step.place(lab.store).glob("*"):  # but for the records of trainings
            if path.name != "record.json":
                path.unlink()
    return load_arrays(place)


def _cells(failed: Mapping[str, str]) -> dict[str, str]:
    return {name: reason for name, reason in failed.items() if name.startswith("model=")}


def test_a_store_that_nodes_do_not_share_is_said(plan: Plan, tmp_path: Path) -> None:
    job = job_of(plan.cells[0], plan, Lab(Store(tmp_path / "there")))
    place = _Place(tmp_path / "here", None, None, Path.cwd(), processes=1, threads=1)
    report = _make(place, job.steps[1])
    assert "must be one directory that all nodes share" in report.failed[job.steps[1].key]
    after = _make(place, job.steps[2], report)
    assert after.failed[job.steps[2].key] == report.failed[job.steps[1].key]
    assert (len(report.said), len(after.said)) == (1, 0)


def test_a_disk_that_takes_nothing_ends_the_run(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(write: Callable[[], None]) -> None:
        raise WriteError("Cannot write bases: No space left on device.")

    monkeypatch.setattr(steps, "write_once", refuse)
    place = _Place(tmp_path / "lab", None, None, Path.cwd(), processes=1, threads=1)
    step = job_of(plan.cells[0], plan, Lab(Store(tmp_path / "lab"))).steps[0]
    with pytest.raises(WriteError) as caught:
        _make(place, step)

    class TaskError(Exception):
        cause = caught.value

    def get(reference: object) -> None:
        raise TaskError

    ray = SimpleNamespace(get=get, exceptions=SimpleNamespace(RayTaskError=TaskError, RayError=TaskError))
    with pytest.raises(WriteError, match="No space left"):
        _hear(ray, None, step, Progress(cells=1), lambda line: None)


def test_a_task_whose_guard_stands_on_other_weights_now_makes_nothing(
    stores: tuple[Path, Path, list[str], list[int]], plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(stores[0], tmp_path / "lab")
    lab = Lab(Store(tmp_path / "lab"))
    job = job_of(next(cell for cell in plan.cells if cell.defence == "psim"), plan, lab)
    base, scores = job.steps[0], job.ends["triggered_scores"]
    shutil.rmtree(base.place(lab.store))
    scores.place(lab.store).unlink()
    monkeypatch.setattr(steps, "poison_base", lambda *args, seed, **kwargs: poison_base(*args, seed=seed + 1, **kwargs))
    place = _Place(lab.store.root, None, None, Path.cwd(), processes=1, threads=1)
    report = _make(place, base)
    assert (len(report.said), report.failed) == (1, {})
    assert _make(place, scores, report) == _Report((), {}, is_put_off=True)
    assert not scores.is_made(lab.store)
    assert {step.kind for step in job.to_make(lab.store)} == {"victims", "answers", "guards", "scores"}


def test_what_a_task_takes() -> None:
    said: list[str] = []
    small, large = {"CPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}
    asked = [
        (Cluster(), 1, [small], (1, 0.0)),
        (Cluster(), 1, [small, large], (1, 1.0)),
        (Cluster(cpus=4), 2, [large], (4, 2.0)),
        (Cluster(gpus=0.25), 1, [large], (1, 0.25)),
        (Cluster(gpus=0), 2, [large], (1, 0.0)),
        (Cluster(address="head:6379", cpus=16), 1, [large], (16, 1.0)),
    ]
    for cluster, processes, nodes, (cpus, gpus) in asked:
        found = _demand(cluster, processes, nodes, said.append)
        assert found == {"num_cpus": cpus, "num_gpus": gpus, "max_retries": 3}
    assert said[1] == "Ray: 2 nodes, 10 CPUs, 2 GPUs; a task takes 1 CPUs and 1 GPUs"
    assert said[-1] == "no node has 16 CPUs and 1 GPUs now; the run waits for one"
    with pytest.raises(PlanError, match="A task takes 3 CPUs and 0 GPUs; this machine has not so many"):
        _demand(Cluster(cpus=3), 1, [small], said.append)
    with pytest.raises(PlanError, match="2 processes need a GPU each"):
        _demand(Cluster(gpus=0.5), 2, [large], said.append)


def test_without_ray_its_engine_says_what_to_install(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PlanError, match=r"pip install 'foretaste\[ray\]'"):
        run_on_cluster(plan, Lab(Store(tmp_path)), plan.cells, lambda line: None, Cluster())


def test_an_address_where_nothing_answers(plan: Plan, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(PlanError, match=f"No Ray cluster answers at {address}"):
            run_on_cluster(plan, Lab(Store(tmp_path)), plan.cells, lambda line: None, Cluster(address=address))


@pytest.mark.parametrize("fields", [{"cpus": 0}, {"gpus": -1}, {"gpus": 1.5}, {"retries": -1}])
def test_what_no_task_can_take(fields: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        build(Cluster, fields)
