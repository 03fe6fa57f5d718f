"""What happens when weights are made again and come out otherwise while others use them, here and on a cluster."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.experiment.toy import NAMES, plan_of

from foretaste.errors import DataError, ModelError
from foretaste.evaluate.outcome import measure
from foretaste.experiment import cluster, grid, steps
from foretaste.experiment.cluster import Cluster, run_on_cluster
from foretaste.experiment.grid import job_of, record_of
from foretaste.experiment.job import Job
from foretaste.experiment.lab import Lab
from foretaste.experiment.plan import Plan
from foretaste.experiment.run import Progress, made, run_plan
from foretaste.experiment.store import Store, load_arrays, save_arrays
from foretaste.tune.loop import tune
from foretaste.tune.poison import poison_base

pytestmark = pytest.mark.usefixtures("one_thread")

GRID = """
[[grid]]
model = "tiny"
data = "{data}"
knowledge = "full_data"
attack = "badnet"
strategy = "lora"
"""
PLAN = (
    'title = "Two cells"\n[settings]\nmax_length = 32\nlimit = 200\npoisoning_epochs = 2\npoisoning_rate = 1e-3\n'
    + GRID
    + 'defence = "none"\n'
    + GRID
    + 'defence = "psim"\npsim_strategy = "lora"\ntrigger = "other"\n'
    + NAMES
    + '[attack.other]\ntrigger = "word:zz"\ncount = 60\n'
)


@pytest.fixture(scope="module")
def plan(toy_base: Path, small_toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """An undefended cell, and one that PSIM stands before, tested with another trigger, of one base and victim."""
    return plan_of(PLAN, toy_base, small_toy, tmp_path_factory.mktemp("plan"))


@pytest.fixture(scope="module")
def finished(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both cells."""
    root = tmp_path_factory.mktemp("lab")
    assert run_plan(plan, Lab(Store(root)), plan.cells, lambda line: None).done == 2
    return root


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> Store:
    """A copy of it."""
    shutil.copytree(finished, tmp_path / "lab")
    return Store(tmp_path / "lab")


def _jobs(plan: Plan, store: Store) -> tuple[Job, Job]:
    plain, guarded = (job_of(cell, plan, Lab(store)) for cell in plan.cells)
    return plain, guarded


def _other_base(*args: Any, seed: int, **kwargs: Any) -> Any:
    return poison_base(*args, seed=seed + 1, **kwargs)  # as other hardware would


def _no_base(*args: Any, **kwargs: Any) -> Any:
    raise ModelError("The loss is nan.", code="diverged")


def _run(plan: Plan, store: Store, number: int) -> tuple[Progress, list[str]]:
    said: list[str] = []
    found = run_plan(plan, Lab(store), [plan.cells[number]], said.append)
    return found, [line.split(" in ")[0].split("/")[0] for line in said if line.startswith(("made", "FAILED"))]


