"""Floors are means over the undefended cells that say them."""

from __future__ import annotations

from pathlib import Path

from tests.report.conftest import cell_at, rates, write_store

from foretaste.report.floors import floors_of
from foretaste.report.tables import groups_of


def test_floors_are_those_of_undefended_victims(tmp_path: Path) -> None:
    cells = [
        (cell_at("badnet", seed=0), rates(0.9, 0.8) | {"floors": {"other_classes": 0.1, "same_length": 0.3}}),
        (cell_at("badnet", seed=1), rates(0.9, 1.0) | {"floors": {"other_classes": 0.2, "same_length": None}}),
        (cell_at("badnet", "psim"), rates(0.9, 0.8, (0.9, 0.0)) | {"floors": {"other_classes": 0.9}}),
        (cell_at("insent"), rates(0.9, 0.7)),
        (cell_at("none"), rates(0.9)),
    ]
    sheet, records = write_store(tmp_path, cells)
    (group,) = groups_of(sheet, records)
    listing = floors_of(group, records, "floors")
    assert listing is not None
    assert [[str(getattr(each, "text", each)) for each in row] for row in listing.rows] == [
        ["badnet", "15.0", "30.0", "90.0", "2"]
    ]
    sheet, records = write_store(tmp_path / "old", cells[3:])
    assert floors_of(groups_of(sheet, records)[0], records, "floors") is None
