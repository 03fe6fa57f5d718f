"""Methods side by side: every figure is on the page, hostile names are not obeyed, the same bytes again."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from foretaste.errors import DataError
from foretaste.evaluate.spread import Spread
from foretaste.report.comparison import Comparison, Panel, Row, comparison_chart, write_comparison

ROWS = [
    Row("left alone", Spread.of([0.85, 0.87]), Spread.of([1.0, 1.0]), (Spread.of([0.85, 0.87]), "2,500", None)),
    Row("<b>w2s</b>\u202e", Spread.of([0.86]), None, (Spread.of([0.86]), "500", Spread.of([0.0314]))),
]
PANEL = Panel(heading="BadNet", caption="Blue: kept. Orange: left.", rows=ROWS, floor=0.02)
PAGE = Comparison(title="Unlearners", sentence="One wins.", columns=("CA", "texts", "ASR"), panels=[PANEL, PANEL])


def test_a_spread_is_that_of_what_is_known() -> None:
    assert Spread.of([0.25, None, 0.75]) == Spread(0.5, 0.25, 0.75)
    assert Spread.of([None]) is None


def test_all_figures_are_on_the_page_and_names_are_text(tmp_path: Path) -> None:
    write_comparison(tmp_path / "page.html", PAGE)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for shown in ("86\u202f%", "85.0\u202f% to 87.0\u202f%", "2,500", "3.1\u202f%", "One wins.", "–"):
        assert shown.replace("86\u202f%", "86.0\u202f%") in page
    assert "<b>w2s" not in page
    assert "\u202e" not in page
    assert "[U+202E]" in page
    assert page.count("<svg") == 2
    assert "<script" not in page
    write_comparison(tmp_path / "again.html", PAGE)
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "page.html").read_bytes()


def test_the_chart_says_in_words_what_it_shows() -> None:
    root = ElementTree.fromstring(comparison_chart(PANEL, "one"))
    label = root.attrib["aria-label"]
    assert "left alone: kept 86.0\u202f%, left 100\u202f%" in label
    assert "upright marks at 2.0\u202f%" in label


def test_a_row_has_a_cell_for_every_column() -> None:
    with pytest.raises(DataError, match="has 3 cells for 2 columns"):
        Comparison(title="", sentence="", columns=("CA", "texts"), panels=[PANEL])
