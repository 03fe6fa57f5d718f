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

__all__ = ["certainties_of"]

EDGES = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
ROUNDING = 1e-6  # single precision: of two equal classes none may reach a half
CAPTION = (
    "Share of texts whose highest class probability lies in each bin, in per cent: the mean over runs, below it the "
    "lowest and the highest. Victims differ by strategy, PSIM stands before all of them. In brackets what is printed."
)
Array = NDArray[Any]
_APART = ("model", "data", "knowledge", "attack", "trigger", "defence", "psim_strategy", "reset_rate", "threshold")
_BINS = tuple(f"{low:.1f} to {high:.1f}" for low, high in pairwise(EDGES))
_COLUMNS = ("Model", "Texts", "Strategy", *_BINS, "Runs")


def certainties_of(sheet: Sheet, records: Mapping[str, Record], store: Path, name: str) -> list[Listing]:
    """Return the shares per bin, a table for each model, data set, attack and defence; lines without arrays are empty.

    Only defences that are PSIM alone with its confidence as the score count: those that look at nothing else (`view`).
    """
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for cell in sheet.cells:
        defence = sheet.defences.get(cell["defence"], {})
        if defence.keys() == {"psim"} and defence["psim"].get("view") == "confidence":
            groups.setdefault(tuple(str(cell[axis]) for axis in _APART if cell[axis] is not None), []).append(cell)
    found = []
    for number, (place, cells) in enumerate(groups.items(), 1):
        alone = len(groups) == 1
        heading = "Confidence" if alone else f"Confidence: {', '.join(place)}"
        rows = _rows([records[cell["key"]] for cell in cells if cell["key"] in records], store)
        found.append(Listing(name if alone else f"{name}-{number}", heading, CAPTION, _COLUMNS, rows, labels=3))
    return found


def _rows(records: Sequence[Record], store: Path) -> list[Sequence[Value]]:
    found: dict[tuple[str, str, str], list[Array]] = {("victim", "triggered", "all strategies"): []}
    found |= {("psim", texts, "–"): [] for texts in ("clean", "triggered")}
    seen: set[str] = set()
    for record in records:
        for whose, texts, strategy, part, values in _certainties(store, record):
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
    return rows


def _certainties(store: Path, record: Record) -> Iterator[tuple[str, str, str, str, Array]]:
    """Whose, of which texts, of which strategy, the key of the arrays and the arrays, of what the store keeps."""
    parts: Any = record.settings["parts"]
    cell: Any = record.settings["cell"]
    answers = arrays_of(store, record, "answers", "triggered")
    if answers is not None and "certainty" in answers:
        yield "victim", "triggered", cell["strategy"], parts["triggered"], answers["certainty"]
    for texts in ("clean", "triggered"):
        scores = arrays_of(store, record, "scores", f"{texts}_scores", "scores")
        if scores is not None:
            yield "psim", texts, "–", parts[f"{texts}_scores"], scores["scores"]


def _shares(certainties: Array) -> Array:
    """The share of `(N,)` certainties in each bin; its upper end belongs to the last alone."""
    edges = EDGES.copy()
    edges[[0, -1]] += -ROUNDING, ROUNDING
    counts, _ = np.histogram(certainties.astype(np.float64), edges)
    return counts / len(certainties)
