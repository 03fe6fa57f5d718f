"""What this project promises of its default guard, alone and before a washed base, and whether the records keep it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foretaste.evaluate.spread import Spread
from foretaste.record import Record
from foretaste.report.listing import Listing, Value
from foretaste.report.printed import printed_mean
from foretaste.report.share import Share, points
from foretaste.report.tables import Sheet, Victims, share_of

__all__ = ["TARGETS", "targets_of"]

MAIN_TABLES = (1, 2, 4, 5, 6, 7)
DEFENCES = ("psim", "opinion", "w2s+psim")
# What fails alone says nothing about a guard; of paraphrases, what does no more than a guard may let through.
WORKING = 0.5
Cells = list[Mapping[str, Any]]
ROUNDING = 1e-9  # 0.9 - 0.89 is a little more than 0.01
CAPTION = (
    "The default guard before MiniLM (psim), the second opinion of a model that is trusted (opinion), and "
    "the default guard where W2SDefense washed the base before it was tuned (w2s+psim): mean ASR and mean loss of CA "
    "(against the same victim undefended, before a washed base the one of the base as it came) over all strategies and "
    "seeds, below it the lowest and the highest cell. "
    "In brackets the paper's mean for PSIM over its six main tables, three models and all strategies. The floor is "
    "the same rate of undefended victims that nobody poisoned. Open: cells are missing, no record knows the "
    "undefended victims, the plan calls something else by these names, or the attack fails on its own."
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
    """Return a line per target, defence and main table that asks for its cells; None if no plan asks for any."""
    rows: list[Sequence[Value]] = []
    for sheet in sheets:
        if sheet.table not in MAIN_TABLES:
            continue
        victims = Victims(sheet, records)
        for target in TARGETS:
            for place in dict.fromkeys((str(cell["data"]), str(cell["knowledge"])) for cell in sheet.cells):
                found = (_row(sheet, target, defence, *place, records, victims) for defence in DEFENCES)
                rows += [row for row in found if row is not None]
    columns = ("Attack", "Defence", "Plan", "ASR", "ASR at most", "Floor", "CA loss", "Loss at most", "Cells", "Target")
    return Listing("targets", "Targets", CAPTION, columns, rows, labels=3) if rows else None


def _row(
    sheet: Sheet, target: Target, defence: str, data: str, knowledge: str, records: Mapping[str, Record],
    victims: Victims,
) -> Sequence[Value] | None:  # fmt: skip
    place = {"model": "minilm", "data": data, "knowledge": knowledge, "attack": target.attack, "defence": defence}
    asked = _cells(sheet, **place)
    if not asked:
        return None
    found = [records[cell["key"]] for cell in asked if cell["key"] in records]
    known = [(bare.outcome, records[cell["key"]]) for cell in asked if (bare := victims.alone(cell)) is not None]
    rate = share_of(found, "attack_success_rate").ours
    losses: list[Any] = [before["clean_accuracy"] - each.rates["clean_accuracy"] for before, each in known]
    loss = Spread.of(losses)
    alone: list[Any] = [before["attack_success_rate"] for before, _ in known]
    runs = {_run(cell) for cell in asked}
    sound = _cells(sheet, **{**place, "attack": "none", "defence": "none"}, trigger=target.attack)
    sound = [cell for cell in sound if _run(cell) in runs]
    floor = share_of([records[cell["key"]] for cell in sound if cell["key"] in records], "attack_success_rate").ours
    printed = (defence == "psim" and printed_mean(MAIN_TABLES, target.attack)) or (None, None)
    allowed: float | None = target.attack_success_rate
    if target.is_above_floor:
        allowed = None if floor is None else floor.mean + target.attack_success_rate
    bar = points(target.attack_success_rate, 0)
    working = allowed if target.is_above_floor else WORKING
    is_told = (
        not any(sheet.alters(cell) for cell in asked)
        and len(alone) == len(asked)
        and not (target.is_above_floor and any(cell["key"] not in records for cell in sound))
        and working is not None
        and sum(alone) > working * len(alone)
    )
    return (
        target.attack,
        defence,
        sheet.name,
        Share(rate, printed[0], is_comparable=False),
        f"floor + {bar}" if target.is_above_floor else bar,
        Share(floor) if target.is_above_floor else "",
        Share(loss, printed[1], is_comparable=False),
        points(target.loss, 0),
        f"{len(found)} of {len(asked)}",
        _verdict(rate, allowed, loss, target.loss) if is_told else "open",
    )


def _run(cell: Mapping[str, Any]) -> tuple[str, int]:
    return cell["strategy"], cell["seed"]


def _cells(sheet: Sheet, trigger: str | None = None, **place: str) -> Cells:
    """The cells at a place, with PSIM's own settings."""
    wanted = {**place, "psim_strategy": None, "reset_rate": None, "threshold": None}
    return [
        cell
        for cell in sheet.cells
        if cell.get("trigger") == trigger and all(cell[name] == value for name, value in wanted.items())
    ]


def _verdict(rate: Spread | None, allowed: float | None, loss: Spread | None, allowed_loss: float) -> str | None:
    if rate is None or loss is None or allowed is None:
        return None
    is_met = rate.mean <= allowed + ROUNDING and loss.mean <= allowed_loss + ROUNDING
    return "met" if is_met else "missed"
