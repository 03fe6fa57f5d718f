"""What a plan asked for, written beside its cells: reports show what is missing and never what other settings gave."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from foretaste.errors import ForetasteError, PlanError
from foretaste.experiment.cell import AXES, Cell, is_page_name
from foretaste.experiment.grid import job_of
from foretaste.experiment.lab import Lab
from foretaste.experiment.methods import altered_names
from foretaste.experiment.plan import Plan
from foretaste.experiment.run import WAIT, lacking
from foretaste.experiment.store import Store, digest_of
from foretaste.files import write_json
from foretaste.spec import values_of

__all__ = ["sheet_place", "write_sheet"]


def write_sheet(plan: Plan, name: str, lab: Lab) -> None:
    """Write down what a plan asks for, so that reports can show what is missing.

    Cells whose weights, data or tools are not here keep the key written where they are, if their names in the plan
    still mean the same and so do, where the data are here, their texts.

    Raises:
        PlanError: the store cannot be written, the plan's name would be that of a page of the site, or is that of
            another plan.
    """
    path = sheet_place(name, lab.store)
    used = {cell.defence for cell in plan.cells}
    content = {
        "title": plan.title,
        "table": plan.table,
        "figure": plan.figure,
        "beside": dict(plan.beside),
        "strategies": {
            each: {**values_of(tuning), **values_of(strategy), "method": strategy.name}
            for each, (strategy, tuning) in sorted(plan.strategies.items())
        },
        "defences": {each: plan.defences[each].to_json() for each in sorted(used)},
        "altered": altered_names(plan.models, plan.attacks, plan.strategies, plan.defences),
    }
    meanings = {cell: _meaning(plan, cell) for cell in plan.cells}
    keys, outlines = dict[Cell, str](), dict[Cell, str]()
    for cell in plan.cells:
        with suppress(ForetasteError):  # the run says so
            job = job_of(cell, plan, lab)
            outlines[cell] = job.outline
            if not lacking(job, lab):
                keys[cell] = job.key
    while True:
        with lab.store.locked(f"plan-{name}") as is_mine:
            if is_mine:
                there = _cells_in(path, plan.title, meanings)
                cells = []
                for cell in plan.cells:
                    found = there.get(cell, {"key": "", "outline": ""})
                    outline = outlines.get(cell, found["outline"])
                    key = keys.get(cell, found["key"] if found["outline"] in ("", outline) else "")  # older ones: none
                    cells.append({**asdict(cell), "key": key, "meaning": meanings[cell], "outline": outline})
                return write_json(path, {**content, "cells": cells})
        time.sleep(WAIT)


def sheet_place(name: str, store: Store) -> Path:
    """Return where the sheet of a plan of this name lies or will lie.

    Raises:
        PlanError: the plan's name would be that of a page of the site, or the store is no directory.
    """
    if not is_page_name(name):
        raise PlanError(f"A plan's page is called as the plan is; {name!r} cannot be: take letters, digits, - and _.")
    if store.root.exists() and not store.root.is_dir():
        raise PlanError(f"{store.root} is a file; give the name of a directory.")
    return store.root / "plans" / f"{name}.json"


def _meaning(plan: Plan, cell: Cell) -> str:
    """A digest of what a cell's names stand for in the plan, whatever its other names do."""
    defence = plan.defences[cell.defence]
    models = [plan.models.get(name) for name in (cell.model, getattr(defence.rival, "trusted", ""))]
    attacks = [plan.attacks.get(name or "") for name in (cell.attack, cell.trigger)]
    asked = [plan.strategies.get(cell.strategy), plan.instruction_of(cell)]
    return digest_of([plan.settings, models, attacks, asked, defence])


def _cells_in(path: Path, title: str, meanings: Mapping[Cell, str]) -> dict[Cell, dict[str, str]]:
    """What another runner of the same plan wrote of cells that mean the same; nothing in a damaged sheet.

    Raises:
        PlanError: the sheet is of a plan with another title and none of these cells.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cells = [(Cell(**{axis: cell[axis] for axis in AXES}), cell) for cell in content["cells"]]
        same = {
            cell: {"key": str(found["key"]), "outline": str(found.get("outline", ""))}
            for cell, found in cells
            if found["meaning"] == meanings.get(cell)
        }
        there = content["title"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    if there != title and not any(cell in meanings for cell, _ in cells):
        raise PlanError(
            f"{path} is of another plan, {there!r}, whose page would go: rename this plan's file, take another store, "
            "or delete that one."
        )
    return same
