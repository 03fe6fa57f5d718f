"""What defences take: means by hand, what no record says stays empty, the printed words beside it."""

from __future__ import annotations

from pathlib import Path

from tests.report.conftest import cell_at, rates, write_store

from foretaste.cost import Cost
from foretaste.report.costs import COSTS, costs_of
from foretaste.report.listing import Amount
from foretaste.report.tables import groups_of


def test_costs_are_means_over_the_cells_that_say_them(tmp_path: Path) -> None:
    alone = cell_at("badnet")
    guarded = [cell_at("badnet", "psim", seed=seed) for seed in range(2)]
    mixed = cell_at("badnet", "fine_mixing")
    costs = {
        alone: Cost(seconds=0.0),
        guarded[0]: Cost(seconds=10.0, seconds_per_text=0.004, forwards_per_text=1.0, stored_bytes=2_000_000),
        guarded[1]: Cost(seconds=20.0, stored_bytes=4_000_000),
        mixed: Cost(seconds=1234.0, trainable_parameters=22_000_000),
    }
    cells = [(cell, rates(0.9, 0.5)) for cell in (alone, *guarded, mixed)] + [(cell_at("badnet", "onion"), None)]
    sheet, records = write_store(tmp_path, cells, costs=costs)
    (group,) = groups_of(sheet, records)
    listing = costs_of(group, records, "cost")
    assert listing is not None
    columns = {name: listing.columns.index(COSTS[name][0]) for name in COSTS if COSTS[name][0] in listing.columns}
    assert set(COSTS) - set(columns) == {"peak_memory_bytes", "peak_gpu_memory_bytes"}  # what no cell says
    rows = {row[0]: row for row in listing.rows}
    assert set(rows) == {"psim", "fine_mixing", "onion"}
    assert rows["psim"][columns["seconds"]] == Amount(15.0, "15")
    assert rows["psim"][columns["seconds_per_text"]] == Amount(4.0, "4")
    assert rows["psim"][columns["stored_bytes"]] == Amount(3.0, "3")
    assert rows["fine_mixing"][columns["trainable_parameters"]] == Amount(22_000_000, "22,000,000")
    assert rows["fine_mixing"][columns["seconds_per_text"]] is None
    assert rows["onion"][1:] == (*(None,) * len(columns), Amount(0, "0"))
    printed = costs_of(group, records, "cost", is_printed=True)
    assert printed is not None
    said = {row[0]: row[-4:-1] for row in printed.rows}
    assert (said["psim"], said["onion"], said["darcy"]) == (("yes",) * 3, (None,) * 3, ("yes", "yes", "no"))


def test_without_costs_there_is_no_table(tmp_path: Path) -> None:
    sheet, records = write_store(tmp_path, [(cell_at("badnet", "psim"), rates(0.9, 0.5))])
    (group,) = groups_of(sheet, records)
    assert costs_of(group, records, "cost") is None
