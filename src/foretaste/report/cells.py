"""Records of cells as a table: one line per cell, in the order of its axes, the same bytes from the same results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from foretaste.errors import DataError, ForetasteError
from foretaste.experiment.cell import AXES, Cell
from foretaste.record import Record
from foretaste.report.costs import COSTS
from foretaste.report.listing import csv_of
from foretaste.spec import build, values_of

__all__ = ["as_csv", "cell_of", "read_cells", "shown"]

_RATES = ("clean_accuracy", "attack_success_rate", "strict_attack_success_rate")
MOST = 20  # damaged records that are named
ROUNDING = 1e-9
FLOORS = ("other_classes", "same_length")
_COUNTS = ("n_clean", "n_poisoned", "n_cut")
_OF_GUARD = ("false_rejection_rate", "false_acceptance_rate", "auroc")
_Known = Annotated[float, Field(ge=0.0, le=1.0, strict=True)]
_Share = _Known | None
_Count = Annotated[int, Field(ge=0, strict=True)]
COLUMNS = ("key", *AXES, *_RATES, *_COUNTS, *(f"undefended_{rate}" for rate in _RATES), *_OF_GUARD,
           "guard_threshold", *(f"floor_{name}" for name in FLOORS))  # fmt: skip


def read_cells(store: Path) -> dict[str, Record]:
    """Return the records of all cells in a store by their keys, sorted by their axes; none where none is finished.

    Raises:
        DataError: one that is no record of a cell or has no rates.
    """
    records, problems = {}, list[str]()
    for path in sorted((Path(store) / "cells").glob("*.json")):
        try:
            records[path.stem] = _read_cell(path)
        except DataError as error:
            problems.append(str(error))
    if problems:
        more = len(problems) - MOST
        raise DataError("\n".join(problems[:MOST] + [f"... and {more} more."] * (more > 0)))
    return dict(sorted(records.items(), key=lambda item: [*map(str, values_of(cell_of(item[1])).values()), item[0]]))


def _read_cell(path: Path) -> Record:
    record = Record.read(path)
    try:
        cell = cell_of(record)
        found = _Checked.model_validate({"outcome": record.outcome, "settings": record.settings}).outcome
    except (ValidationError, ForetasteError) as error:
        raise DataError(f"{path} is no record of a cell: {_first_of(error)}") from None
    if not record.data or any(use.rows < 1 for use in record.data):
        raise DataError(f"{path} is no record of a cell: of no texts.")
    is_attacked = cell.attack != "none" or cell.trigger is not None
    if is_attacked and any(each is not None and each.attack_success_rate is None for each in (found, found.guarded)):
        raise DataError(f"{path} is no record of a cell: of triggered texts, but without an attack success rate.")
    return record


class _Interval(BaseModel):
    count: _Count | None = None
    n: _Count | None = None
    low: _Known
    high: _Known


class _Intervals(BaseModel):
    clean_accuracy: _Interval
    attack_success_rate: _Interval | None = None
    strict_attack_success_rate: _Interval | None = None


class _Rates(BaseModel):
    clean_accuracy: _Known
    attack_success_rate: _Share = None
    strict_attack_success_rate: _Share = None
    intervals: _Intervals | None = None

    @model_validator(mode="after")
    def _lie_within(self) -> Self:
        for name in _RATES if self.intervals is not None else ():
            rate, kept = getattr(self, name), getattr(self.intervals, name)
            if rate is None:
                continue
            if kept is None or not kept.low - ROUNDING <= rate <= kept.high + ROUNDING:
                raise ValueError(f"{name} does not lie in its interval")
            if kept.count is not None and abs(kept.count - rate * (kept.n or 0)) > ROUNDING * (kept.n or 1):
                raise ValueError(f"{name} is not {kept.count} of {kept.n}")
        return self


class _Guarded(_Rates):
    false_rejection_rate: _Share = None
    false_acceptance_rate: _Share = None
    auroc: _Share = None
    far_at_frr: dict[str, _Known] | None = None
    threshold: float


class _Outcome(_Rates):
    target: _Count | None = None
    n_clean: _Count | None = None
    n_poisoned: _Count | None = None
    n_cut: _Count = 0
    guarded: _Guarded | None = None
    floors: dict[str, _Share] | None = None


class _Settings(BaseModel):
    parts: dict[str, str]
    label_names: list[str]


class _Checked(BaseModel):
    """What reports read of a cell's record."""

    outcome: _Outcome
    settings: _Settings

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if (self.outcome.target or 0) >= len(self.settings.label_names):
            raise ValueError(f"target {self.outcome.target} is none of {len(self.settings.label_names)} labels")
        if self.outcome.n_cut > (self.outcome.n_poisoned or 0):
            raise ValueError(f"{self.outcome.n_cut} of {self.outcome.n_poisoned} triggered texts are cut")
        return self


def _first_of(error: Exception) -> str:
    """The first thing that is wrong."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}."


def cell_of(record: Record) -> Cell:
    """Return the cell a record is of.

    Raises:
        DataError: it is of none.
    """
    found = record.settings.get("cell")
    if record.kind != "cell" or not isinstance(found, Mapping):
        raise DataError(f"A record of kind {record.kind!r} is none of a cell.")
    return build(Cell, found)


def shown(record: Record) -> dict[str, Any]:
    """Return the rates as a user of the victim meets them: behind the guard if there is one, which adds its own."""
    outcome: dict[str, Any] = record.outcome
    guarded: Mapping[str, Any] = outcome.get("guarded") or {}
    found = {name: outcome.get(name) for name in (*_RATES, *_COUNTS)}
    if guarded:
        found |= {f"undefended_{name}": outcome.get(name) for name in _RATES}
        found |= {name: guarded.get(name) for name in (*_RATES, *_OF_GUARD)}
        found["guard_threshold"] = guarded.get("threshold")  # "threshold" is the axis
    return found


def as_csv(records: Mapping[str, Record], *, has_costs: bool = False) -> str:
    """Return one line per cell; rates as shares with all their digits, empty where there is none.

    Cells with the same axes and another key were made under other settings. With what their defences cost the bytes are
    others in every run.
    """
    columns = (*COLUMNS, *(COSTS if has_costs else ()))
    lines = []
    for key, record in records.items():
        floors: Any = record.outcome.get("floors") or {}
        row = {"key": key, **values_of(cell_of(record)), **shown(record)}
        row |= {f"floor_{name}": floors.get(name) for name in FLOORS}
        if has_costs:
            row |= {name: None if record.cost is None else getattr(record.cost, name) for name in COSTS}
        lines.append(["" if row.get(name) is None else row[name] for name in columns])
    return csv_of(columns, lines)
