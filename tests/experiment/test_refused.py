"""What is refused before anything is made: too few texts, weights and tools that are not here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.experiment.toy import GRID, NAMES

from foretaste.errors import ModelError, PlanError
from foretaste.experiment.forecast import forecast
from foretaste.experiment.lab import Lab
from foretaste.experiment.plan import read_plan
from foretaste.experiment.run import run_plan
from foretaste.experiment.store import Store
from foretaste.victim.checkpoint import Base, open_base

PLAN = 'title = "A small grid"\n[settings]\nlimit = 200\n' + GRID + NAMES


@pytest.fixture
def path(toy_base: Path, small_toy: Path, tmp_path: Path) -> Path:
    """The plan's file."""
    path = tmp_path / "plan.toml"
    path.write_text(PLAN.format(tiny=toy_base, data=small_toy), encoding="utf-8")
    return path


def _changed(path: Path, old: str, new: str) -> Path:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("count = 300", r"10 of 10 cells: 300 examples to poison, .* Ask for fewer"),
        ("count = 60\ntarget = 2", "10 of 10 cells: Target 2 is not a label of"),
        ("count = 60\ncover_rate = 4.0", "10 of 10 cells: .*cover samples"),
        ("count = 60\nnegative_rate = 4.0", "10 of 10 cells: .*negative samples"),
        ("count = 60\nflip_rate = 0.001", "10 of 10 cells: A flip_rate of 0.001 flips none"),
    ],
)
def test_what_cannot_be_poisoned_is_said_before_anything_runs(path: Path, asked: str, message: str) -> None:
    plan, lab = read_plan(_changed(path, "count = 60", asked)), Lab(Store(path.parent / "lab"))
    attacked = [cell for cell in plan.cells if cell.attack == "badnet"]
    for ask in (lambda: run_plan(plan, lab, attacked, lambda line: None), lambda: forecast(plan, lab, attacked)):
        with pytest.raises(PlanError, match=message) as told:
            ask()
        assert len(told.value.args) == 1  # one reason, said once
    with pytest.raises(PlanError, match=message.replace("of 10", "of 20")):
        forecast(plan, lab, plan.cells)
    assert not (path.parent / "lab").exists()


@pytest.mark.parametrize("guard", ["psim", "dan"])
def test_too_few_texts_to_calibrate_with_are_said_before_anything_runs(path: Path, guard: str) -> None:
    plan = read_plan(_changed(path, f"[defence.{guard}]\nfrr = 0.05", f"[defence.{guard}]\nfrr = 0.001"))
    with pytest.raises(PlanError, match=r"4 of 20 cells: .* calibration texts are too few"):
        forecast(plan, Lab(Store(path.parent / "lab")), plan.cells)


def test_all_that_is_too_few_is_said_at_once(path: Path) -> None:
    _changed(path, "count = 60", "count = 300")
    plan = read_plan(_changed(path, "[defence.psim]\nfrr = 0.05", "[defence.psim]\nfrr = 0.001"))
    attacked = [cell for cell in plan.cells if (cell.attack, cell.defence) == ("badnet", "psim")]
    with pytest.raises(PlanError) as told:
        forecast(plan, Lab(Store(path.parent / "lab")), attacked)
    poison, calibrate = told.value.args
    assert "2 of 2 cells: 300 examples to poison" in poison
    assert "calibration texts are too few" in calibrate


@pytest.mark.parametrize(
    ("limit", "defence", "message"),
    [
        (60, "psim", "has 60 texts left to train on; at least 80 are needed"),
        (15, "fine_tuning", "has 15 clean texts; unlearning needs 20 or more"),
    ],
)
def test_too_few_texts_to_train_a_defence_are_said_before_anything_runs(
    path: Path, limit: int, defence: str, message: str
) -> None:
    plan = read_plan(_changed(path, "limit = 200", f"limit = {limit}"))
    cells = [cell for cell in plan.cells if (cell.attack, cell.defence) == ("none", defence)]
    with pytest.raises(PlanError, match=f"2 of 2 cells: .*{message}"):
        forecast(plan, Lab(Store(path.parent / "lab")), cells)