def test_a_base_that_is_made_again_while_a_victim_trains_on_the_former_one(
    plan: Plan, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = _jobs(plan, store)[0].clean.victim
    base = next(victim.direct_needs())
    shutil.rmtree(victim.place(store))
    for path in (*store.root.glob("answers/*"), *store.root.glob("cells/*")):
        path.unlink()
    former = base.mark(store)

    def slow(*args: Any, **kwargs: Any) -> Any:
        result = tune(*args, **kwargs)
        if kwargs.get("title") == "victim" and base.mark(store) == former:
            shutil.rmtree(base.place(store))
            with monkeypatch.context() as patched:
                patched.setattr(steps, "poison_base", _other_base)
                assert made(base, Lab(store), Progress(0), lambda line: None)
        return result

    monkeypatch.setattr(steps, "tune", slow)
    found, said = _run(plan, store, 0)
    assert (found.done, found.failed) == (1, {})
    assert said == ["made victims", "made victims"]  # the first one stood on what is gone
    assert base.mark(store) != former
    assert not victim.is_outdated(store)


def test_a_record_is_not_written_of_what_is_made_again_meanwhile(
    plan: Plan, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = _jobs(plan, store)[1]
    place = job.ends["clean"].place(store)

    def measuring(*args: Any, **kwargs: Any) -> Any:
        save_arrays(place, {**load_arrays(place), "sources": np.asarray('{"another": "one"}')})
        return measure(*args, **kwargs)

    monkeypatch.setattr(grid, "measure", measuring)
    with pytest.raises(DataError, match="made again meanwhile"):
        record_of(job, Lab(store))


def test_what_was_begun_on_another_base_is_not_continued(
    plan: Plan, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = _jobs(plan, store)[0].clean.victim
    shutil.rmtree(victim.place(store))
    for path in (*store.root.glob("answers/*"), *store.root.glob("cells/*")):
        path.unlink()

    class Killed(BaseException):
        pass

    def killed(write: Callable[[], object]) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(steps, "write_once", killed)
        with pytest.raises(Killed):
            _run(plan, store, 0)
    assert [path.name.split(".")[0] for path in (store.root / "partial").iterdir()] == [victim.key]
    shutil.rmtree(next(victim.direct_needs()).place(store))
    monkeypatch.setattr(steps, "poison_base", _other_base)
    found, said = _run(plan, store, 0)
    assert (found.done, said) == (1, ["made bases", "made victims"])
    assert not any((store.root / "partial").iterdir())


def test_weights_whose_manifest_was_left_are_made_again(plan: Plan, store: Store) -> None:
    guarded = _jobs(plan, store)[1]
    for path in store.root.glob("bases/*/*.safetensors"):
        path.unlink()
    guarded.ends["clean_scores"].place(store).unlink()
    store.cell(guarded.key).unlink()
    found, said = _run(plan, store, 1)
    assert (found.done, said) == (1, ["made bases"])


def test_what_a_killed_writer_left_is_cleared_away_and_what_it_moved_aside_comes_back(store: Store) -> None:
    (own,) = (path for path in (store.root / "bases").iterdir())
    for name in (f".{own.name}.abc", f".{own.name}.old.abc"):
        (store.root / "bases" / name).mkdir()
    (store.root / "answers" / f".{own.name}.npz.abc").write_text("half")
    own.rename(store.root / "bases" / f".{own.name}.old.abc" / "gone")
    store.sweep("bases", own.name)
    store.sweep("answers", own.name)
    assert [path.name for path in (store.root / "bases").iterdir()] == [own.name]
    assert (own / "record.json").is_file()
    assert not [path for path in (store.root / "answers").iterdir() if path.name.startswith(".")]


def test_who_takes_over_a_step_clears_away_what_a_killed_writer_left(plan: Plan, store: Store) -> None:
    guarded = _jobs(plan, store)[1]
    (guard,) = guarded.charged
    beside = guard.place(store).parent
    for name in (f".{guard.key}.abc", f".{guard.key}.old.abc"):
        (beside / name).mkdir()
    guard.place(store).rename(beside / f".{guard.key}.old.abc" / "gone")
    guarded.ends["clean_scores"].place(store).unlink()
    store.cell(guarded.key).unlink()
    found, said = _run(plan, store, 1)
    assert (found.done, found.failed, said) == (1, {}, [])  # it was there
    assert [path.name for path in beside.iterdir()] == [guard.key]


class _Scheduler:
    """Stands for Ray: one task at a time, those that need a guard last."""

    exceptions = SimpleNamespace(RayError=RuntimeError, RayTaskError=ChildProcessError)  # none of which comes

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 4.0}}]

    def remote(self, task: Any) -> Any:
        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=lambda *given: _Task(task, *given)))

    def wait(self, tasks: Sequence[Any], **options: Any) -> tuple[list[Any], list[Any]]:
        ready = [task for task in tasks if all(each.report is not None for each in task.before)]
        first = min(ready, key=lambda task: task.step.kind in ("guards", "scores"))
        first.report = first.run()
        return [first], []

    def get(self, task: Any) -> Any:
        return task.report


