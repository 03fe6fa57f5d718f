"""A table of shares, amounts and words, and its forms: CSV with all digits, LaTeX and Markdown for a reader."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from foretaste.errors import DataError
from foretaste.report.page import plain
from foretaste.report.share import Share, points

__all__ = [
    "SHARE_PARTS",
    "Amount",
    "Listing",
    "Value",
    "csv_of",
    "in_markdown",
    "in_one_line",
    "listing_csv",
    "listing_latex",
    "listing_markdown",
    "long_form",
    "markdown",
    "mean_amount",
    "mean_share",
    "share_values",
    "tex",
]


LONGEST = 2000  # characters of a caption


class Amount(NamedTuple):
    """A number with the words that a reader gets for it."""

    value: float
    text: str


def mean_amount(values: Sequence[float | None], shown: Callable[[float], str], scale: float = 1.0) -> Amount | None:
    """Return the mean of the values that are known, times `scale`, as it is `shown` to a reader; None of none."""
    known = [value for value in values if value is not None]
    return Amount(mean := scale * fmean(known), shown(mean)) if known else None


def mean_share(shares: Sequence[float | None]) -> Amount | None:
    """Return the mean of the shares that are known, in per cent for a reader; None of none."""
    return mean_amount(shares, points)


Value = Share | Amount | str | None


@dataclass(frozen=True)
class Listing:
    """A table; the first `labels` columns say what a line is of. None is shown as a dash.

    `name` is that of its files, `caption` says what the numbers are.

    Raises:
        DataError: a line with more or fewer values than there are columns.
    """

    name: str
    heading: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]
    labels: int = 1

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise DataError(f"{self.heading}: {len(row)} values for {len(self.columns)} columns in {row[0]!r}.")

    @property
    def is_empty(self) -> bool:
        """True if nothing of ours is in it."""
        return all(value.ours is None for row in self.rows for value in row if isinstance(value, Share))


def listing_csv(listing: Listing) -> str:
    """Return a line per row; a share has columns for the lowest, the highest, the printed value and the difference."""
    rates = [any(isinstance(row[at], Share) for row in listing.rows) for at in range(len(listing.columns))]
    header: list[str] = []
    for column, is_rate in zip(listing.columns, rates, strict=True):
        header += [f"{column}{part}" for part in SHARE_PARTS] if is_rate else [column]
    lines: list[list[object]] = []
    for row in listing.rows:
        line: list[object] = []
        for value, is_rate in zip(row, rates, strict=True):
            line += share_values(value if isinstance(value, Share) else Share(None)) if is_rate else [_plain(value)]
        lines.append(line)
    return csv_of(header, lines)


def listing_latex(listing: Listing) -> str:
    """Return the table for a paper (package booktabs), with all that `listing_markdown` tells."""
    numbers = len(listing.columns) - listing.labels
    lines = [
        f"% {in_one_line(listing.heading)}",
        rf"\begin{{tabular}}{{{'l' * listing.labels}{'r' * numbers}}}",
        r"\toprule",
    ]
    lines += [" & ".join(map(tex, listing.columns)) + r" \\", r"\midrule"]
    for row in listing.rows:
        lines.append(" & ".join(tex(_words(value)) for value in row) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def listing_markdown(listing: Listing) -> str:
    """Return the table in Markdown: mean, lowest to highest in square brackets, what is printed in round ones."""
    rows = [[long_form(value) for value in row] for row in listing.rows]
    return markdown([in_markdown(column) for column in listing.columns], rows, listing.labels)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], labels: int) -> str:
    """Return lines of a Markdown table, numbers to the right; `in_markdown` words stay words."""
    rule = ["---"] * labels + ["---:"] * (len(columns) - labels)
    lines = [columns, rule, *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


_FORMULA = re.compile(r"[=@\t\r]|[+-](?![\d.]+$)")
_TEX = {
    **{sign: rf"\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "–": "--",
}  # fmt: skip
SHARE_PARTS = ("", " low", " high", " printed", " difference")


def share_values(share: Share) -> list[object]:
    """Return mean, lowest, highest, printed value and difference, empty where there is none."""
    ours: list[object] = ["", "", ""] if share.ours is None else [share.ours.mean, share.ours.low, share.ours.high]
    return [*ours, "" if share.printed is None else share.printed, share.difference]


def csv_of(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Return lines as CSV; words that a spreadsheet would read as a formula begin with a quote."""
    stream = io.StringIO()
    safe = ([f"'{each}" if isinstance(each, str) and _FORMULA.match(each) else each for each in line] for line in lines)
    csv.writer(stream, lineterminator="\n").writerows([header, *safe])
    return stream.getvalue()


def in_one_line(text: str) -> str:
    """Return a text for a comment of LaTeX, which ends with its line."""
    return " ".join(text.split())


def tex(text: str) -> str:
    """Escape what LaTeX would read as a command, as what a command before it is given, or print as another sign.

    >>> print(tex("50 % of a_b~c^d"))
    50 \\% of a\\_b\\textasciitilde{}c\\textasciicircum{}d
    """
    line = " ".join(text.split())
    return "{}" * line.startswith(("[", "*")) + "".join(_TEX.get(sign, sign) for sign in line)


def _plain(value: Value) -> object:
    return value.value if isinstance(value, Amount) else "" if value is None else value


def long_form(value: Value) -> str:
    """Return a value for a Markdown table."""
    return _words(value) if isinstance(value, Share) else in_markdown(_words(value))


def _words(value: Value) -> str:
    if isinstance(value, Share):
        return " ".join(_parts(value))
    return "–" if value is None else value.text if isinstance(value, Amount) else value


def _parts(share: Share) -> Iterator[str]:
    yield "–" if share.ours is None else points(share.ours.mean)
    if share.range:
        yield f"[{share.range}]"
    if share.printed is not None:
        yield f"({points(share.printed, 2)}{', ' if share.difference else ''}{share.difference})"


def in_markdown(text: str) -> str:
    """Escape what Markdown would read as more than words."""
    shown = plain(" ".join(text.split()), LONGEST)
    for sign in "\\`*[]<>|":
        shown = shown.replace(sign, f"\\{sign}")
    return shown
