"""Guards are held against each other where each refuses the same share of clean texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.report.conftest import cell_at, rates, write_store

from foretaste.report.ranking import ranking_of
from foretaste.report.tables import groups_of


def _guarded(auroc: float, refused: float, at_1: float, at_5: float) -> dict[str, Any]:
    found: dict[str, Any] = rates(0.9, 0.8, (0.9, 0.0))
    found["guarded"] |= {"auroc": auroc, "false_rejection_rate": refused, "far_at_frr": {"0.01": at_1, "0.05": at_5}}
    return found


def test_guards_are_ranked_by_what_passes_at_equal_false_rejection(tmp_path: Path) -> None:
    unranked = _guarded(0.9, 0.0, 0.0, 0.0)
    unranked["guarded"]["far_at_frr"] = None
    cells = [
        (cell_at("badnet"), rates(0.9, 0.8)),
        (cell_at("badnet", "psim", seed=0), _guarded(0.9, 0.002, 0.3, 0.1)),
        (cell_at("badnet", "psim", seed=1), _guarded(0.8, 0.004, 0.5, 0.2)),
        (cell_at("none"), rates(0.9)),
        (cell_at("insent", "psim"), unranked),
    ]
    sheet, records = write_store(tmp_path, cells)
    (group,) = groups_of(sheet, records)
    listing = ranking_of(group, records, "ranking")
    assert listing is not None
    assert [[str(getattr(each, "text", each)) for each in row] for row in listing.rows] == [
        ["badnet", "psim", "85.0", "0.3", "40.0", "15.0", "2"]
    ]
    sheet, records = write_store(tmp_path / "bare", [cells[0], cells[3]])
    assert ranking_of(groups_of(sheet, records)[0], records, "ranking") is None
