"""The site of a store: a page per plan, ours beside the printed values, with the same tables as CSV and LaTeX.

It needs no model and no torch: all it reads are records and what the plans asked for.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foretaste.evaluate.spread import Spread
from foretaste.files import write_text
from foretaste.record import Record
from foretaste.report.cell_page import cell_page
from foretaste.report.cells import as_csv, read_cells
from foretaste.report.page import environment
from foretaste.report.tables import Entry, Group, Sheet, groups_of, read_sheets

__all__ = ["Page", "as_latex", "difference", "table_csv", "write_site"]


@dataclass(frozen=True)
class Page:
    """A plan's page: its tables, and how many of its cells were run."""

    sheet: Sheet
    groups: Sequence[Group]
    done: int
    shown: frozenset[str] = frozenset()
    """Keys of the cells that have a page of their own."""


def write_site(store: Path, out: Path) -> list[Path]:
    """Write the site of a store into a directory and return the files; the same records give the same bytes.

    Raises:
        DataError: a store without plans or records, or one that holds something else.
        PlanError: a file that cannot be written.
    """
    out, sheets = Path(out), read_sheets(store)
    records = {path.stem: Record.read(path) for path in sorted((Path(store) / "cells").glob("*.json"))}
    asked = {cell["key"] for sheet in sheets for cell in sheet.cells}
    own = {key: html for key in sorted(asked & records.keys()) if (html := cell_page(Path(store), records[key]))}
    pages = []
    for sheet in sheets:
        done = sum(cell["key"] in records for cell in sheet.cells)
        pages.append(Page(sheet, groups_of(sheet, records), done, frozenset(own)))
    files = {"index.html": _rendered("site.html.j2", pages=pages), "cells.csv": as_csv(read_cells(store))}
    for page in pages:
        files[f"{page.sheet.name}.html"] = _rendered("table.html.j2", page=page)
        files[f"{page.sheet.name}.csv"] = table_csv(page)
        files[f"{page.sheet.name}.tex"] = as_latex(page)
    files |= {f"cells/{key}.html": text for key, text in own.items()}
    for name, text in files.items():
        write_text(out / name, text)
    return [out / name for name in files]


def difference(ours: Spread | None, printed: float | None) -> str:
    """Return ours minus the printed value in points, with its sign; empty where one of them is not there.

    >>> difference(Spread(0.9, 0.9, 0.9), 0.925)
    '-2.5'
    """
    return "" if ours is None or printed is None else f"{100 * (ours.mean - printed):+.1f}"


def table_csv(page: Page) -> str:
    """Return a line per entry: ours with the lowest and highest seed, what is printed, and the difference in points."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    rates = ("clean_accuracy", "attack_success_rate")
    columns = [f"{rate}{part}" for rate in rates for part in ("", "_low", "_high", "_printed", "_difference")]
    writer.writerow(
        ["model", "beside", "table", "attack", "row", "strategy", "seeds", "wanted", *columns, "is_printed_doubtful"]
    )
    for group, attack, label, strategy, entry in _entries(page):
        values: list[object] = []
        for ours, printed in _pairs(entry):
            values += ["", "", ""] if ours is None else [ours.mean, ours.low, ours.high]
            values += ["" if printed is None else printed, difference(ours, printed)]
        place = [group.heading, group.beside or "", page.sheet.table or "", attack, label, strategy]
        is_doubtful = "" if entry.printed is None else entry.printed.is_doubtful
        writer.writerow([*place, entry.seeds, entry.wanted, *values, is_doubtful])
    return stream.getvalue()


def as_latex(page: Page) -> str:
    """Return the tables for a paper (package booktabs): CA and ASR per strategy in per cent, the printed pair below."""
    lines = [f"% {page.sheet.title}; ours, below in brackets what is printed"]
    for group in page.groups:
        lines += [f"% {group.heading}", rf"\begin{{tabular}}{{ll{'rr' * len(group.strategies)}}}", r"\toprule"]
        lines.append(
            " & ".join(["", ""] + [rf"\multicolumn{{2}}{{c}}{{{_tex(name)}}}" for name in group.strategies]) + r" \\"
        )
        lines.append(" & ".join(["Attack", "Defence", *["CA", "ASR"] * len(group.strategies)]) + r" \\")
        lines.append(r"\midrule")
        for attack, label, entries in group.rows:
            pairs = [pair for entry in entries for pair in (_pairs(entry) if entry else [(None, None)] * 2)]
            ours = ["--" if own is None else f"{100 * own.mean:.2f}" for own, _ in pairs]
            theirs = ["" if printed is None else f"({100 * printed:.2f})" for _, printed in pairs]
            lines.append(" & ".join([_tex(attack), _tex(label), *ours]) + r" \\")
            if any(theirs):
                lines.append(" & ".join(["", "", *theirs]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(lines)


def _pairs(entry: Entry) -> list[tuple[Spread | None, float | None]]:
    """CA and ASR, ours and printed."""
    printed = entry.printed
    return [
        (entry.clean_accuracy, None if printed is None else printed.clean_accuracy),
        (entry.attack_success_rate, None if printed is None else printed.attack_success_rate),
    ]


def _entries(page: Page) -> list[tuple[Group, str, str, str, Entry]]:
    return [
        (group, attack, label, strategy, entry)
        for group in page.groups
        for attack, label, entries in group.rows
        for strategy, entry in zip(group.strategies, entries, strict=True)
        if entry is not None
    ]


def _tex(text: str) -> str:
    for sign in "\\&%$#_{}":
        text = text.replace(sign, rf"\{sign}" if sign != "\\" else r"\textbackslash ")
    return text


def _rendered(name: str, **given: object) -> str:
    template = environment().get_template(name)
    return template.render(difference=difference, pairs=_pairs, **given)
