"""The columns of the paper's tables: each family of models passes the same path, from the plan to the record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.experiment.toy import NAMES

from foretaste.experiment.lab import Lab
from foretaste.experiment.plan import read_plan
from foretaste.experiment.run import run_plan
from foretaste.experiment.store import Store
from foretaste.report.cells import cell_of, read_cells

pytestmark = pytest.mark.usefixtures("one_thread")

PLAN = (
    """
title = "Three families"

[settings]
max_length = 32
limit = 200
poisoning_epochs = 1
poisoning_rate = 1e-3

[[grid]]
model = ["roberta", "llama", "mpt"]
data = "{data}"
knowledge = "full_data"
attack = "badnet"
strategy = "lora"
defence = ["none", "psim"]
psim_strategy = "lora"
"""
    + NAMES
)


def test_a_plan_is_the_same_for_every_family(toy_bases: Mapping[str, Path], small_toy: Path, tmp_path: Path) -> None:
    models = "".join(f'[model.{name}]\nlocation = "{toy_bases[name]}"\n' for name in ("roberta", "llama", "mpt"))
    text = PLAN.format(data=small_toy, tiny=toy_bases["bert"]) + models
    (tmp_path / "plan.toml").write_text(text, encoding="utf-8")
    plan, store = read_plan(tmp_path / "plan.toml"), tmp_path / "lab"
    progress = run_plan(plan, Lab(Store(store)), plan.cells, lambda line: None)
    assert (progress.done, progress.failed, progress.missing) == (6, {}, {})
    records = {(cell_of(record).model, cell_of(record).defence): record for record in read_cells(store).values()}
    assert len(records) == 6
    for (_, defence), record in records.items():
        assert (record.outcome["guarded"] is not None) == (defence == "psim")
