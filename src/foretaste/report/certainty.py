"""Table 12: how sure the victim is of triggered texts, PSIM of clean and of triggered ones, from a store's arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretaste.evaluate.spread import Spread
from foretaste.record import Record
from foretaste.report.cell_page import arrays_of
from foretaste.report.listing import Amount, Listing, Value
from foretaste.report.printed import CONFIDENCES
from foretaste.report.share import Share
from foretaste.report.tables import Sheet

__all__ = ["certainty_of"]

EDGES = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
ROUNDING = 1e-6  # single precision: of two equal classes none may reach a half
CAPTION = (
    "Share of texts whose highest class probability lies in each bin, in per cent: the mean over runs, below it the "
    "lowest and the highest. Victims differ by strategy, PSIM stands before all of them. In brackets what is printed."
)
Array = NDArray[Any]


def certainty_of(sheet: Sheet, records: Mapping[str, Record], store: Path, name: str) -> Listing:
    """Return the shares per bin; a line whose arrays the store does not keep is empty.

    Only defences whose score is PSIM's confidence count: those that look at nothing else (`view`).
    """
    found: dict[tuple[str, str, str], list[Array]] = {("victim", "triggered", "all strategies"): []}
    found |= {("psim", texts, "–"): [] for texts in ("clean", "triggered")}
    seen: set[Any] = set()
    for cell in sheet.cells:
        if (
            cell["key"] not in records
            or sheet.defences.get(cell["defence"], {}).get("psim", {}).get("view") != "confidence"
        ):
            continue
        for whose, texts, strategy, part, values in _certainties(store, records[cell["key"]]):
            if part in seen:  # one guard stands before the victims of all strategies
                continue
            seen.add(part)
            found.setdefault((whose, texts, strategy), []).append(_shares(values))
            if whose == "victim":
                found["victim", "triggered", "all strategies"].append(_shares(values))
    rows: list[Sequence[Value]] = []
    for (whose, texts, strategy), runs in found.items():
        printed: Sequence[float | None] = CONFIDENCES[whose, texts]
        if strategy not in ("all strategies", "–"):
            printed = (None,) * len(printed)
        shares = [Share(Spread.of([run[at] for run in runs]), printed[at]) for at in range(len(printed))]
        rows.append((whose, texts, strategy, *shares, Amount(len(runs), str(len(runs)))))
    bins = [f"{low:.1f} to {high:.1f}" for low, high in pairwise(EDGES)]
    columns = ("Model", "Texts", "Strategy", *bins, "Runs")
    return Listing(name, "Confidence", CAPTION, columns, rows, labels=3)


def _certainties(store: Path, record: Record) -> Iterator[tuple[str, str, str, str, Array]]:
    """Whose, of which texts, of which strategy, the key of the arrays and the arrays, of what the store keeps."""
    parts: Any = record.settings["parts"]
    cell: Any = record.settings["cell"]
    answers = arrays_of(store, "answers", parts.get("triggered"))
    if answers is not None and "certainty" in answers:
        yield "victim", "triggered", cell["strategy"], parts["triggered"], answers["certainty"]
    for texts in ("clean", "triggered"):
        scores = arrays_of(store, "scores", parts.get(f"{texts}_scores"))
        if scores is not None:
            yield "psim", texts, "–", parts[f"{texts}_scores"], scores["scores"]


def _shares(certainties: Array) -> Array:
    """The share of `(N,)` certainties in each bin; its upper end belongs to the last alone."""
    edges = EDGES.copy()
    edges[[0, -1]] += -ROUNDING, ROUNDING
    counts, _ = np.histogram(certainties.astype(np.float64), edges)
    return counts / len(certainties)