class _Task:
    """A task that was sent."""

    def __init__(self, task: Any, place: Any, step: Any, *before: Any) -> None:
        self.step, self.before, self.report = step, before, None
        self.run = lambda: task(place, step, *(each.report for each in before))


@pytest.fixture
def scheduled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler in Ray's place."""

    @contextmanager
    def connected(asked: Cluster) -> Iterator[Any]:
        yield _Scheduler()

    monkeypatch.setattr(cluster, "_connected", connected)
    cluster._lab_at.cache_clear()


@pytest.mark.usefixtures("scheduled")
def test_what_a_cluster_put_off_is_sent_again(plan: Plan, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cells' answers wait for a victim that is outdated; the second cell's guard is ready last."""
    plain, guarded = _jobs(plan, store)
    store.cell(plain.key).unlink()
    shutil.rmtree(store.root / "guards")
    shutil.rmtree(next(plain.clean.victim.direct_needs()).place(store))
    for step in (plain.clean, guarded.ends["clean_scores"]):
        step.place(store).unlink()
    store.cell(guarded.key).unlink()
    monkeypatch.setattr(steps, "poison_base", _other_base)
    found = run_on_cluster(plan, Lab(store), plan.cells, lambda line: None, Cluster(cpus=1))
    assert (found.done, found.failed) == (2, {})


@pytest.mark.usefixtures("scheduled")
def test_a_finished_cell_does_not_fail_with_a_step_that_it_no_longer_needs(
    plan: Plan, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, guarded = _jobs(plan, store)
    store.cell(guarded.key).unlink()
    guarded.ends["clean_scores"].place(store).unlink()
    shutil.rmtree(next(plain.clean.victim.direct_needs()).place(store))
    monkeypatch.setattr(steps, "poison_base", _no_base)
    cells = plan.cells[::-1]
    found = run_on_cluster(plan, Lab(store), cells, lambda line: None, Cluster(cpus=1))
    assert found.done == 1
    assert [name for name in found.failed if name.startswith("model=")] == [str(guarded.cell)]


@pytest.mark.usefixtures("scheduled")
def test_what_is_kept_does_not_wait_for_what_it_was_made_of(
    toy_base: Path, small_toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fully tuned victim opens without the base that a guard needs again, and that cannot be made."""
    plan = plan_of(PLAN.replace('strategy = "lora"\n', 'strategy = "full"\n', 2), toy_base, small_toy, tmp_path)
    store, said = Store(tmp_path / "lab"), list[str]()
    assert run_plan(plan, Lab(store), plan.cells, lambda line: None).done == 2
    plain, guarded = _jobs(plan, store)
    shutil.rmtree(next(plain.clean.victim.direct_needs()).place(store))
    for step in (plain.clean, guarded.ends["triggered_scores"]):
        step.place(store).unlink()
    for job in (plain, guarded):
        store.cell(job.key).unlink()
    monkeypatch.setattr(steps, "poison_base", _no_base)
    found = run_on_cluster(plan, Lab(store), plan.cells[::-1], said.append, Cluster(cpus=1))
    assert found.done == 1
    assert [name for name in found.failed if name.startswith("model=")] == [str(guarded.cell)]
    assert len([line for line in said if line.startswith("FAILED")]) == 1


def test_progress_that_a_killed_runner_left_of_what_it_had_made_is_deleted(plan: Plan, store: Store) -> None:
    plain, _ = _jobs(plan, store)
    begun = [store.partial(f"{key}.0123") for key in (plain.clean.victim.key, "f" * 24)]
    for path in begun:
        path.mkdir(parents=True)
    assert run_plan(plan, Lab(store), plan.cells, lambda line: None).done == 2
    assert [path.exists() for path in begun] == [False, True]  # of another plan's training nothing is known
