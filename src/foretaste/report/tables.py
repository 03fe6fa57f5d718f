"""A plan's cells as tables, ours beside what the paper prints: one line per defence, one column per strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from foretaste.errors import DataError, PlanError
from foretaste.evaluate.interval import Interval, wilson
from foretaste.evaluate.spread import Spread
from foretaste.experiment.cell import AXES, Cell, is_page_name
from foretaste.record import Record, parse_json
from foretaste.report.printed import Printed, printed_value
from foretaste.report.share import Share
from foretaste.spec import build, values_of

__all__ = [
    "RATES",
    "Entry",
    "Group",
    "Row",
    "Sheet",
    "Victims",
    "groups_of",
    "read_sheets",
    "share_of",
]

_ROWS = ("attack", "trigger", "defence", "psim_strategy", "reset_rate", "threshold")
RATES = ("clean_accuracy", "attack_success_rate")


@dataclass(frozen=True)
class Sheet:
    """What a plan asked for: its cells by their axes, each with the key of its record, which may not be there yet.

    `strategies` and `defences` are what the plan's names stand for: fields, and those of each part by its kind.
    """

    name: str
    title: str
    table: int | None
    beside: Mapping[str, str]
    cells: Sequence[Mapping[str, Any]]
    figure: str | None = None
    strategies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    defences: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    altered: Sequence[str] = ()
    """Names of ours that the plan gave another meaning."""

    def alters(self, cell: Mapping[str, Any]) -> bool:
        """Say whether the plan means something else than we do by any name of a cell."""
        return not {*cell["defence"].split("+"), *map(str, cell.values())}.isdisjoint(self.altered)


_SHEET = TypeAdapter(Sheet)


@dataclass(frozen=True)
class Entry:
    """A cell of a table over `seeds` of `wanted` seeds.

    `keys` are the seeds that were run, with the keys of their records, `rates` CA and ASR of each seed, and `alone`
    those of its victim without the defence, of the seeds where a record tells them (see `Victims`).
    """

    clean_accuracy: Share
    attack_success_rate: Share
    seeds: int
    wanted: int
    keys: Sequence[tuple[int, str]] = ()
    rates: Mapping[int, Sequence[float | None]] = field(default_factory=dict)
    alone: Mapping[int, Sequence[float | None]] = field(default_factory=dict)

    @property
    def shares(self) -> tuple[Share, Share]:
        """CA and ASR."""
        return self.clean_accuracy, self.attack_success_rate


@dataclass(frozen=True)
class Row:
    """A line of a table: an entry per strategy, None where the plan has no such cell.

    `attack` names the texts, too, where they have another trigger than the attack's; `is_attacked`: there is an ASR.
    """

    attack: str
    label: str
    defence: str
    is_attacked: bool
    entries: Sequence[Entry | None]

    def run(self, records: Mapping[str, Record]) -> list[Record]:
        """Return the records of those of its cells that were run."""
        return [records[key] for entry in self.entries if entry is not None for _, key in entry.keys]


@dataclass(frozen=True)
class Group:
    """A table of its own: one model, data set and kind of knowledge."""

    heading: str
    model: str
    beside: str | None
    strategies: Sequence[str]
    rows: Sequence[Row]


def read_sheets(store: Path) -> list[Sheet]:
    """Return what every plan that was run on a store asked for, by name.

    Raises:
        DataError: none was, or a file that `foretaste run` did not write.
    """
    found = []
    for path in sorted((Path(store) / "plans").glob("*.json")):
        try:
            if not is_page_name(path.stem):
                raise ValueError("a plan's page cannot be called so")
            content = parse_json(path.read_text(encoding="utf-8"))
            cells = [
                values_of(build(Cell, {axis: cell.get(axis) for axis in AXES})) | {"key": str(cell["key"])}
                for cell in content["cells"]
            ]
            meanings = {name: content.get(name, {}) for name in ("strategies", "defences")}
            more = {
                "figure": content.get("figure"),
                "altered": content.get("altered", ()),
                **meanings,
            }  # older sheets have none of them
            known = {name: content[name] for name in ("title", "table", "beside")}
            found.append(_SHEET.validate_python({"name": path.stem, "cells": cells, **known, **more}))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, PlanError) as error:
            raise DataError(f"{path} was not written by `foretaste run`: {error!r}.") from None
    if not found:
        raise DataError(f"{store} holds no plan; `foretaste run PLAN --store {store}` runs one.")
    return found


class Victims:
    """What victims of a plan's cells do without the defence, from records that know it.

    A guard's record knows its victim. Behind a rewriter it is the same one, before a washed base one that was tuned on
    the base as it came: a cell without a defence has it, or a guard's. Equal keys are not equal bits on other hardware,
    so it has to be of the same weights as the cell, as far as records say of which they are (`sources`).
    """

    def __init__(self, sheet: Sheet, records: Mapping[str, Record]) -> None:
        self._records = records
        self._known: dict[tuple[Any, ...], list[Record]] = {}
        for cell in sheet.cells:
            if cell["key"] in records and _knows_victim(records[cell["key"]]):
                self._known.setdefault(_situation(cell), []).append(records[cell["key"]])

    def alone(self, cell: Mapping[str, Any]) -> Record | None:
        """Return the record whose outcome, without its guard, is that of the cell's undefended victim, if there is one.

        >>> Victims(Sheet("a", "A plan", None, {}, []), {}).alone({"key": "not run"})
        """
        record = self._records.get(cell["key"])
        if record is None or _knows_victim(record):
            return record
        return next((other for other in self._known.get(_situation(cell), ()) if _is_same_victim(record, other)), None)


def _situation(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(cell.get(name) for name in ("model", "data", "knowledge", "attack", "trigger", "strategy", "seed"))


def _knows_victim(record: Record) -> bool:
    """Say whether its outcome is of the victim as it is, of texts as they are: without a defence or behind a guard."""
    return {"washed", "clean_rewritten"}.isdisjoint(_part(record, "parts"))


def _is_same_victim(record: Record, other: Record) -> bool:
    """Say whether two cells stand on the same base, and whether all weights that both know came out the same.

    Records that both lack `sources`, as older ones do, are told apart by keys alone.
    """
    sources, other_sources = _part(record, "sources"), _part(other, "sources")
    if _part(record, "parts").get("bases") != _part(other, "parts").get("bases"):
        return False
    common = sources.keys() & other_sources.keys()
    return bool(common or not (sources or other_sources)) and all(sources[key] == other_sources[key] for key in common)


def _part(record: Record, name: str) -> Mapping[Any, Any]:
    found: Any = record.settings.get(name)
    return found if isinstance(found, Mapping) else {}


def groups_of(sheet: Sheet, records: Mapping[str, Record]) -> list[Group]:
    """Lay a plan's cells out; `records` are those there are, by key."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for cell in sheet.cells:
        groups.setdefault((cell["model"], cell["data"], cell["knowledge"]), []).append(cell)
    victims = Victims(sheet, records)
    return [_group(sheet, *names, cells, records, victims) for names, cells in groups.items()]


