"""The site of a store: a page per plan, ours beside the printed values, with the same tables as CSV, LaTeX, Markdown.

It needs no model and no torch: all it reads are records, what the plans asked for, and the arrays a store may keep.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from foretaste.errors import DataError
from foretaste.files import new_directory, refuse_foreign_directory, write_json, write_text
from foretaste.record import Record
from foretaste.report.cell_page import cell_page
from foretaste.report.cells import as_csv, cell_of, read_cells
from foretaste.report.forms import as_latex, as_markdown, table_csv
from foretaste.report.listing import listing_csv
from foretaste.report.page import environment
from foretaste.report.plan_page import page_of
from foretaste.report.tables import Sheet, read_sheets
from foretaste.report.targets import targets_of
from foretaste.spec import values_of

__all__ = ["write_site"]

TOGETHER = 8  # pages that a process is given at a time; fewer are not worth processes, which take seconds to start
SAID = 100  # pages between two lines of progress


def write_site(
    store: Path, out: Path, *, processes: int = 1, say: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Write the site of a store into a directory and return the files; the same records give the same bytes.

    An older site there is replaced as a whole.

    Pages of cells, which take most of the time, are drawn by so many `processes`; `say` is told how far they are.

    Raises:
        DataError: a store without plans or records, or one that holds something else.
        PlanError: a directory that holds something else, or cannot be written.
    """
    store, out = Path(store), Path(out)
    refuse_foreign_directory(out, "site")
    sheets, records = sorted(read_sheets(store), key=_place), read_cells(store)
    _refuse_others(store, sheets, records)
    asked = {cell["key"] for sheet in sheets for cell in sheet.cells}
    own = _cell_pages(store, {key: records[key] for key in sorted(asked & records.keys())}, processes, say)
    pages = [page_of(sheet, records, store, frozenset(own)) for sheet in sheets]
    targets = targets_of(sheets, records)
    files = {
        "index.html": _rendered("site.html.j2", pages=pages, targets=targets),
        "results.md": as_markdown(pages, targets),
        "cells.csv": as_csv(records, has_costs=True),
    }
    if targets is not None:
        files["csv/targets.csv"] = listing_csv(targets)
    for page in pages:
        name = page.sheet.name
        files[f"{name}.html"] = _rendered("table.html.j2", page=page)
        files[f"{name}.csv"] = table_csv(page)
        files[f"{name}.tex"] = as_latex(page)
        files |= {f"csv/{name}/{listing.name}.csv": listing_csv(listing) for listing in page.listings}
    files |= {f"cells/{key}.html": text for key, text in own.items()}
    with new_directory(out, "site") as beside:
        for path, text in files.items():
            write_text(beside / path, text)
        write_json(beside / "foretaste.json", {"kind": "site"})
    return [out / path for path in files]


def _refuse_others(store: Path, sheets: Sequence[Sheet], records: Mapping[str, Record]) -> None:
    """Raise DataError where the record at a cell's key is one of another cell."""
    for sheet in sheets:
        for cell in sheet.cells:
            record = records.get(cell["key"])
            if record is not None and {**values_of(cell_of(record)), "key": cell["key"]} != cell:
                raise DataError(
                    f"{store}/cells/{cell['key']}.json is of another cell than {sheet.name} asked for: "
                    f"{cell_of(record)}."
                )


def _cell_pages(
    store: Path, records: Mapping[str, Record], processes: int, say: Callable[[str], None]
) -> dict[str, str]:
    """Return the pages of those cells that have one, by their keys."""

    def kept(pages: Iterable[str | None]) -> dict[str, str]:
        found = dict[str, str]()
        for done, (key, page) in enumerate(zip(records, pages, strict=True), start=1):
            if page is not None:
                found[key] = page
            if not done % SAID:
                say(f"{done} of {len(records)} cells looked through")
        return found

    draw = partial(cell_page, store)
    processes = min(processes, math.ceil(len(records) / TOGETHER))
    if processes <= 1:
        return kept(map(draw, records.values()))
    pool = ProcessPoolExecutor(processes, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        return kept(pool.map(draw, records.values(), chunksize=TOGETHER))
    finally:
        pool.shutdown(cancel_futures=True)


def _place(sheet: Sheet) -> tuple[int, int, str, str]:
    """Tables of the paper first, then its figures, then all else."""
    if sheet.table is not None:
        return 0, sheet.table, "", sheet.name
    return (2, 0, "", sheet.name) if sheet.figure is None else (1, 0, sheet.figure, sheet.name)


def _rendered(name: str, **given: object) -> str:
    return environment().get_template(name).render(**given)
