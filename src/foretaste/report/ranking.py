"""How well guards tell triggered texts apart, whatever their own bars: at the same share of clean texts refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foretaste.record import Record
from foretaste.report.listing import Amount, Listing, Value, mean_share
from foretaste.report.tables import Group

__all__ = ["CAPTION", "ranking_of"]

LEVELS = ("0.01", "0.05")
CAPTION = (
    "A bar that keeps a promise of 1 % leaves room for chance, the more the fewer texts it is calibrated on. Here bars "
    "lie where at most 1 and 5 % of the clean test texts are above, for every guard alike (of texts with equal scores "
    "all are, or none): what part of the triggered texts would pass? Means over the cells of this table, in per cent, "
    "beside what the guards' own bars refuse of clean texts (FRR) and how often a triggered text is more suspicious "
    "than a clean one (AUROC)."
)


def ranking_of(group: Group, records: Mapping[str, Record], name: str) -> Listing | None:
    """Return a line per attack and guard; None where no guard before triggered texts was run."""
    rows: list[Sequence[Value]] = []
    for row in group.rows:
        own = row.run(records)
        guarded: list[Any] = [record.outcome.get("guarded") or {} for record in own]
        passed: list[Any] = [each.get("far_at_frr") or {} for each in guarded]
        if not row.is_attacked or not any(passed):
            continue
        shares = [[each.get(rate) for each in guarded] for rate in ("auroc", "false_rejection_rate")]
        shares += [[each.get(level) for each in passed] for level in LEVELS]
        rows.append((row.attack, row.label, *map(mean_share, shares), Amount(len(own), str(len(own)))))
    columns = ("Attack", "Guard", "AUROC", "FRR", "Passed at 1 % FRR", "Passed at 5 % FRR", "Cells")
    return Listing(name, "Guards at equal false rejection", CAPTION, columns, rows, labels=2) if rows else None
