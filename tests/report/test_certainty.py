"""Table 12 from arrays: each text in one bin, each guard counted once, and nothing made up where arrays are gone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.report.conftest import cell_at, rates, write_store

from foretaste.experiment.store import save_arrays
from foretaste.report.certainty import certainties_of
from foretaste.report.printed import CONFIDENCES
from foretaste.report.share import Share

DEFENCES = {"psim_paper": {"psim": {"view": "confidence"}}, "psim": {"psim": {"view": "both"}}}


def test_each_text_is_in_one_bin_and_each_guard_counts_once(tmp_path: Path) -> None:
    lora, soft = cell_at("badnet", "psim_paper", "lora"), cell_at("badnet", "psim_paper", "prompt_tuning")
    other = cell_at("badnet", "psim", "lora")
    guarded = rates(0.9, 1.0, (0.8, 0.1))
    parts = {
        cell: {"triggered": name, "clean_scores": "c", "triggered_scores": "t"}
        for cell, name in ((lora, "one"), (soft, "two"), (other, "other"))
    }
    cells = [(lora, guarded), (soft, guarded), (other, guarded)]
    sheet, records = write_store(tmp_path, cells, parts=parts, defences=DEFENCES, table=12)
    save_arrays(tmp_path / "answers" / "one.npz", {"certainty": np.array([0.49999997, 0.6, 0.95, 1.0], np.float32)})
    save_arrays(tmp_path / "answers" / "two.npz", {"certainty": np.array([0.95, 0.95, 0.95, np.nan], np.float32)})
    save_arrays(tmp_path / "answers" / "other.npz", {"certainty": np.zeros(4)})
    save_arrays(tmp_path / "scores" / "c.npz", {"scores": np.array([0.5, 0.55, 0.65, 0.75])})
    save_arrays(tmp_path / "scores" / "t.npz", {"scores": np.array([0.85])})
    (found,) = certainties_of(sheet, records, tmp_path, "confidence")
    means = {
        row[:3]: [each.ours.mean for each in row[3:8] if isinstance(each, Share) and each.ours is not None]
        for row in found.rows
    }
    assert means["victim", "triggered", "lora"] == [0.25, 0.25, 0, 0, 0.5]  # 0.6 in single precision is above 0.6
    assert means["victim", "triggered", "prompt_tuning"] == [0, 0, 0, 0, 0.75]  # no number is in no bin
    assert means["victim", "triggered", "all strategies"] == [0.125, 0.125, 0, 0, 0.625]
    assert means["psim", "clean", "–"] == [0.5, 0.25, 0.25, 0, 0]
    assert means["psim", "triggered", "–"] == [0, 0, 0, 1, 0]
    assert [row[8][0] for row in found.rows if row[0] == "psim" and isinstance(row[8], tuple)] == [1, 1]


def test_what_is_no_run_of_the_same_is_not_pooled(tmp_path: Path) -> None:
    word, sentence = cell_at("badnet", "psim_paper"), cell_at("insent", "psim_paper")
    both = cell_at("badnet", "w2s+psim_paper")
    outcome = rates(0.9, 1.0, (0.8, 0.1))
    defences = {**DEFENCES, "w2s+psim_paper": {"unlearner": {}, "psim": {"view": "confidence"}}}
    parts = {cell: {"clean_scores": cell.attack} for cell in (word, sentence, both)}
    cells = [(cell, outcome) for cell in parts]
    sheet, records = write_store(tmp_path, cells, parts=parts, defences=defences, table=12)
    save_arrays(tmp_path / "scores" / "badnet.npz", {"scores": np.array([0.55])})
    save_arrays(tmp_path / "scores" / "insent.npz", {"scores": np.array([0.95])})
    found = certainties_of(sheet, records, tmp_path, "confidence")
    assert [each.name for each in found] == ["confidence-1", "confidence-2"]
    assert ["badnet" in each.heading for each in found] == [True, False]
    for listing, at in zip(found, (3, 7), strict=True):
        (row,) = (row for row in listing.rows if row[:2] == ("psim", "clean"))
        assert isinstance(share := row[at], Share)
        assert share.ours is not None
        assert share.ours.mean == 1


def test_without_arrays_the_printed_values_stand_alone(tmp_path: Path) -> None:
    cell = cell_at("badnet", "psim_paper")
    sheet, records = write_store(tmp_path, [(cell, rates(0.9, 1.0, (0.8, 0.1)))], defences=DEFENCES, table=12)
    (found,) = certainties_of(sheet, records, tmp_path, "confidence")
    assert found.is_empty
    shares = [each for each in found.rows[0] if isinstance(each, Share)]
    assert [share.printed for share in shares] == [0.03, 0.04, 0.13, 0.31, 0.49]


def test_the_printed_shares_are_of_all_texts() -> None:
    sums = {key: sum(shares) for key, shares in CONFIDENCES.items()}
    assert sums["victim", "triggered"] == pytest.approx(1)
    assert sums["psim", "clean"] == pytest.approx(1)
    assert sums["psim", "triggered"] == pytest.approx(0.99)  # as it is printed