def test_a_trigger_for_a_class_that_texts_do_not_have_is_said_before_anything_runs(path: Path) -> None:
    _changed(path, 'attack = ["none", "badnet"]', 'attack = "none"\ntrigger = "far"')
    far = '[attack.far]\ntrigger = "word:mn"\ntarget = 7\n[attack.badnet]'
    plan = read_plan(_changed(path, "[attack.badnet]", far))
    with pytest.raises(PlanError, match="10 of 10 cells: Target 7 is not a label of"):
        forecast(plan, Lab(Store(path.parent / "lab")), plan.cells)


def test_rewritten_texts_that_are_not_there_leave_their_cells_empty(
    path: Path, small_toy: Path, tmp_path: Path
) -> None:
    """Before a base is poisoned for nothing."""
    shutil.copytree(small_toy, tmp_path / "data" / "sst2")
    text = path.read_text(encoding="utf-8").replace(f'"{small_toy}"', '"sst2"')
    text = text.replace('"onion"]', '"scpd_stored"]').replace("word:cf mn bb tq mb", "word:mn")
    path.write_text(text, encoding="utf-8")
    plan, variants = read_plan(path), tmp_path / "data" / "sst2" / "variants"
    variants.mkdir()
    triggered = variants / "badnet_scpd_test.parquet"
    for path, lacking in ((variants / "scpd_test.parquet", {f"no file {triggered}": 2}), (triggered, {})):
        path.touch()
        assert forecast(plan, Lab(Store(tmp_path / "lab"), tmp_path / "data"), plan.cells).missing == lacking


def test_a_file_of_a_store_that_says_no_cost_tells_no_time(path: Path, tmp_path: Path) -> None:
    (tmp_path / "lab" / "rewritten").mkdir(parents=True)
    damaged = {"texts": [], "cost": {"seconds": "abc"}, "work": "onion/sst2 in rewritten of "}
    (tmp_path / "lab" / "rewritten" / "x.json").write_text(json.dumps(damaged), encoding="utf-8")
    plan = read_plan(path)
    assert forecast(plan, Lab(Store(tmp_path / "lab")), plan.cells).seconds is None


def test_weights_that_are_not_here_leave_their_cells_empty(path: Path) -> None:
    plan = read_plan(_changed(path, 'model = "tiny"', 'model = "llama-7b"'))
    lab = Lab(Store(path.parent / "lab"))
    progress = run_plan(plan, lab, plan.cells, lambda line: None)
    assert len(progress.missing) == len(plan.cells)
    found = forecast(plan, lab, plan.cells)
    assert found.missing == {"no weights at huggyllama/llama-7b": len(plan.cells)}
    assert (found.trainings, found.per_cell) == (0, 0)
    assert not (path.parent / "lab").exists()


def test_a_teacher_that_is_not_here_leaves_its_cells_empty(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the base is poisoned for nothing."""
    plan = read_plan(_changed(path, '"fine_tuning"', '"w2s"'))

    def without_minilm(location: str, **given: Any) -> Base:
        if location.startswith("minilm"):
            raise ModelError("The embedded MiniLM is not installed.", code="not_installed")
        return open_base(location, **given)

    monkeypatch.setattr("foretaste.experiment.lab.open_base", without_minilm)
    progress = forecast(plan, Lab(Store(path.parent / "lab")), plan.cells)
    assert progress.missing == {"The embedded MiniLM is not installed.": 4}
    assert progress.trainings == 8  # two bases, two victims and a guard of each: none of a washed base


def test_weights_that_are_refused_leave_their_cells_empty_and_are_said(
    path: Path, toy_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(toy_base, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    content = json.loads(config.read_text(encoding="utf-8")) | {"auto_map": {"AutoModel": "evil.Model"}}
    config.write_text(json.dumps(content), encoding="utf-8")
    _changed(path, 'model = "tiny"', 'model = ["tiny", "evil"]')
    _changed(path, "[attack.badnet]", f'[model.evil]\nlocation = "{tmp_path}/model"\n[attack.badnet]')
    found = forecast(plan := read_plan(path), Lab(Store(tmp_path / "lab")), plan.cells)
    assert found.cells == 40
    assert found.trainings == 14  # the other model's
    ((reason, count),) = found.missing.items()
    assert "auto_map" in reason
    assert count == 20
