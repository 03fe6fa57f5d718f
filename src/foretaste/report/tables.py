"""A plan's cells as tables, ours beside what the paper prints: one line per defence, one column per strategy."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretaste.errors import DataError
from foretaste.evaluate.spread import Spread
from foretaste.experiment.cell import AXES
from foretaste.record import Record
from foretaste.report.printed import Printed, printed_value

__all__ = ["Entry", "Group", "Sheet", "groups_of", "read_sheets"]

_ROWS = ("attack", "trigger", "defence", "psim_strategy", "reset_rate", "threshold")


@dataclass(frozen=True)
class Sheet:
    """What a plan asked for: its cells by their axes, each with the key of its record, which may not be there yet."""

    name: str
    title: str
    table: int | None
    beside: Mapping[str, str]
    cells: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Entry:
    """A cell of a table over `seeds` of `wanted` seeds, and what is printed; None: not run, or nothing printed.

    `keys` are the seeds that were run, with the keys of their records.
    """

    clean_accuracy: Spread | None
    attack_success_rate: Spread | None
    seeds: int
    wanted: int
    printed: Printed | None
    keys: Sequence[tuple[int, str]] = ()


@dataclass(frozen=True)
class Group:
    """A table of its own: one model, data set and kind of knowledge; `rows` are labels with an entry per strategy."""

    heading: str
    model: str
    beside: str | None
    strategies: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[Entry | None]]]


def read_sheets(store: Path) -> list[Sheet]:
    """Return what every plan that was run on a store asked for, by name.

    Raises:
        DataError: none was, or a file that `foretaste run` did not write.
    """
    found = []
    for path in sorted((Path(store) / "plans").glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            cells = [{axis: cell.get(axis) for axis in AXES} | {"key": cell["key"]} for cell in content["cells"]]
            found.append(Sheet(path.stem, content["title"], content["table"], content["beside"], cells))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} was not written by `foretaste run`: {error!r}.") from None
    if not found:
        raise DataError(f"{store} holds no plan; `foretaste run PLAN --store {store}` runs one.")
    return found


def groups_of(sheet: Sheet, records: Mapping[str, Record]) -> list[Group]:
    """Lay a plan's cells out; `records` are those there are, by key."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for cell in sheet.cells:
        groups.setdefault((cell["model"], cell["data"], cell["knowledge"]), []).append(cell)
    return [_group(sheet, *names, cells, records) for names, cells in groups.items()]


def _group(
    sheet: Sheet, model: str, data: str, knowledge: str, cells: Sequence[Mapping[str, Any]],
    records: Mapping[str, Record],
) -> Group:  # fmt: skip
    strategies = list(dict.fromkeys(cell["strategy"] for cell in cells))
    rows: dict[tuple[Any, ...], dict[str, list[Mapping[str, Any]]]] = {}
    for cell in cells:
        rows.setdefault(tuple(cell[name] for name in _ROWS), {}).setdefault(cell["strategy"], []).append(cell)
    beside = sheet.beside.get(model)
    laid = [
        (
            key[0] if key[1] is None else f"{key[0]}, tested with {key[1]}",
            _label(key),
            [_entry(sheet, beside, row[name], records) if name in row else None for name in strategies],
        )
        for key, row in rows.items()
    ]
    heading = f"{data}, {knowledge.replace('_', ' ')} knowledge, {model}"
    return Group(heading, model, beside, strategies, laid)


def _entry(
    sheet: Sheet, beside: str | None, cells: Sequence[Mapping[str, Any]], records: Mapping[str, Record]
) -> Entry:
    found = list(_outcomes(cells, records))
    printed = None if sheet.table is None or beside is None else printed_value(sheet.table, beside, cells[0])
    return Entry(
        Spread.of([each.get("clean_accuracy") for each in found]),
        Spread.of([each.get("attack_success_rate") for each in found]),
        len(found),
        len(cells),
        printed,
        [(cell["seed"], cell["key"]) for cell in cells if cell["key"] in records],
    )


def _outcomes(cells: Sequence[Mapping[str, Any]], records: Mapping[str, Record]) -> Iterator[Mapping[str, Any]]:
    """Yield the rates of the cells that were run, behind the guard if there is one."""
    for cell in cells:
        if cell["key"] in records:
            outcome: Any = records[cell["key"]].outcome
            yield {**outcome, **(outcome.get("guarded") or {})}


def _label(key: tuple[Any, ...]) -> str:
    _, _, defence, strategy, rate, threshold = key
    more = [] if strategy is None else [str(strategy)]
    more += [] if rate is None else [f"reset {rate:.0%}"]
    more += [] if threshold is None else [f"threshold {threshold:g}"]
    return defence if not more else f"{defence} ({', '.join(more)})"
