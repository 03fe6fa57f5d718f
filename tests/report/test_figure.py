"""Figures from records: what varies is on the axis, all else is told apart, and undefended stands beside defended."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.report.conftest import cell_at, rates, write_store

from foretaste.report.figure import CLOSEST, _apart, line_chart, plots_of

LORA = {"method": "lora", "rank": 8, "learning_rate": 2e-3, "epochs": 3}
STRATEGIES = {
    "lora": LORA,
    "lora_2": {**LORA, "rank": 2},
    "lora_fast": {**LORA, "learning_rate": 2e-2},
    "soft": {"method": "prompt_tuning", "learning_rate": 2e-3, "virtual_tokens": 5},
}
DEFENCES: dict[str, Any] = {
    "none": {},
    "psim": {"psim": {}},
    "onion": {"rewriter": {}},
    "both": {"rewriter": {}, "psim": {}},
}


def test_a_plot_for_each_number_that_varies_while_the_others_stay(tmp_path: Path) -> None:
    cells = []
    for strategy, height in (("lora", 0.9), ("lora_2", 0.8), ("lora_fast", 0.7), ("soft", 0.6)):
        for seed in range(2):
            cells.append((cell_at("badnet", "none", strategy, seed), rates(height, 1.0 - seed / 10)))
            cells.append(
                (cell_at("badnet", "psim", strategy, seed), rates(height, 1.0 - seed / 10, (height - 0.1, 0.0)))
            )
    sheet, records = write_store(tmp_path, cells, figure="4", strategies=STRATEGIES, defences=DEFENCES)
    rank, speed = plots_of(sheet, records)
    assert (rank.axis, rank.values, rank.defence) == ("rank", [2, 8], "psim")
    assert (speed.axis, speed.values) == ("learning_rate", [2e-3, 2e-2])
    (clean, attack), (clean_at_8, _) = rank.undefended
    assert clean is not None
    assert attack is not None
    assert clean_at_8 is not None
    assert (clean.mean, clean_at_8.mean) == (0.8, 0.9)
    assert attack.mean == pytest.approx(0.95)
    assert (attack.low, attack.high) == (0.9, 1.0)
    behind = [pair[0].mean for pair in rank.defended if pair[0] is not None]
    assert behind == [pytest.approx(0.7), pytest.approx(0.8)]
    root = ElementTree.fromstring(line_chart(rank, "a"))
    said = root.attrib["aria-label"]
    assert "CA 80.0\u202f% at 2, 90.0\u202f% at 8; CA w/D 70.0\u202f% at 2" in said
    assert "ASR w/D 0\u202f% at 2" in said
    words = {"".join(text.itertext()) for text in root.iter("text")}
    assert {"CA", "CA w/D", "ASR", "ASR w/D", "2", "8", "rank"} <= words


def test_of_thresholds_the_victim_alone_is_in_the_guards_records(tmp_path: Path) -> None:
    cells = [
        (cell_at("badnet", "psim", threshold=threshold), rates(0.9, 1.0, (threshold, 1 - threshold)))
        for threshold in (0.6, 0.7)
    ]
    cells.append((cell_at("badnet", "psim", "soft", threshold=0.6), rates(0.9, 1.0, (0.5, 0.5))))
    sheet, records = write_store(tmp_path, cells, figure="3d", strategies=STRATEGIES, defences=DEFENCES)
    (plot,) = plots_of(sheet, records)
    assert (plot.axis, plot.values) == ("threshold", [0.6, 0.7])
    assert [pair[0].mean for pair in plot.undefended if pair[0] is not None] == [0.9, 0.9]
    assert [pair[1].mean for pair in plot.defended if pair[1] is not None] == [0.4, pytest.approx(0.3)]


def test_a_line_is_of_the_seeds_that_all_its_points_have_and_of_the_guards_own_victims(tmp_path: Path) -> None:
    cells = [(cell_at("badnet", "psim", "lora_2"), rates(0.8, 0.5, (0.7, 0.1)))]
    cells += [(cell_at("badnet", "psim", "lora", seed), rates(0.9, 0.6, (0.8, seed / 2))) for seed in range(3)]
    cells.append((cell_at("badnet", "none", "lora"), rates(0.9, 0.9)))  # trained again, it came out otherwise
    sheet, records = write_store(tmp_path, cells, figure="4", strategies=STRATEGIES, defences=DEFENCES)
    (plot,) = plots_of(sheet, records)
    assert [pair[1].mean for pair in plot.defended if pair[1] is not None] == [0.1, 0.0]
    assert [pair[1].mean for pair in plot.undefended if pair[1] is not None] == [0.5, 0.6]
    assert plot.caption.endswith("Seed 0.")


def test_what_was_not_run_leaves_a_gap(tmp_path: Path) -> None:
    cells = [
        (cell_at("badnet", "onion", "lora"), rates(0.9, 0.2)),
        (cell_at("badnet", "onion", "lora_2"), None),
    ]
    parts = {cells[0][0]: {"clean_rewritten": "its texts"}}
    sheet, records = write_store(tmp_path, cells, figure="4", strategies=STRATEGIES, defences=DEFENCES, parts=parts)
    (plot,) = plots_of(sheet, records)
    # Behind a rewriter the record says nothing of the victim alone.
    assert plot.undefended == [(None, None), (None, None)]
    guarded = [(cell_at("badnet", "both", name), rates(0.9, 0.2, (0.8, 0.1))) for name in ("lora", "lora_2")]
    parts = {cell: {"clean_rewritten": "its texts"} for cell, _ in guarded}
    both = write_store(tmp_path / "both", guarded, figure="4", strategies=STRATEGIES, defences=DEFENCES, parts=parts)
    assert plots_of(*both)[0].undefended == [(None, None), (None, None)]
    assert plot.defended[0] == (None, None)
    assert "ASR w/D 20.0\u202f% at 8" in line_chart(plot, "a")
    sheet, _ = write_store(tmp_path / "none", [(cell, None) for cell, _ in cells], strategies=STRATEGIES)
    assert plots_of(sheet, {}) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_labels_are_apart_on_the_axis_and_in_order(heights: list[float]) -> None:
    placed = _apart(heights)
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in placed)
    order = sorted(range(len(heights)), key=lambda at: placed[at])
    assert all(heights[one] <= heights[other] for one, other in pairwise(order))
    assert all(placed[other] - placed[one] >= CLOSEST - 1e-9 for one, other in pairwise(order))
