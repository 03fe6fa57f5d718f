"""What this project promises of its default guard, and whether the records keep it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foretaste.evaluate.spread import Spread
from foretaste.record import Record
from foretaste.report.listing import Listing, Value
from foretaste.report.printed import printed_mean
from foretaste.report.share import Share, points
from foretaste.report.tables import Sheet, share_of

__all__ = ["TARGETS", "targets_of"]

MAIN_TABLES = (1, 2, 4, 5, 6, 7)
WORKING = 0.5  # an attack that fails alone says nothing about a guard
Cells = list[Mapping[str, Any]]
ROUNDING = 1e-9  # 0.9 - 0.89 is a little more than 0.01
CAPTION = (
    "The default guard before MiniLM on SST-2: mean ASR and mean loss of CA (against the same victim alone) over all "
    "strategies and seeds, below it the lowest and the highest cell. In brackets the paper's mean over its six main "
    "tables, three models and all strategies. The floor is the same rate of undefended victims that nobody poisoned. "
    "Open: cells are missing, the plan calls something else by these names, or the attack fails on its own."
)


@dataclass(frozen=True)
class Target:
    """At most so much ASR, above the floor of sound victims if `is_above_floor`, at most so much loss of CA; shares."""

    attack: str
    attack_success_rate: float
    loss: float
    is_above_floor: bool = False


TARGETS = (
    Target("badnet", 0.01, 0.01),
    Target("insent", 0.02, 0.01),
    Target("synattack", 0.05, 0.02, is_above_floor=True),
)


def targets_of(sheets: Sequence[Sheet], records: Mapping[str, Record]) -> Listing | None:
    """Return a line per target and main table that asks for its cells; None if no plan asks for any."""
    rows: list[Sequence[Value]] = []
    for sheet in sheets:
        if sheet.table not in MAIN_TABLES:
            continue
        for target in TARGETS:
            for knowledge in dict.fromkeys(str(cell["knowledge"]) for cell in sheet.cells):
                row = _row(sheet, target, knowledge, records)
                rows += [] if row is None else [row]
    columns = ("Attack", "Plan", "ASR", "ASR at most", "Floor", "CA loss", "Loss at most", "Cells", "Target")
    return Listing("targets", "Targets", CAPTION, columns, rows, labels=2) if rows else None


def _row(sheet: Sheet, target: Target, knowledge: str, records: Mapping[str, Record]) -> Sequence[Value] | None:
    place = {"model": "minilm", "data": "sst2", "knowledge": knowledge, "attack": target.attack, "defence": "psim"}
    asked = _cells(sheet, **place)
    if not asked:
        return None
    found = [records[key] for cell in asked if (key := cell["key"]) in records]
    rate = share_of(found, "attack_success_rate").ours
    loss = Spread.of([_loss(each) for each in found])
    sound = _cells(sheet, **{**place, "attack": "none", "defence": "none"}, trigger=target.attack)
    floor = share_of([records[cell["key"]] for cell in sound if cell["key"] in records], "attack_success_rate").ours
    printed = printed_mean(MAIN_TABLES, target.attack) or (None, None)
    allowed: float | None = target.attack_success_rate
    if target.is_above_floor:
        allowed = None if floor is None else floor.mean + target.attack_success_rate
    bar = points(target.attack_success_rate, 0)
    return (
        target.attack,
        sheet.name,
        Share(rate, printed[0], is_comparable=False),
        f"floor + {bar}" if target.is_above_floor else bar,
        Share(floor) if target.is_above_floor else "",
        Share(loss, printed[1], is_comparable=False),
        points(target.loss, 0),
        f"{len(found)} of {len(asked)}",
        _verdict(rate, allowed, loss, target.loss) if _is_told(sheet, target, asked, found, sound, records) else "open",
    )


def _is_told(
    sheet: Sheet, target: Target, asked: Cells, found: Sequence[Record], sound: Cells, records: Mapping[str, Record]
) -> bool:
    """Whether the records can tell: all cells run, with the usual guard, attack and model, against one that works."""
    if {"psim", "minilm", target.attack} & set(sheet.altered) or len(found) < len(asked):
        return False
    alone = share_of(found, "attack_success_rate", is_undefended=True).ours
    is_floor_whole = sound and all(cell["key"] in records for cell in sound)
    if alone is None or (target.is_above_floor and not is_floor_whole):
        return False
    return target.is_above_floor or alone.mean > WORKING


def _cells(sheet: Sheet, trigger: str | None = None, **place: str) -> Cells:
    """The cells at a place, with PSIM's own settings."""
    wanted = {**place, "psim_strategy": None, "reset_rate": None, "threshold": None}
    return [
        cell
        for cell in sheet.cells
        if cell.get("trigger") == trigger and all(cell[name] == value for name, value in wanted.items())
    ]


def _loss(record: Record) -> float:
    outcome: Any = record.outcome
    return float(outcome["clean_accuracy"] - record.rates["clean_accuracy"])


def _verdict(rate: Spread | None, allowed: float | None, loss: Spread | None, allowed_loss: float) -> str | None:
    if rate is None or loss is None or allowed is None:
        return None
    is_met = rate.mean <= allowed + ROUNDING and loss.mean <= allowed_loss + ROUNDING
    return "met" if is_met else "missed"
