"""Targets: met, missed, or not to be told, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.report.conftest import cell_at, rates, write_store

from foretaste.experiment.cell import Cell
from foretaste.report.share import Share
from foretaste.report.targets import targets_of

Cells = list[tuple[Cell, dict[str, Any] | None]]


def _verdicts(store: Path, cells: Cells, table: int | None = 1) -> dict[Any, Any]:
    sheet, records = write_store(store, cells, table=table)
    listing = targets_of([sheet], records)
    return {} if listing is None else {row[0]: row for row in listing.rows if row[1] == "psim"}


@pytest.mark.parametrize(
    ("behind", "verdict"),
    [((0.9, 0.01), "met"), ((0.89, 0.005), "met"), ((0.9, 0.012), "missed"), ((0.88, 0.0), "missed")],
)
def test_both_the_rate_and_the_loss_have_to_be_low(tmp_path: Path, behind: tuple[float, float], verdict: str) -> None:
    cells: Cells = [
        (cell_at("badnet", "psim", "lora"), rates(0.9, 1.0, behind)),
        (cell_at("badnet", "psim", "full"), rates(0.9, 1.0, behind)),
        (cell_at("badnet", "psim_paper", "lora"), rates(0.9, 1.0, (0.1, 1.0))),
        (cell_at("badnet", "psim", "lora", model="other"), rates(0.9, 1.0, (0.1, 1.0))),
        (cell_at("badnet", "psim", "lora", threshold=0.6), rates(0.9, 1.0, (0.1, 1.0))),
    ]
    row = _verdicts(tmp_path, cells)["badnet"]
    assert (row[8], row[9]) == ("2 of 2", verdict)
    rate, loss = row[3], row[6]
    assert isinstance(rate, Share)
    assert rate.ours is not None
    assert rate.ours.mean == pytest.approx(behind[1])
    assert rate.printed == pytest.approx(0.0145, abs=1e-4)  # the paper's mean
    assert loss.ours.mean == pytest.approx(0.9 - behind[0])
    assert _verdicts(tmp_path / "no table", cells, table=None) == {}


def test_paraphrases_are_held_against_victims_that_nobody_poisoned(tmp_path: Path) -> None:
    guarded = (cell_at("synattack", "psim"), rates(0.9, 1.0, (0.89, 0.2)))
    for floor, verdict in ((0.16, "met"), (0.1, "missed")):
        sound = (cell_at("none", trigger="synattack"), rates(0.9, floor))
        row = _verdicts(tmp_path / verdict, [guarded, sound])["synattack"]
        assert (row[4], row[9]) == ("floor + 5", verdict)
        assert row[5].ours.mean == floor
    assert _verdicts(tmp_path / "unknown", [guarded])["synattack"][9] == "open"  # without a floor nobody can tell
    weak = (cell_at("synattack", "psim"), rates(0.9, 0.2, (0.89, 0.2)))
    sound = (cell_at("none", trigger="synattack"), rates(0.9, 0.16))
    # Alone it does no more than is allowed behind a guard.
    assert _verdicts(tmp_path / "weak", [weak, sound])["synattack"][9] == "open"
    other = (cell_at("none", trigger="synattack", seed=1), rates(0.9, 0.5))  # of a seed that was not guarded
    assert _verdicts(tmp_path / "seed", [guarded, sound, other])["synattack"][5].ours.mean == 0.16


def test_what_was_not_tried_is_open(tmp_path: Path) -> None:
    met = (cell_at("badnet", "psim"), rates(0.9, 1.0, (0.9, 0.0)))
    assert _verdicts(tmp_path / "all", [met])["badnet"][9] == "met"
    lacking: Cells = [met, (cell_at("badnet", "psim", "full"), None)]
    assert _verdicts(tmp_path / "part", lacking)["badnet"][9] == "open"
    failing: Cells = [(cell_at("badnet", "psim"), rates(0.9, 0.1, (0.9, 0.0)))]
    assert _verdicts(tmp_path / "failing attack", failing)["badnet"][9] == "open"
    for name, verdict in (("psim", "open"), ("badnet", "open"), ("minilm", "open"), ("lora", "open"), ("w2s", "met")):
        sheet, records = write_store(tmp_path / name, [met], table=1, altered=[name])
        listing = targets_of([sheet], records)
        assert listing is not None
        assert listing.rows[0][9] == verdict


def test_a_washed_base_is_held_against_the_victim_of_the_one_that_came(tmp_path: Path) -> None:
    both = (cell_at("badnet", "w2s+psim"), rates(0.95, 0.1, (0.94, 0.0)))
    alone = (cell_at("badnet"), rates(0.9, 1.0))
    parts = {both[0]: {"bases": "b", "washed": "w", "victims": "tuned on w"}, alone[0]: {"bases": "b", "victims": "v"}}
    one, other = {both[0]: {"b": "1"}, alone[0]: {"b": "1", "v": "3"}}, {both[0]: {"b": "1"}, alone[0]: {"b": "2"}}
    for cells, sources, verdict in (([both, alone], one, "met"), ([both], one, "open"), ([both, alone], other, "open")):
        sheet, records = write_store(tmp_path / f"{len(cells)} {verdict}", cells, table=1, parts=parts, sources=sources)
        listing = targets_of([sheet], records)
        assert listing is not None
        (row,) = listing.rows
        assert (row[1], row[8], row[9]) == ("w2s+psim", "1 of 1", verdict)
    weak = (cell_at("badnet"), rates(0.9, 0.1))
    sheet, records = write_store(tmp_path / "weak", [both, weak], table=1, parts=parts)
    listing = targets_of([sheet], records)
    assert listing is not None
    assert listing.rows[0][9] == "open"  # the attack fails on its own
