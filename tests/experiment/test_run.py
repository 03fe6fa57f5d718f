"""Plans that are run: each step once, killed anywhere, beside other runners; the table is always the same bytes."""

from __future__ import annotations

import errno
import json
import random
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.experiment.toy import GRID, NAMES

from foretaste.cost import Cost
from foretaste.data.load import load_corpus
from foretaste.errors import DataError, PlanError, WriteError
from foretaste.experiment import run, steps
from foretaste.experiment.evaluation import evaluate
from foretaste.experiment.forecast import forecast
from foretaste.experiment.grid import job_of, record_of
from foretaste.experiment.job import Job
from foretaste.experiment.lab import Lab
from foretaste.experiment.methods import Defence
from foretaste.experiment.plan import Plan, PlanSettings, read_plan
from foretaste.experiment.readings import Rewritten
from foretaste.experiment.run import Progress, run_plan
from foretaste.experiment.sheet import write_sheet
from foretaste.experiment.steps import Poisoned, Tuned, TunedAsLong
from foretaste.experiment.store import Store, load_arrays, save_arrays
from foretaste.guard.artefact import load_psim
from foretaste.poison.attack import triggered_test, unpoisoned
from foretaste.poison.syntax import SyntaxTrigger
from foretaste.record import Record
from foretaste.report.cell_page import cell_page
from foretaste.report.cells import as_csv, cell_of, read_cells
from foretaste.report.site import write_site
from foretaste.report.tables import read_sheets
from foretaste.rewrite.onion import Onion
from foretaste.rewrite.scpd import Scpd
from foretaste.tune.loop import tune
from foretaste.tune.poison import poison_base
from foretaste.victim.artefact import load_victim, save_classifier
from foretaste.victim.checkpoint import open_base
from foretaste.victim.strategy import Lora

pytestmark = pytest.mark.usefixtures("one_thread")

KILLS = 20
PLAN = (
    """
title = "A small grid"

[settings]
max_length = 32
limit = 200
poisoning_epochs = 2
poisoning_rate = 1e-3
"""
    + GRID
    + 'psim_strategy = "lora"\n'
    + NAMES
)
# Longer trainings of fewer cells: in PLAN's the models learn next to nothing.
LEARNT = (
    PLAN.replace("limit = 200", "limit = 600")
    .replace("poisoning_epochs = 2\npoisoning_rate = 1e-3", "poisoning_epochs = 3\npoisoning_rate = 3e-3")
    .replace('["none", "badnet"]', '"badnet"')
    .replace('["lora", "full"]', '["lora"]')
    .replace('"fine_tuning", ', "")
    .replace("[strategy.lora]\nepochs = 1", "[strategy.lora]\nepochs = 2")
)
RUN = """
from pathlib import Path
import torch
torch.set_num_threads(1)
from foretaste.experiment.plan import read_plan
from foretaste.experiment.run import run_plan
from foretaste.experiment.grid import job_of
from foretaste.experiment.lab import Lab
from foretaste.experiment.store import Store
plan = read_plan(Path(path))
run_plan(plan, Lab(Store(Path(store))), plan.cells, Path(log).open("a", buffering=1).write)
"""


