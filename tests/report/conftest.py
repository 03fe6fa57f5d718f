"""Stores written by hand: records and what a plan asked for, without any model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foretaste.cost import Cost
from foretaste.experiment.cell import Cell
from foretaste.record import DataUse, Record
from foretaste.report.tables import Sheet, read_sheets
from foretaste.spec import values_of

PLACE: dict[str, Any] = {"model": "minilm", "data": "sst2", "knowledge": "full_task"}
TESTED = [DataUse(name="test", digest="0" * 64, rows=100)]


def cell_at(attack: str, defence: str = "none", strategy: str = "lora", seed: int = 0, **axes: Any) -> Cell:
    """Return a cell of MiniLM on SST-2."""
    return Cell(**{**PLACE, **axes}, attack=attack, defence=defence, strategy=strategy, seed=seed)


def rates(clean: float, attack: float | None = None, guarded: tuple[float, float] | None = None) -> dict[str, Any]:
    """Return an outcome: CA and ASR of the victim alone, and behind a guard."""
    found: dict[str, Any] = {"clean_accuracy": clean}
    if attack is not None:
        found |= {"attack_success_rate": attack, "guarded": None}
    if guarded is not None:
        found["guarded"] = {"clean_accuracy": guarded[0], "attack_success_rate": guarded[1], "threshold": 0.5}
    return found


def write_store(
    store: Path,
    cells: Sequence[tuple[Cell, Mapping[str, Any] | None]],
    *,
    name: str = "plan",
    costs: Mapping[Cell, Cost] | None = None,
    parts: Mapping[Cell, Mapping[str, str]] | None = None,
    sources: Mapping[Cell, Mapping[str, str]] | None = None,
    **sheet: Any,
) -> tuple[Sheet, dict[str, Record]]:
    """Write the records of cells with an outcome and the sheet of all, and return them; keys are key0, key1, ..."""
    records = {}
    asked = []
    for number, (cell, outcome) in enumerate(cells):
        key = f"key{number}"
        asked.append({**values_of(cell), "key": key})
        if outcome is not None:
            known = {"parts": (parts or {}).get(cell, {}), "sources": (sources or {}).get(cell, {})}
            settings = {"cell": values_of(cell), **known, "label_names": ["no", "yes"]}
            records[key] = Record.now("cell", settings=settings, seeds={"root": cell.seed}, outcome=outcome,
                                      data=TESTED, cost=(costs or {}).get(cell))  # fmt: skip
            records[key].write(store / "cells" / f"{key}.json")
    (store / "plans").mkdir(exist_ok=True, parents=True)
    content = {"title": "A plan", "table": None, "beside": {}, "cells": asked, **sheet}
    (store / "plans" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    found = {each.name: each for each in read_sheets(store)}
    return found[name], records
