"""Tables in other forms: every digit in CSV, what a reader needs in LaTeX and Markdown, nothing that breaks them."""

from __future__ import annotations

import csv

import pytest

from foretaste.errors import DataError
from foretaste.evaluate.interval import Interval
from foretaste.evaluate.spread import Spread
from foretaste.report.listing import Amount, Listing, csv_of, listing_csv, listing_latex, listing_markdown, tex
from foretaste.report.share import Share

OURS = Share(Spread(0.9, 0.88, 0.92), 0.925)
LISTING = Listing(
    "small",
    "A table",
    "What it says.",
    ("Defence", "ASR", "Seconds"),
    [("psim_paper", OURS, Amount(1234.5678, "1,235")), ("a|b & <i>\u202e", Share(None, 0.5), None)],
)


def test_csv_has_all_digits_and_a_column_for_each_part() -> None:
    first, second = csv.DictReader(listing_csv(LISTING).splitlines())
    assert (first["ASR"], first["ASR low"], first["ASR high"], first["ASR printed"]) == ("0.9", "0.88", "0.92", "0.925")
    assert (first["ASR difference"], first["Seconds"]) == ("-2.5", "1234.5678")
    assert (second["Defence"], second["ASR"], second["ASR printed"]) == ("a|b & <i>\u202e", "", "0.5")
    assert (second["ASR difference"], second["Seconds"]) == ("", "")


def test_latex_and_markdown() -> None:
    assert r"psim\_paper & 90.0 [88.0--92.0] (92.50, -2.5) & 1,235 \\" in listing_latex(LISTING)
    assert r"a\textbar{}b \& \textless{}i\textgreater{}" in listing_latex(LISTING)
    head, rule, first, second = listing_markdown(LISTING).splitlines()
    assert (head, rule) == ("| Defence | ASR | Seconds |", "| --- | ---: | ---: |")
    assert first == "| psim_paper | 90.0 [88.0–92.0] (92.50, -2.5) | 1,235 |"
    assert second == r"| a\|b & \<i\>\[U+202E\] | – (50.00) | – |"


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (Share(None), ("", "")),
        (Share(Spread(0.5, 0.5, 0.5), 0.4), ("", "+10.0")),
        (Share(Spread(0.5, 0.5, 0.5), 0.4, is_comparable=False), ("", "")),
        (Share(Spread(0.5, 0.5, 0.5), interval=Interval(0.4, 0.6)), ("95\u202f%: 40.0–60.0", "")),
        (Share(Spread(0.0, -0.01, 0.01)), ("-1.0 to 1.0", "")),
        (Share(Spread(0.5, 0.4, 0.6), interval=Interval(0.1, 0.9)), ("40.0–60.0", "")),
    ],
)
def test_a_share_says_how_far_it_may_be_off(share: Share, shown: tuple[str, str]) -> None:
    assert (share.range, share.difference) == shown


def test_a_line_has_a_value_for_every_column() -> None:
    with pytest.raises(DataError, match="2 values for 1 columns"):
        Listing("a", "A", "", ("one",), [("1", "2")])


def test_words_are_no_formulas_and_no_arguments() -> None:
    written = csv_of(["a"], [["=1+1"], ["@x"], ["+cmd|x"], ["+6.9"], ["-6.9"], [-1.5]])
    assert written.split() == ["a", "'=1+1", "'@x", "'+cmd|x", "+6.9", "-6.9", "-1.5"]
    assert [tex("[2pt]"), tex("*"), tex("a[b]")] == ["{}[2pt]", "{}*", "a[b]"]