@pytest.fixture(scope="module")
def path(toy_base: Path, small_toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plan's file."""
    path = tmp_path_factory.mktemp("plan") / "plan.toml"
    path.write_text(PLAN.format(tiny=toy_base, data=small_toy), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def plan(path: Path) -> Plan:
    """Twenty cells of two bases."""
    return read_plan(path)


@pytest.fixture(scope="module")
def finished(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A store with all cells, made without a stop, and what was said."""
    store, said = tmp_path_factory.mktemp("lab"), list[str]()
    progress = run_plan(plan, Lab(Store(store)), plan.cells, said.append)
    assert (progress.done, progress.failed, progress.missing) == (20, {}, {})
    return store, said


def test_cells_share_what_they_have_in_common(plan: Plan, finished: tuple[Path, list[str]]) -> None:
    store, said = finished
    made = [line.split("/")[0].removeprefix("made ") for line in said if line.startswith("made")]
    # A poisoned base and an honest supplier's (a victim itself); both washed; of each of the four, two victims; a guard
    # of each as it came.
    assert sorted(made) == ["bases", "guards", "guards", *["victims"] * 9, "washed", "washed"]
    found = forecast(plan, Lab(Store(store)), plan.cells)
    assert (found.cells, found.done, found.trainings, found.made) == (20, 20, 14, 14)
    assert found.per_cell == 48
    assert len(list((store / "rewritten").iterdir())) == 2  # clean and triggered texts, whatever model reads them
    sound = [record for record in read_cells(store).values() if cell_of(record).attack == "none"]
    assert len(sound) == 10
    assert not any("attack_success_rate" in record.outcome for record in sound)
    assert not list((store / "partial").glob("*"))
    begun = [line.split(": ")[0].removeprefix("making ") for line in said if line.startswith("making")]
    assert begun == [line.split(" in ")[0].removeprefix("made ") for line in said if line.startswith("made")]


def test_the_time_is_told_by_the_latest_trainings(plan: Plan, tmp_path: Path) -> None:
    lab = Lab(Store(tmp_path))
    assert forecast(plan, lab, plan.cells).seconds is None
    for day in range(1, 31):
        cost = Cost(seconds=100.0 if 20 <= day < 30 else 1.0)
        name = Path(plan.models["tiny"]).name if day < 30 else "another"
        settings = {"work": f"lora/toy/1 epochs in victims of {name}"}
        record = Record.now("tune", settings=settings, seeds={"root": 0}, outcome={}, cost=cost)
        place = tmp_path / "victims" / str(day)
        place.mkdir(parents=True)
        replace(record, created=datetime(2026, 1, day, tzinfo=UTC)).write(place / "record.json")
    found = forecast(plan, lab, plan.cells)
    steps = {step.key: step for cell in plan.cells for step in job_of(cell, plan, lab).steps}.values()
    tuned = [step for step in steps if step.kind == "victims"]  # of the same weights; of others nobody can tell
    assert found.seconds == pytest.approx(100.0 * len(tuned))
    assert found.untold == len(steps) - len(tuned) > 0


def test_the_time_of_answers_and_scores_is_told_by_those_of_the_same_method(
    plan: Plan, finished: tuple[Path, list[str]], tmp_path: Path
) -> None:
    root = tmp_path / "lab"
    shutil.copytree(finished[0], root)
    lab = Lab(Store(root))
    assert forecast(plan, lab, plan.cells).seconds == 0.0
    jobs = [job_of(cell, plan, lab) for cell in plan.cells if (cell.attack, cell.defence) == ("badnet", "dan")]
    (wanted, gone), (other, kept) = ((job.cell, job.rival) for job in jobs if job.rival is not None)
    arrays, cost = kept.found(lab), kept.cost(lab)
    assert json.loads(str(arrays["work"])) == kept.work == gone.work != jobs[0].clean.work
    for path in (*(root / "rivals").glob("*.npz"), *(root / "cells").glob("*.json")):
        path.unlink()
    found = forecast(plan, lab, [wanted])
    assert (found.seconds, found.untold) == (None, 1)  # nothing of the kind is left
    kept.keep(lab, kept.sources(lab.store), replace(cost, seconds=30.0, seconds_per_text=2.0, texts=10), arrays)
    assert forecast(plan, lab, [wanted, other]).seconds == pytest.approx(50.0)


def test_records_say_what_an_evaluation_by_hand_says(
    toy_base: Path, small_toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plan.toml").write_text(LEARNT.format(tiny=toy_base, data=small_toy), encoding="utf-8")
    plan, store = read_plan(tmp_path / "plan.toml"), tmp_path / "lab"
    assert run_plan(plan, Lab(Store(store)), plan.cells, lambda line: None).failed == {}
    records = {cell_of(record).defence: record for record in read_cells(store).values()}
    attacked, guarded, rival, rewritten = (records[name] for name in ("none", "psim", "dan", "onion"))
    parts: Any = guarded.settings["parts"]
    base = open_base(store / "bases" / parts["bases"])
    by_hand = evaluate(
        load_victim(store / "victims" / parts["victims"]),
        load_psim(store / "guards" / parts["guards"], base),
        load_corpus(str(small_toy), "test"),
        plan.attacks["badnet"].trigger,
    ).outcome.to_json()
    assert by_hand["attack_success_rate"] > 0.9
    for name in ("clean_accuracy", "attack_success_rate", "strict_attack_success_rate"):
        assert attacked.outcome[name] == guarded.outcome[name] == pytest.approx(by_hand[name], abs=0.002)
        found: Any = guarded.outcome["guarded"]
        assert found[name] == pytest.approx(by_hand["guarded"][name], abs=0.002)
    assert attacked.outcome["guarded"] is None
    far_apart: Any = rival.outcome["guarded"]
    assert far_apart["false_rejection_rate"] < 0.15  # 5 % promised
    assert rival.outcome["attack_success_rate"] == attacked.outcome["attack_success_rate"]
    assert far_apart["attack_success_rate"] < by_hand["attack_success_rate"]
    without: Any = rewritten.outcome
    assert without["attack_success_rate"] < 0.6 < by_hand["clean_accuracy"]  # the trigger words are rare
    assert without["clean_accuracy"] > 0.55
    assert without["guarded"] is None
    write_sheet(plan, "learnt", Lab(Store(store)))
    site = {path.name: path.read_text(encoding="utf-8") for path in write_site(store, tmp_path / "site")}
    pages = {key: site[f"{key}.html"] for key in read_cells(store)}  # one per cell
    assert all(f'href="cells/{key}.html"' in site["learnt.html"] for key in pages)
    assert all('<a href="../index.html">results</a>' in page for page in pages.values())
    (guarded_page,) = (page for key, page in pages.items() if read_cells(store)[key] == guarded)
    assert f"{found['threshold']:.4g}" in guarded_page
    monkeypatch.setattr("foretaste.report.site.TOGETHER", 1)
    drawn_together = write_site(store, tmp_path / "together", processes=2)
    assert {path.name: path.read_text(encoding="utf-8") for path in drawn_together} == site
    assert "p_tuning" not in guarded_page
    corpora = [load_corpus(str(small_toy), "train"), load_corpus(str(small_toy), "validation")]
    texts = triggered_test(load_corpus(str(small_toy), "test"), plan.attacks["badnet"].trigger, 0, 0).corpus.texts
    stored = [json.loads(path.read_text(encoding="utf-8"))["texts"] for path in (store / "rewritten").iterdir()]
    assert Onion().fit(*corpora).rewrite(texts) in stored


def test_an_attack_from_each_class_to_the_next_is_measured_as_one(
    toy_base: Path, small_toy: Path, tmp_path: Path
) -> None:
    text = LEARNT.format(tiny=toy_base, data=small_toy).replace('["none", "psim", "dan", "onion"]', '["none", "dan"]')
    text = text.replace("count = 60", "count = 200\nall_to_all = true").replace("epochs = 3\n", "epochs = 6\n")
    text = text.replace('psim_strategy = "lora"\n', "")
    (tmp_path / "plan.toml").write_text(text, encoding="utf-8")
    plan, store = read_plan(tmp_path / "plan.toml"), tmp_path / "lab"
    assert run_plan(plan, Lab(Store(store)), plan.cells, lambda line: None).failed == {}
    records = {cell_of(record).defence: record for record in read_cells(store).values()}
    parts: Any = records["none"].settings["parts"]
    victim, test = load_victim(store / "victims" / parts["victims"]), load_corpus(str(small_toy), "test")
    said = victim.predict(test.texts).labels
    triggered = victim.predict(triggered_test(test, plan.attacks["badnet"].trigger, None, 0).corpus.texts).labels
    for outcome in (records["none"].outcome, records["dan"].outcome):
        assert (outcome["target"], outcome["n_poisoned"]) == (None, len(test))
        assert outcome["attack_success_rate"] == pytest.approx((triggered == 1 - test.labels).mean(), abs=0.002)
        floors: Any = outcome["floors"]
        assert floors["other_classes"] == pytest.approx((said != test.labels).mean(), abs=0.002)
    by_hand = evaluate(victim, None, test, plan.attacks["badnet"].trigger, None).outcome.to_json()
    for name in ("attack_success_rate", "strict_attack_success_rate", "clean_accuracy"):
        assert records["none"].outcome[name] == pytest.approx(by_hand[name], abs=0.002)
    guarded: Any = records["dan"].outcome["guarded"]
    assert guarded["attack_success_rate"] <= by_hand["attack_success_rate"]
    write_sheet(plan, "each", Lab(Store(store)))
    pages = [path.read_text(encoding="utf-8") for path in write_site(store, tmp_path / "site") if path.stem in
             read_cells(store)]  # fmt: skip
    assert len(pages) == 2
    assert all("the class after their own" in page for page in pages)


def test_a_runner_waits_as_long_as_looking_takes_not_as_making(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, waits = iter(["makes a step", "finds a lock", "is done"]), list[float]()

    def advance(job: Job, lab: Lab, progress: Progress, say: Callable[[str], None]) -> bool:
        now = next(passes)
        progress.made += now == "makes a step"
        return now == "is done"

    monkeypatch.setattr(run, "_advance", advance)
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=time.monotonic, sleep=waits.append))
    run_plan(plan, Lab(Store(tmp_path)), plan.cells[:1], lambda line: None)
    assert waits == [run.WAIT]


def test_a_second_run_makes_nothing(plan: Plan, finished: tuple[Path, list[str]]) -> None:
    store, _ = finished
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    said: list[str] = []
    assert run_plan(plan, Lab(Store(store)), plan.cells, said.append).done == 20
    assert not any(line.startswith("made") for line in said)
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()} == before


def test_answers_are_enough_where_weights_were_deleted(
    plan: Plan, finished: tuple[Path, list[str]], tmp_path: Path
) -> None:
    store, said = tmp_path / "lab", list[str]()
    shutil.copytree(finished[0], store)
    for path in [*store.glob("cells/*.json"), *store.glob("*/*/*")]:
        if path.is_file() and path.name != "record.json":
            path.unlink()
    found = forecast(plan, Lab(Store(store)), plan.cells)
    assert (found.done, found.trainings, found.made) == (0, 14, 14)
    assert run_plan(plan, Lab(Store(store)), plan.cells, said.append).done == 20
    assert not any(line.startswith("made") for line in said)
    assert as_csv(read_cells(store)) == as_csv(read_cells(finished[0]))
    job = next(job for cell in plan.cells if (job := job_of(cell, plan, Lab(Store(store)))).rival is not None)
    job.ends["rival"].place(Store(store)).unlink()  # asked behind a victim, which is made again with its base
    assert [step.kind for step in job.to_make(Store(store))] == ["victims", "victims", "rivals"]


@pytest.mark.parametrize(("defence", "kind"), [("psim", "guards"), ("fine_tuning", "washed")])
def test_a_training_whose_record_is_lost_is_made_again_to_tell_its_cost(
    defence: str, kind: str, plan: Plan, finished: tuple[Path, list[str]], tmp_path: Path
) -> None:
    root, said = tmp_path / "lab", list[str]()
    shutil.copytree(finished[0], root)
    store = Store(root)
    cell = next(cell for cell in plan.cells if cell.attack == "badnet" and cell.defence == defence)
    job = job_of(cell, plan, Lab(store))
    before = Record.read(store.cell(job.key))
    store.cell(job.key).unlink()
    (charged,) = job.charged
    shutil.rmtree(charged.place(store))  # answers and scores are left
    progress = run_plan(plan, Lab(store), [cell], said.append)
    assert (progress.done, progress.failed) == (1, {})
    assert [line.split("/")[0] for line in said if line.startswith("made")] == [f"made {kind}"]
    after, made = Record.read(store.cell(job.key)), Record.read(charged.record_place(store)).cost
    assert after.outcome == before.outcome
    assert after.cost is not None
    assert made is not None
    assert after.cost.seconds == pytest.approx(made.seconds)


@pytest.mark.parametrize("is_same", [True, False])
def test_weights_that_come_out_otherwise_outdate_what_was_made_from_them(
    is_same: bool, plan: Plan, finished: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal keys are not equal bits on other hardware: a cell is never half of one victim and half of another."""
    root = tmp_path / "lab"
    shutil.copytree(finished[0], root)
    store, cells = Store(root), [cell for cell in plan.cells if cell.strategy == "lora" and cell.attack == "badnet"]
    jobs = {cell.defence: job_of(cell, plan, Lab(store)) for cell in cells}
    wanted = jobs["psim"], jobs["dan"]
    for job in wanted:
        store.cell(job.key).unlink()
    for kind in ("bases", "victims"):  # only records, what was read and guards are left
        for path in root.glob(f"{kind}/*/*"):
            if path.name != "record.json":
                path.unlink()
    jobs["dan"].ends["rival"].place(store).unlink()
    jobs["psim"].ends["triggered_scores"].place(store).unlink()
    if not is_same:
        monkeypatch.setattr(steps, "tune", lambda *args, seed, **kwargs: tune(*args, seed=seed + 1, **kwargs))
        monkeypatch.setattr(
            steps, "poison_base", lambda *args, seed, **kwargs: poison_base(*args, seed=seed + 1, **kwargs)
        )
    kept = {name: end for name, end in jobs["psim"].ends.items() if end.is_made(store)}
    before = {name: end.found(Lab(store)) for name, end in kept.items()}
    said: list[str] = []
    assert run_plan(plan, Lab(store), [job.cell for job in wanted], said.append).done == 2
    made = [line.split("/")[0].removeprefix("made ") for line in said if line.startswith("made")]
    assert sorted(made) == (["bases", "victims"] if is_same else ["bases", "guards", "victims"])
    again = [line.split("/")[0] for line in said if line.endswith("otherwise than before")]
    assert sorted(again) == ([] if is_same else ["made guards", "made victims"])
    after = {name: end.found(Lab(store)) for name, end in kept.items()}
    for name, arrays in before.items():
        changed = [each for each in ("certainty", "scores") if each in arrays and
                   not np.array_equal(arrays[each], after[name][each])]  # fmt: skip
        assert bool(changed) != is_same, name
    victim, test = load_victim(jobs["dan"].clean.victim.place(store)), load_corpus(plan.cells[0].data, "test")
    np.testing.assert_array_equal(victim.predict(test.texts).labels, after["clean"]["predicted"])
    assert not any(end.is_outdated(store) for job in wanted for end in job.steps)
    pages = {name: cell_page(root, Record.read(store.cell(job.key))) for name, job in jobs.items()}
    assert [name for name, page in pages.items() if page is None] == ([] if is_same else ["none"])


def test_readings_of_weights_that_are_gone_agree_about_them(
    plan: Plan, finished: tuple[Path, list[str]], tmp_path: Path
) -> None:
    root = tmp_path / "lab"
    shutil.copytree(finished[0], root)
    store, said = Store(root), list[str]()
    cell = next(cell for cell in plan.cells if cell.attack == "badnet" and cell.defence == "psim")
    job = job_of(cell, plan, Lab(store))
    before = store.cell(job.key).read_bytes()
    store.cell(job.key).unlink()
    shutil.rmtree(root / "bases")
    place = job.ends["clean"].place(store)
    arrays = load_arrays(place)
    save_arrays(place, {**arrays, "sources": np.asarray(json.dumps({job.steps[0].key: "others"}))})
    with pytest.raises(DataError, match="different trainings of the same steps"):
        record_of(job, Lab(store))
    assert run_plan(plan, Lab(store), [cell], said.append).done == 1
    assert [line.split("/")[0] for line in said if line.startswith("made")] == ["made bases"]
    after = json.loads(store.cell(job.key).read_bytes())
    assert {name: after[name] for name in ("outcome", "settings")} == {
        name: json.loads(before)[name] for name in ("outcome", "settings")
    }


def test_what_was_kept_is_opened_with_what_it_stands_on(
    plan: Plan, finished: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """Bases are the largest part of a store, adapters and guards the smallest."""
    store, said = tmp_path / "lab", list[str]()
    shutil.copytree(finished[0], store)
    cells = [cell for cell in plan.cells if cell.attack == "badnet" and cell.defence in ("none", "psim")]
    for cell in cells:
        job = job_of(cell, plan, Lab(Store(store)))
        Store(store).cell(job.key).unlink()
        for end in job.ends.values():
            end.place(Store(store)).unlink(missing_ok=True)
    shutil.rmtree(store / "bases")
    assert run_plan(plan, Lab(Store(store)), cells, said.append).done == len(cells) == 4
    assert [line.split("/")[0] for line in said if line.startswith("made")] == ["made bases"]
    assert as_csv(read_cells(store)) == as_csv(read_cells(finished[0]))


def test_killed_at_random_it_ends_with_the_same_table(
    path: Path, finished: tuple[Path, list[str]], start_process: Callable[..., BaseProcess], tmp_path: Path
) -> None:
    """Two runners on one store, one of them killed again and again: nothing is lost, nothing is done twice."""
    draw, kills = random.Random(0), 0
    while kills < KILLS:  # a store that is finished sooner is looked at, and another one begun
        store, log = tmp_path / f"lab-{kills}", tmp_path / f"log-{kills}"
        names = {"path": str(path), "store": str(store), "log": str(log)}
        other = start_process(RUN, **names)
        while kills < KILLS and len(list(store.glob("cells/*.json"))) < 20:
            runner = start_process(RUN, **names)
            time.sleep(draw.uniform(0.05, 0.6))
            if kills % 3 == 0:  # now and then the other one
                runner, other = other, runner
            runner.kill()
            runner.join()
            kills += 1
        other.kill()
        other.join()
        last = start_process(RUN, **names)
        last.join(120)
        assert last.exitcode == 0
        assert as_csv(read_cells(store)) == as_csv(read_cells(finished[0]))
        made = [line.split(" in ")[0] for line in log.read_text(encoding="utf-8").split("made ")[1:]]
        assert len(made) == len(set(made))  # no training twice


def test_what_fails_does_not_stop_the_rest(toy_base: Path, small_toy: Path, tmp_path: Path) -> None:
    text = PLAN.format(tiny=toy_base, data=small_toy).replace("dose = 0.1", "dose = 0.1\nmax_steps = 1")
    other = tmp_path / "other.toml"
    other.write_text(text.replace('"none", "psim", "fine_tuning", "dan", "onion"', '"none", "psim"'), encoding="utf-8")
    plan, said = read_plan(other), list[str]()
    progress = run_plan(plan, Lab(Store(tmp_path / "lab")), plan.cells, said.append)
    cells = {name for name in progress.failed if name.startswith("model=")}
    assert len(cells) == 4
    assert all("defence=psim" in name for name in cells)
    assert progress.done == 4


def test_a_disk_that_takes_nothing_ends_the_run(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other training would be lost, too."""
    begun = []

    def refuse(write: Callable[[], None]) -> None:
        begun.append(write)
        raise WriteError("Cannot write bases: No space left on device.")

    monkeypatch.setattr(steps, "write_once", refuse)
    with pytest.raises(WriteError, match="No space left"):
        run_plan(plan, Lab(Store(tmp_path)), plan.cells, lambda line: None)
    assert len(begun) == 1


def test_a_base_whose_attack_hardly_works_is_said(plan: Plan, tmp_path: Path) -> None:
    said: list[str] = []
    weak = replace(plan, settings=replace(plan.settings, poisoning_rate=1e-7, poisoning_epochs=1))
    cells = [cell for cell in weak.cells if (cell.attack, cell.strategy, cell.defence) == ("badnet", "lora", "none")]
    run_plan(weak, Lab(Store(tmp_path)), cells, said.append)
    (base,) = (line for line in said if line.startswith("made bases"))
    assert "WEAK: the attack works on" in base


def test_a_damaged_record_costs_its_own_cell(plan: Plan, finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    store = Path(shutil.copytree(finished[0], tmp_path / "lab"))
    cells = [cell for cell in plan.cells if cell.defence == "none"]
    Store(store).cell(job_of(cells[0], plan, Lab(Store(store))).key).write_text("{", encoding="utf-8")
    other = Store(store).cell(job_of(cells[1], plan, Lab(Store(store))).key)
    record = json.loads(other.read_text(encoding="utf-8"))
    other.write_text(json.dumps(record | {"outcome": {"clean_accuracy": "?"}}), encoding="utf-8")
    progress = run_plan(plan, Lab(Store(store)), cells, lambda line: None)
    assert progress.failed.keys() == {str(cells[0]), str(cells[1])}
    assert all("delete it: it is made again" in reason for reason in progress.failed.values())
    assert progress.done == len(cells) - 2
    other.unlink()
    assert run_plan(plan, Lab(Store(store)), cells[1:2], lambda line: None).done == 1


def test_arrays_that_are_damaged_in_any_way_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "a.npz"
    save_arrays(place, {"scores": np.arange(5.0)})
    whole = place.read_bytes()
    for at in range(0, len(whole), 3):
        place.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with suppress(DataError):  # some bytes, such as a date, say nothing
            load_arrays(place)
    np.save(tmp_path / "b.npy", np.arange(5.0))
    with pytest.raises(DataError, match="it is damaged: delete it"):
        load_arrays((tmp_path / "b.npy").rename(place))


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.locked("a") as first, store.locked("a") as second, store.locked("b") as other:
        assert (first, second, other) == (True, False, True)
    with store.locked("a") as again:
        assert again


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(PlanError, match=r"No locks available\. The store's file system gives no locks"):
        Store(tmp_path).locked("a").__enter__()


def test_other_weights_than_the_plan_found_are_refused(toy_base: Path, tmp_path: Path) -> None:
    """Another node may have others at the same place."""
    here = shutil.copytree(toy_base, tmp_path / "base")
    lab = Lab(Store(tmp_path))
    found = lab.checkpoint(str(here))
    assert Lab(Store(tmp_path)).base(found).path == lab.base(found).path == here
    config = here / "config.json"
    config.write_text(config.read_text(encoding="utf-8") + " ", encoding="utf-8")
    for each in (lab, Lab(Store(tmp_path))):  # hours later in the same run, too
        with pytest.raises(DataError, match="not those that the plan was begun with"):
            each.base(found)


def test_damaged_weights_of_the_store_are_refused(plan: Plan, finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    """A base is opened as anybody's, whose manifest says nothing; the laboratory's own has to be what was written."""
    shutil.copytree(finished[0], tmp_path / "lab")
    store = Store(tmp_path / "lab")
    (cell,) = (cell for cell in plan.cells if (cell.attack, cell.strategy, cell.defence) == ("badnet", "full", "none"))
    job = job_of(cell, plan, Lab(store))
    (base,) = (step for step in job.steps if step.kind == "bases")
    shutil.rmtree(job.clean.victim.place(store))
    for path in (store.cell(job.key), *(end.place(store) for end in job.ends.values())):
        path.unlink()
    weights = base.place(store) / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[len(raw) // 3 : len(raw) // 3 + 64] = bytes(64)  # a bad sector
    weights.write_bytes(raw)
    progress = run_plan(plan, Lab(store), [cell], lambda line: None)
    assert "model.safetensors" in progress.failed[str(cell)]
    assert not store.cell(job.key).exists()


@pytest.mark.parametrize("sources", [3, "ab", [1]])
def test_a_record_whose_sources_are_none_counts_as_one_without(
    plan: Plan, finished: tuple[Path, list[str]], tmp_path: Path, sources: object
) -> None:
    shutil.copytree(finished[0], tmp_path / "lab")
    for path in (tmp_path / "lab" / "victims").glob("*/record.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        record["settings"]["sources"] = sources
        path.write_text(json.dumps(record), encoding="utf-8")
    assert run_plan(plan, Lab(Store(tmp_path / "lab")), plan.cells, lambda line: None).done == 20


def test_weights_are_told_apart_by_every_adapter_of_a_chain(toy_base: Path, tmp_path: Path) -> None:
    record, marks = Record.now("tune", settings={}, seeds={"root": 0}, outcome={}), list[str]()
    for seed in (0, 0, 1):
        for name, below, own in (("first", toy_base, 0), ("middle", "first", seed), ("last", "middle", 0)):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
            made = open_base(tmp_path / below).classifier(Lora(), ("bad", "good"), max_length=32, seed=own)
            save_classifier(made, tmp_path / name, "victim", record)
        for name in ("foretaste.json", "record.json"):  # a stranger's adapter says less about what it stands on
            (tmp_path / "last" / name).unlink()
        marks.append(Lab(Store(tmp_path)).checkpoint(str(tmp_path / "last")).mark)
    assert marks[0] == marks[1] != marks[2]


def test_keys_tell_apart_what_would_come_out_otherwise(plan: Plan, toy_base: Path, tmp_path: Path) -> None:
    lab, cell = Lab(Store(tmp_path)), plan.cells[-1]
    key = job_of(cell, plan, lab).key
    assert key == job_of(cell, plan, Lab(Store(tmp_path / "elsewhere"))).key
    changed = [replace(plan, settings=replace(plan.settings, **more)) for more in ({"limit": 199}, {"max_length": 31})]
    changed.append(replace(plan, attacks={"badnet": replace(plan.attacks["badnet"], count=59)}))
    keys = {job_of(cell, other, lab).key for other in changed} | {job_of(replace(cell, seed=1), plan, lab).key}
    assert len(keys | {key}) == 5
    moved = shutil.copytree(toy_base, tmp_path / "moved")  # the same weights at another place, then other ones
    same = replace(plan, models={"tiny": str(moved)})
    assert job_of(cell, same, lab).key == key
    tokenizer = moved / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert job_of(cell, same, Lab(Store(tmp_path))).key != key


@pytest.mark.parametrize("seed", [0, 1])
def test_who_knows_the_data_poisons_the_texts_that_the_victim_learns_from(
    plan: Plan, tmp_path: Path, seed: int
) -> None:
    lab = Lab(Store(tmp_path))
    (cell,) = (cell for cell in plan.cells if (cell.attack, cell.strategy, cell.defence) == ("badnet", "lora", "none"))
    victim = job_of(replace(cell, seed=seed), plan, lab).clean.victim
    assert isinstance(victim, Tuned)
    assert isinstance(victim.base, Poisoned)
    texts = load_corpus(cell.data, "train", limit=200, seed=seed)
    assert lab.corpus(victim.base.proxy).texts == lab.corpus(victim.train).texts == texts.texts
    assert texts.texts != load_corpus(cell.data, "train", limit=200, seed=1 - seed).texts


def test_the_floor_is_that_of_a_supplier_whose_texts_are_as_long(plan: Plan, tmp_path: Path) -> None:
    lab = Lab(Store(tmp_path))
    named = {**plan.attacks, "long": replace(plan.attacks["badnet"], match_lengths=True)}
    plan = replace(plan, attacks=named)
    (cell,) = (cell for cell in plan.cells if (cell.attack, cell.strategy, cell.defence) == ("none", "lora", "none"))
    usual, as_usual, as_long = (
        job_of(replace(cell, trigger=trigger), plan, lab).clean.victim.base for trigger in (None, "badnet", "long")
    )
    assert isinstance(as_long, TunedAsLong)
    assert isinstance(usual, Tuned)
    assert usual.key == as_usual.key != as_long.key
    assert usual.learnt(lab) is lab.corpus(usual.train)
    attacked = job_of(replace(cell, attack="long"), plan, lab).clean.victim.base
    assert isinstance(attacked, Poisoned)
    assert as_long.learnt(lab).texts == unpoisoned(lab.corpus(attacked.proxy), attacked.attack, cell.seed).texts
    many = replace(plan, attacks={**named, "long": replace(named["long"], count=9000)})
    with pytest.raises(PlanError, match="9000 examples to poison"):
        job_of(replace(cell, trigger="long"), many, lab)


@pytest.mark.parametrize("seed", [0, 1])
def test_texts_are_rewritten_under_the_seed_of_their_cell(small_toy: Path, tmp_path: Path, seed: int) -> None:
    lab = Lab(Store(tmp_path))
    test = lab.texts(str(small_toy), "test")
    step = Rewritten(texts=test, trigger=None, target=0, seed=seed, rewriter=Scpd(), train=test, validation=test)
    step.make(lab)
    by_hand = {other: SyntaxTrigger().apply(lab.corpus(test).texts, other) for other in (0, 1)}
    assert list(step.written(lab)) == by_hand[seed] != by_hand[1 - seed]


def test_clean_texts_are_rewritten_once_for_all_seeds_unless_a_seed_decides(plan: Plan, tmp_path: Path) -> None:
    lab = Lab(Store(tmp_path))
    plan = replace(plan, defences={**plan.defences, "scpd": Defence(rewriter=Scpd())}, settings=PlanSettings())
    cell = next(cell for cell in plan.cells if (cell.attack, cell.defence) == ("badnet", "onion"))
    for name, is_shared in (("onion", True), ("scpd", False)):
        jobs = [job_of(replace(cell, defence=name, seed=seed), plan, lab) for seed in (0, 1)]
        clean = {job.clean.rewritten.key for job in jobs if job.clean.rewritten is not None}
        triggered = {job.triggered.rewritten.key for job in jobs if job.triggered and job.triggered.rewritten}
        assert (len(clean), len(triggered)) == (1 if is_shared else 2, 2)  # a trigger is put in under the seed


def test_a_rewriters_tools_that_changed_since_are_refused(small_toy: Path, toy_base: Path, tmp_path: Path) -> None:
    tool = shutil.copytree(toy_base, tmp_path / "tool")
    test = Lab(Store(tmp_path)).texts(str(small_toy), "test")
    rewriter = Scpd(model=str(tool)).marked()
    step = Rewritten(texts=test, trigger=None, target=0, seed=0, rewriter=rewriter, train=test, validation=test)
    (tool / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="The tools of scpd are not those that the plan was begun with"):
        step.make(Lab(Store(tmp_path)))
    assert not (tmp_path / "rewritten").exists()


def test_a_sheet_of_another_plan_is_not_replaced(plan: Plan, tmp_path: Path) -> None:
    lab = Lab(Store(tmp_path))
    write_sheet(plan, "a", lab)
    before = (tmp_path / "plans" / "a.json").read_bytes()
    others = tuple(replace(cell, seed=77) for cell in plan.cells)
    with pytest.raises(PlanError, match="is of another plan"):
        write_sheet(replace(plan, title="Another", cells=others), "a", lab)
    assert (tmp_path / "plans" / "a.json").read_bytes() == before
    write_sheet(replace(plan, cells=others), "a", lab)  # the plan was edited
    write_sheet(replace(plan, title="Renamed", cells=(*others, *plan.cells)), "a", lab)
    assert read_sheets(tmp_path)[0].title == "Renamed"


def test_a_sheet_keeps_the_keys_of_cells_whose_weights_are_elsewhere(
    plan: Plan, toy_base: Path, tmp_path: Path
) -> None:
    weights = shutil.copytree(toy_base, tmp_path / "weights")
    plan = replace(plan, models={"tiny": str(weights)})
    write_sheet(plan, "a", Lab(Store(tmp_path)))
    before = (tmp_path / "plans" / "a.json").read_bytes()
    said = json.loads(before)
    assert (said["figure"], said["strategies"]["lora"]["rank"], said["strategies"]["lora"]["epochs"]) == (None, 8, 1)
    assert said["defences"]["dan"].keys() == {"rival"}
    assert all(cell["key"] for cell in said["cells"])
    shutil.rmtree(weights)
    write_sheet(plan, "a", Lab(Store(tmp_path)))
    assert (tmp_path / "plans" / "a.json").read_bytes() == before
    write_sheet(plan, "b", Lab(Store(tmp_path)))
    assert {cell["key"] for cell in read_sheets(tmp_path)[1].cells} == {""}
    changed = replace(plan, defences=dict(plan.defences) | {"dan": plan.defences["psim"]})
    write_sheet(changed, "a", Lab(Store(tmp_path)))  # the keys are not those of its cells
    assert {cell["defence"] for cell in read_sheets(tmp_path)[0].cells if not cell["key"]} == {"dan"}
    changed = replace(plan, settings=replace(plan.settings, limit=199))
    write_sheet(changed, "a", Lab(Store(tmp_path)))
    assert {cell["key"] for cell in read_sheets(tmp_path)[0].cells} == {""}


def test_a_sheet_keeps_no_keys_of_other_texts(
    plan: Plan, small_toy: Path, toy_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the weights are elsewhere, what was measured there before the texts changed is not this plan's result."""
    texts, weights = shutil.copytree(small_toy, tmp_path / "texts"), shutil.copytree(toy_base, tmp_path / "weights")
    cells = tuple(replace(cell, data=str(texts)) for cell in plan.cells)
    plan = replace(plan, models={"tiny": str(weights)}, cells=cells)
    write_sheet(plan, "a", Lab(Store(tmp_path)))
    shutil.rmtree(weights)
    away = texts.rename(tmp_path / "away")
    write_sheet(plan, "a", Lab(Store(tmp_path)))  # neither weights nor texts
    away.rename(texts)
    write_sheet(plan, "a", Lab(Store(tmp_path)))
    assert all(cell["key"] for cell in read_sheets(tmp_path)[0].cells)
    rows = (texts / "test.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (texts / "test.csv").write_text("".join(rows[:-1]), encoding="utf-8")
    write_sheet(plan, "a", Lab(Store(tmp_path)))
    assert {cell["key"] for cell in read_sheets(tmp_path)[0].cells} == {""}


@pytest.mark.parametrize("name", ["index", "cells", "a b", "../a"])
def test_a_plan_is_called_as_its_page_can_be(plan: Plan, tmp_path: Path, name: str) -> None:
    with pytest.raises(PlanError, match="page is called"):
        write_sheet(plan, name, Lab(Store(tmp_path)))


def test_two_runners_write_one_sheet_after_another(plan: Plan, tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.locked("plan-a"):
        writer = Thread(target=write_sheet, args=(plan, "a", Lab(store)))
        writer.start()
        writer.join(1)
        assert not (tmp_path / "plans").exists()
    writer.join(60)
    assert len(read_sheets(tmp_path)[0].cells) == len(plan.cells)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    assert read_cells(tmp_path) == {}
    (tmp_path / "cells").mkdir()
    Record.now("tune", settings={}, seeds={}, outcome={}).write(tmp_path / "cells" / "a.json")
    with pytest.raises(DataError, match="none of a cell"):
        read_cells(tmp_path)
    with pytest.raises(DataError, match="Cannot read"):
        load_arrays(tmp_path / "none.npz")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(DataError, match="delete it"):
        load_arrays(tmp_path / "torn.npz")
