"""`foretaste run` and `foretaste report` from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from foretaste.cli import running
from foretaste.cli.app import app
from foretaste.cli.running import failed_by_all
from foretaste.experiment.cell import Cell
from foretaste.experiment.cluster import Cluster
from foretaste.experiment.lab import Lab
from foretaste.experiment.plan import Plan, read_plan
from foretaste.experiment.run import Progress, run_plan
from foretaste.experiment.sheet import write_sheet
from foretaste.experiment.store import Store

pytestmark = pytest.mark.usefixtures("one_thread")

PLAN = """
title = "Two cells"

[settings]
max_length = 32
limit = 100

[[grid]]
model = "tiny"
data = "toy"
attack = "none"
knowledge = "full_data"
strategy = ["lora", "full"]
seed = 3

[model.tiny]
location = "{tiny}"

[strategy.lora]
epochs = 1

[strategy.full]
epochs = 1
"""


def _ask(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def plan(toy_base: Path, tmp_path: Path) -> Path:
    """A plan's file."""
    path = tmp_path / "plan.toml"
    path.write_text(PLAN.format(tiny=toy_base), encoding="utf-8")
    return path


def test_a_plan_is_foretold_run_by_two_processes_and_reported(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    foretold = json.loads(_ask("run", str(plan), "--dry-run", "--json").stdout)
    assert (foretold["cells"], foretold["trainings"], foretold["made"]) == (2, 3, 0)
    assert not (tmp_path / "runs").exists()
    one = _ask("run", str(plan), "--only", "strategy=full")
    assert one.exit_code == 0
    assert "1/1 model=tiny data=toy" in one.stderr
    text = plan.read_text(encoding="utf-8")

    def edited(*given: Any) -> None:
        write_sheet(*given)
        plan.write_text("not the plan that was begun", encoding="utf-8")

    with monkeypatch.context() as patched:  # who edits a plan that runs changes the next run
        patched.setattr("foretaste.cli.running.write_sheet", edited)
        both = json.loads(_ask("run", str(plan), "--jobs", "2", "--json").stdout)
    plan.write_text(text, encoding="utf-8")
    assert (both["cells"], both["done"], both["failed"]) == (2, 2, {})
    again = _ask("run", str(plan), "--dry-run")
    assert "2 cells, 2 done" in again.stdout
    assert "3 trainings, 3 made" in again.stdout
    assert "time of one runner by past records: 0 s" in again.stdout
    assert _ask("report").exit_code == 0
    assert "2 of 2 cells were run" in (tmp_path / "site" / "plan.html").read_text(encoding="utf-8")


def test_a_cell_that_failed_or_lacks_its_weights_is_said(plan: Path, tmp_path: Path) -> None:
    text = plan.read_text(encoding="utf-8")
    plan.write_text(text.replace("epochs = 1", "epochs = 1\nlearning_rate = 1e30", 1), encoding="utf-8")
    failed = _ask("run", str(plan), "--store", str(tmp_path / "lab"))
    assert failed.exit_code == 1
    assert "1 of 2 cells" in failed.stdout
    assert "failed: model=tiny" in failed.stdout
    plan.write_text(text.replace('model = "tiny"', 'model = "mpt-7b"'), encoding="utf-8")
    missing = _ask("run", str(plan), "--store", str(tmp_path / "lab"))
    assert missing.exit_code == 1  # nothing was done
    assert "2 cells cannot be run here: no weights at mosaicml/mpt-7b" in missing.stderr
    assert "not run: model=mpt-7b data=toy knowledge=full_data attack=none strategy=lora" in missing.stdout
    assert "no weights at mosaicml/mpt-7b" in missing.stdout
    dry = _ask("run", str(plan), "--store", str(tmp_path / "lab"), "--dry-run")
    assert dry.stdout.splitlines()[1:3] == [
        "2 cells cannot be run here: no weights at mosaicml/mpt-7b",
        "0 trainings for the others, 0 made (one per cell and model: 0)",
    ]


def test_a_killed_runner_leaves_the_others_at_work_and_all_end_with_their_command(plan: Path, tmp_path: Path) -> None:
    plan.write_text(plan.read_text(encoding="utf-8").replace("epochs = 1", "epochs = 1000"), encoding="utf-8")
    store, said = Store(tmp_path / "lab"), tmp_path / "said"
    ask = "from foretaste.cli.app import app; app()"
    with said.open("w") as stream:
        command = subprocess.Popen(
            [sys.executable, "-c", ask, "run", str(plan), "--store", store.root, "--jobs", "2"], stderr=stream
        )
    try:
        _wait(lambda: len(_held(store)) == 2)  # each runner is at a training
        runners = [runner for child in _children(command.pid) for runner in _children(child)]
        assert len(runners) == 2
        os.kill(runners[1], signal.SIGKILL)
        _wait(lambda: "A runner was killed" in said.read_text())
        assert _children(_parent(runners[0])) == runners[:1]
        assert command.poll() is None
    finally:
        command.kill()
        command.wait()
    _wait(lambda: not _held(store))


def test_a_runner_that_breaks_off_leaves_what_the_others_did(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(plan: Plan, lab: Lab, cells: Sequence[Cell], start: int, threads: int) -> Progress:
        if start or lab.store.root.name != "lab":
            raise RuntimeError("CUDA error: unspecified launch failure")
        return run_plan(plan, lab, cells, lambda line: None)

    monkeypatch.setattr(running, "_work", work)
    monkeypatch.setattr(running, "ProcessPoolExecutor", lambda size, mp_context: ThreadPoolExecutor(size))
    answer = _ask("run", str(plan), "--store", str(tmp_path / "lab"), "--jobs", "2")
    assert "A runner ended: RuntimeError('CUDA error" in answer.stderr
    assert (answer.exit_code, "2 of 2 cells" in answer.stdout) == (0, True)
    with pytest.raises(RuntimeError, match="CUDA error"):  # nobody is left
        running.run(plan, tmp_path / "other", jobs=2)


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def _held(store: Store) -> list[str]:
    held = []
    for place in store.root.glob("locks/*"):
        with store.locked(place.name) as is_mine:
            held += [] if is_mine else [place.name]
    return held


def _wait(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_cell_failed_if_no_runner_could_finish_it(plan: Path) -> None:
    """One runner may fail at a full disk what another then writes; steps that failed are no cells."""
    cells = read_plan(plan).cells
    one, other = (str(cell) for cell in cells)
    parts = [
        Progress(cells=2, failed={one: "the disk is full", other: "not finite", "key": "not finite"}),
        Progress(cells=2, done=1, failed={other: "not finite"}),
    ]
    assert failed_by_all(parts, cells) == {other: "not finite"}


def test_cells_without_data_are_refused_before_anything_is_written(plan: Path, tmp_path: Path) -> None:
    directory = tmp_path / "data"
    directory.mkdir()
    plan.write_text(plan.read_text(encoding="utf-8").replace('"toy"', f'"{directory}"'), encoding="utf-8")
    for more in ([], ["--jobs", "2"], ["--engine", "ray"], ["--dry-run"]):
        answer = _ask("run", str(plan), "--store", str(tmp_path / "lab"), *more)
        assert answer.exit_code == 2
        assert answer.stderr.startswith("error: 2 of 2 cells: ")
        assert len(answer.stderr.splitlines()) == 1
    assert not (tmp_path / "lab").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "strategi=lora"], "Did you mean 'strategy'"),
        (["--only", "lora"], "--only takes axis=value, such as strategy=lora"),
        (["--only", "seed=4"], "No cell of the plan has seed=4"),
        (["--only", "seed=3", "--only", "seed=4"], "No cell of the plan has seed=4"),
        (["--address", "head:6379"], "go with --engine ray"),
        (["--engine", "ray", "--jobs", "2"], "--cpus-per-task says how many fit"),
        (["--engine", "ray", "--gpus-per-task", "1.5"], "a part of one GPU or a whole number"),
    ],
)
def test_mistakes(plan: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    answer = _ask("run", str(plan), "--store", str(tmp_path / "lab"), *arguments)
    assert answer.exit_code == 2
    assert message in answer.stderr


def test_a_dry_run_refuses_what_the_run_refuses(plan: Path, tmp_path: Path) -> None:
    named = plan.rename(plan.with_name("my plan.toml"))
    file = tmp_path / "file"
    file.write_text("no store")
    for path, store, message in ((named, tmp_path / "lab", "take letters, digits"), (plan, file, "is a file")):
        if path is plan:
            named.rename(plan)
        for more in ([], ["--dry-run"]):
            answer = _ask("run", str(path), "--store", str(store), *more)
            assert answer.exit_code == 2
            assert message in answer.stderr
    assert not (tmp_path / "lab").exists()


def test_a_launcher_is_refused(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes of it would each train something else and wait for each other for ever."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    answer = _ask("run", str(plan), "--store", str(tmp_path / "lab"))
    assert answer.exit_code == 2
    assert "leave the launcher out, and write --processes 2" in answer.stderr
    assert not (tmp_path / "lab").exists()


def test_the_options_of_a_cluster_reach_it(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run(read: Plan, lab: Lab, cells: Sequence[Cell], say: object, cluster: Cluster) -> Progress:
        asked.append((lab.processes, cluster))
        return Progress(cells=len(cells), failed={str(cells[0]): "its worker died"})

    monkeypatch.setattr("foretaste.cli.running.run_on_cluster", run)
    options = ["--address", "head:6379", "--cpus-per-task", "4", "--gpus-per-task", "2", "--retries", "9"]
    command = ["run", str(plan), "--store", str(tmp_path / "lab"), "--engine", "ray", "--processes", "2", *options]
    answer = _ask(*command)
    assert asked == [(2, Cluster(address="head:6379", cpus=4, gpus=2.0, retries=9))]
    assert answer.exit_code == 1
    assert "1 of 2 cells" in answer.stdout
    assert "failed: model=tiny" in answer.stdout


def test_a_report_of_nothing(tmp_path: Path) -> None:
    answer = _ask("report", str(tmp_path), "-o", str(tmp_path / "site"))
    assert answer.exit_code == 2
    assert "holds no plan" in answer.stderr
