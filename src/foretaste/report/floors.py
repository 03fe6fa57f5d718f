"""What an attack has to be held against: how many clean texts end at the target anyway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foretaste.record import Record
from foretaste.report.cells import FLOORS
from foretaste.report.listing import Amount, Listing, Value, mean_share
from foretaste.report.tables import Group

__all__ = ["floors_of"]

CAPTION = (
    "Of undefended victims, the mean over the cells of this table, in per cent: how many clean texts of other classes "
    "end at the target anyway, all of them and those as long as the triggered texts (a victim that takes short texts "
    "for the trigger shows there), beside the ASR."
)


def floors_of(group: Group, records: Mapping[str, Record], name: str) -> Listing | None:
    """Return a line per attack; None where no undefended cell with a trigger was run."""
    rows: list[Sequence[Value]] = []
    for row in group.rows:
        own = row.run(records)
        floors: list[Any] = [record.outcome.get("floors") or {} for record in own]
        if row.label != "none" or not any(floors):
            continue
        shares = [[each.get(which) for each in floors] for which in FLOORS]
        shares.append([record.outcome.get("attack_success_rate") for record in own])
        rows.append((row.attack, *map(mean_share, shares), Amount(len(own), str(len(own)))))
    columns = ("Attack", "Other classes", "Same length", "ASR", "Cells")
    return Listing(name, "Floors", CAPTION, columns, rows) if rows else None