def _group(
    sheet: Sheet, model: str, data: str, knowledge: str, cells: Sequence[Mapping[str, Any]],
    records: Mapping[str, Record], victims: Victims,
) -> Group:  # fmt: skip
    strategies = list(dict.fromkeys(cell["strategy"] for cell in cells))
    rows: dict[tuple[Any, ...], dict[str, list[Mapping[str, Any]]]] = {}
    for cell in cells:
        rows.setdefault(tuple(cell.get(name) for name in _ROWS), {}).setdefault(cell["strategy"], []).append(cell)
    beside = sheet.beside.get(model)
    attacks = list(dict.fromkeys(key[:2] for key in rows))
    laid = [  # all defences against an attack together, whichever grids of the plan they are from
        _row(
            key,
            [
                _entry(sheet, beside, rows[key][name], records, victims) if name in rows[key] else None
                for name in strategies
            ],
        )
        for key in sorted(rows, key=lambda key: attacks.index(key[:2]))
    ]
    heading = f"{data}, {knowledge.replace('_', ' ')} knowledge, {model}"
    return Group(heading, model, beside, strategies, laid)


def _row(key: tuple[Any, ...], entries: Sequence[Entry | None]) -> Row:
    attack, trigger, defence, strategy, rate, threshold = key
    more = [] if strategy is None else [str(strategy)]
    more += [] if rate is None else [f"reset {rate:.0%}"]
    more += [] if threshold is None else [f"threshold {threshold:g}"]
    label = f"{defence} ({', '.join(more)})" if more else defence
    named = attack if trigger is None else f"{attack}, tested with {trigger}"
    return Row(named, label, defence, attack != "none" or trigger is not None, entries)


def _entry(
    sheet: Sheet, beside: str | None, cells: Sequence[Mapping[str, Any]], records: Mapping[str, Record],
    victims: Victims,
) -> Entry:  # fmt: skip
    found = [records[cell["key"]] for cell in cells if cell["key"] in records]
    printed = _printed(sheet, beside, cells[0])
    clean, attack = (
        share_of(found, rate, None if printed is None else getattr(printed, rate),
                 is_doubtful=printed is not None and rate in printed.doubtful)
        for rate in RATES
    )  # fmt: skip
    keys = [(cell["seed"], cell["key"]) for cell in cells if cell["key"] in records]
    rates = {seed: [records[key].rates.get(rate) for rate in RATES] for seed, key in keys}
    bare = {cell["seed"]: victims.alone(cell) for cell in cells}
    alone: Any = {seed: [each.outcome.get(rate) for rate in RATES] for seed, each in bare.items() if each is not None}
    return Entry(clean, attack, len(found), len(cells), keys, rates, alone)


def _printed(sheet: Sheet, beside: str | None, cell: Mapping[str, Any]) -> Printed | None:
    """What the paper prints for a cell, unless the plan means something else by one of its names."""
    if sheet.table is None or beside is None or sheet.alters(cell):
        return None
    is_psim = sheet.defences.get(cell["defence"], {}).keys() == {"psim"}
    return printed_value(sheet.table, beside, {**cell, "defence": "psim"} if is_psim else cell)


def share_of(
    records: Sequence[Record], rate: str, printed: float | None = None, *, is_undefended: bool = False,
    is_doubtful: bool = False,
) -> Share:  # fmt: skip
    """Return a rate over records, behind the guard where there is one; `is_undefended`: of the victim alone."""
    found = [(record, record.outcome if is_undefended else record.rates) for record in records]
    known = [(record, outcome) for record, outcome in found if outcome.get(rate) is not None]
    values: list[Any] = [outcome[rate] for _, outcome in known]
    interval = _interval(*known[0], rate) if len(known) == 1 else None
    return Share(Spread.of(values), printed, interval, is_doubtful=is_doubtful)


def _interval(record: Record, outcome: Mapping[str, Any], rate: str) -> Interval | None:
    """The 95 % interval of a rate, as the record has it or from the size of its test set."""
    if intervals := outcome.get("intervals"):
        kept = intervals[rate]
        return Interval(kept["low"], kept["high"])
    if rate != "clean_accuracy" or not record.data:
        return None
    rows = record.data[0].rows
    return wilson(round(outcome[rate] * rows), rows)
