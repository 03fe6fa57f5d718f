"""A second opinion in a plan: one trusted model for all victims, refused in time where it cannot be asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.experiment.toy import NAMES

from foretaste.errors import PlanError
from foretaste.experiment.grid import job_of
from foretaste.experiment.lab import Lab
from foretaste.experiment.plan import Plan, read_plan
from foretaste.experiment.store import Store

pytestmark = pytest.mark.usefixtures("one_thread")

PLAN = (
    """
title = "Opinions"

[settings]
max_length = 32
limit = 600
poisoning_epochs = 1

[[grid]]
model = "tiny"
data = "{data}"
knowledge = "full_data"
attack = "badnet"
strategy = "{strategy}"
defence = "opinion"
"""
    + NAMES
    + """
[defence.opinion]
trusted = "tiny"
frr = 0.05
fewest_steps = 1
precision = "float32"
"""
)


def _plan(home: Path, base: Path, data: Path, strategy: str = "lora", *changes: tuple[str, str]) -> Plan:
    text = PLAN
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (home / "plan.toml").write_text(text.format(tiny=base, data=data, strategy=strategy), encoding="utf-8")
    return read_plan(home / "plan.toml")


def test_the_same_texts_under_another_name_are_others_since_parts_are_drawn_by_it(
    toy_base: Path, small_toy: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(small_toy, tmp_path / "moved" / small_toy.name))
    other = Path(shutil.copytree(small_toy, tmp_path / "other"))
    lab = Lab(Store(tmp_path))
    plans = [_plan(tmp_path, toy_base, place) for place in (small_toy, moved, other)]
    here, there, named = (job_of(plan.cells[0], plan, lab).clean.victim.key for plan in plans)
    assert here == there != named
    assert lab.texts(str(other), "train").digest == lab.texts(str(small_toy), "train").digest


@pytest.mark.parametrize(
    ("change", "message"),
    [(("frr = 0.05\nfewest", "frr = 0.001\nfewest"), "calibration"), (("limit = 600", "limit = 300"), "needs 500")],
)
def test_what_nobody_can_be_asked_is_said_before_anything_runs(
    change: tuple[str, str], message: str, toy_base: Path, small_toy: Path, tmp_path: Path
) -> None:
    plan = _plan(tmp_path, toy_base, small_toy, "lora", change)
    with pytest.raises(PlanError, match=message):
        job_of(plan.cells[0], plan, Lab(Store(tmp_path / "lab")))
