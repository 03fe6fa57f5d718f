"""Means over strategies: by hand, beside the printed mean of the same strategies."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from tests.report.conftest import cell_at, rates, write_store

from foretaste.report.listing import Amount
from foretaste.report.share import Share
from foretaste.report.summary import charts_of, summary_of
from foretaste.report.tables import groups_of


def test_means_are_over_strategies_not_over_cells(tmp_path: Path) -> None:
    cells = [
        (cell_at("badnet", strategy="lora", seed=0), rates(0.9, 1.0)),
        (cell_at("badnet", strategy="lora", seed=1), rates(0.8, 0.9)),
        (cell_at("badnet", strategy="full"), rates(0.95, 0.5)),
        (cell_at("badnet", strategy="p_tuning_v1"), None),
        (cell_at("badnet", "onion", strategy="lora"), None),
        (cell_at("none", strategy="lora"), rates(0.7)),
        (cell_at("badnet", "psim", strategy="lora"), rates(0.9, 1.0, (0.88, 0.01))),
    ]
    sheet, records = write_store(tmp_path, cells, table=1, beside={"minilm": "bert-large"})
    (group,) = groups_of(sheet, records)
    attacked, rewritten, guarded, sound = summary_of(group, "summary").rows  # all of an attack together
    assert (attacked[0], attacked[1], *attacked[4:]) == ("badnet", "none", "", "", "2 of 3", "1 to 2")
    clean, attack = attacked[2], attacked[3]
    assert isinstance(clean, Share)
    assert isinstance(attack, Share)
    assert clean.ours is not None
    assert attack.ours is not None
    assert clean.ours.mean == pytest.approx((0.85 + 0.95) / 2)
    assert [attack.ours.mean, attack.ours.low, attack.ours.high] == pytest.approx([0.725, 0.5, 0.95])
    assert clean.printed == pytest.approx((0.92 + 0.9232) / 2, abs=0.01)  # of LoRA and full alone
    assert isinstance(rewritten[2], Share)
    assert rewritten[2].ours is None
    assert rewritten[2].printed is not None  # what is missing stands beside what is printed
    assert (guarded[1], sound[0], sound[3]) == ("psim", "none", "")
    assert guarded[4:] == ((0.9, "90.0"), (1.0, "100.0"), "1 of 1", "1")  # LoRA's seed 0 alone, as the guard's row
    assert rewritten[4:] == ("", "", "0 of 1", "")
    (drawn,) = charts_of(group, "chart").values()
    said = ElementTree.fromstring(drawn).attrib["aria-label"]
    assert "none: kept" in said
    assert "onion" not in said
    assert "psim: " in said
    by_strategy = charts_of(group, "chart", is_by_strategy=True)["badnet"]
    assert "full, none" in ElementTree.fromstring(by_strategy).attrib["aria-label"]


def test_of_one_strategy_the_seeds_are_shown_and_of_one_seed_its_interval(tmp_path: Path) -> None:
    sheet, records = write_store(tmp_path, [(cell_at("none"), rates(0.9))])
    (group,) = groups_of(sheet, records)
    share = summary_of(group, "summary").rows[0][2]
    assert isinstance(share, Share)
    assert share.range == "95\u202f%: 82.6–94.5"  # Wilson, 90 of 100
    seeds = [(cell_at("none", seed=seed), rates(0.8 + seed / 10)) for seed in range(2)]
    sheet, records = write_store(tmp_path / "more", seeds)
    share = summary_of(groups_of(sheet, records)[0], "summary").rows[0][2]
    assert isinstance(share, Share)
    assert share.range == "80.0–90.0"


def test_a_rewriter_stands_beside_the_very_victim_that_read_its_texts(tmp_path: Path) -> None:
    """Equal keys are not equal bits: a victim that was trained again elsewhere is another one."""
    bare, rewritten, guarded = (cell_at("badnet", defence) for defence in ("none", "onion", "psim"))
    washed = cell_at("badnet", "w2s")
    cells = [(bare, rates(0.9, 1.0)), (rewritten, rates(0.8, 0.3)), (guarded, rates(0.7, 0.9, (0.6, 0.0))),
             (washed, rates(0.85, 0.1))]  # fmt: skip
    own = {"bases": "b", "victims": "v"}
    parts = {bare: own, rewritten: {**own, "clean_rewritten": "r"}, guarded: own, washed: {"bases": "b", "washed": "w"}}
    here, there = {"b": "1", "v": "2"}, {"b": "3", "v": "4"}
    for sources, told in (
        ({}, (0.9, 0.9)),  # older records do not say of which weights they are
        ({bare: here, rewritten: here, guarded: there, washed: {"b": "1"}}, (0.9, 0.9)),
        ({bare: here, rewritten: there, guarded: there, washed: {"b": "3"}}, (0.7, 0.7)),  # as the guard's record says
        ({bare: here, rewritten: {**here, "v": "5"}, guarded: there, washed: {"b": "5"}}, (None, None)),
    ):
        sheet, records = write_store(tmp_path, cells, parts=parts, sources=sources)
        rows = {str(row[1]): row[4] for row in summary_of(groups_of(sheet, records)[0], "summary").rows}
        found = [each.value if isinstance(each, Amount) else None for each in (rows["onion"], rows["w2s"])]
        assert (*found,) == told
        assert rows["psim"] == (0.7, "70.0")


def test_behind_an_honest_suppliers_washed_base_it_has_to_be_the_same_base(tmp_path: Path) -> None:
    """His base is a victim itself and stands under no name of its own; records name its weights all the same."""
    bare, washed = cell_at("none"), cell_at("none", "w2s")
    parts = {bare: {"victims": "v"}, washed: {"victims": "tuned on w", "washed": "w"}}
    for mark, told in (("1", Amount(0.9, "90.0")), ("2", "")):
        sources = {bare: {"b": "1", "v": "3"}, washed: {"b": mark, "w": "4", "tuned on w": "5"}}
        sheet, records = write_store(tmp_path, [(bare, rates(0.9)), (washed, rates(0.8))], parts=parts, sources=sources)
        rows = {row[1]: row[4] for row in summary_of(groups_of(sheet, records)[0], "summary").rows}
        assert rows["w2s"] == told
