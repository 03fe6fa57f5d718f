"""A page per cell of a plan: the report of an evaluation, from what the store keeps of it, without any model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from foretaste.errors import DataError
from foretaste.evaluate.outcome import Outcome
from foretaste.experiment.store import load_arrays, sources_of
from foretaste.record import Record
from foretaste.report.cells import cell_of
from foretaste.report.page import Report, render, software_facts

__all__ = ["arrays_of", "cell_page"]

SAID = ("labels", "predicted")
Array = NDArray[Any]


def cell_page(store: Path, record: Record) -> str | None:
    """Return the page of a cell's record, or None where there is none: no trigger, or what it read was not kept.

    Raises:
        DataError: answers or scores that contradict the record.
    """
    clean, triggered = (arrays_of(store, record, "answers", name, *SAID) for name in ("clean", "triggered"))
    if clean is None or triggered is None:
        return None
    try:
        outcome = Outcome.from_json(record.outcome)
    except DataError as error:
        raise DataError(f"The record of {cell_of(record)}: {error}") from None
    scores = _scores(store, record) if outcome.guarded else (None, None)
    if scores is None:
        return None
    cell: Any = record.settings["cell"]
    parts: Any = record.settings["parts"]
    names: Any = record.settings["label_names"]
    texts = f", tested with {cell['trigger']}" if cell.get("trigger") else ""
    cut: Any = record.outcome.get("n_cut") or 0
    notes = (f"{cut} of {outcome.n_poisoned} triggered texts were longer than the victim reads.",) if cut else ()
    axes = {name: str(value) for name, value in cell.items() if value is not None}
    return render(
        Report(
            title=f"{cell['attack']}{texts} on {cell['data']}, {cell['strategy']}, defence {cell['defence']}",
            outcome=outcome,
            clean_labels=clean["labels"],
            clean_predicted=clean["predicted"],
            poisoned_labels=triggered["labels"],
            poisoned_predicted=triggered["predicted"],
            target=outcome.target,
            label_names=names,
            clean_scores=scores[0],
            poisoned_scores=scores[1],
            threshold=outcome.guarded.threshold if outcome.guarded else None,
            notes=notes,
            up="../index.html",
            provenance={
                "Cell": axes,
                "Made of": {name: str(key) for name, key in parts.items()},
                "Data": {each.name: each.digest[:12] for each in record.data},
                "Software": software_facts(record),
            },
        )
    )


def _scores(store: Path, record: Record) -> tuple[Array, Array] | None:
    """Scores of clean and of triggered texts, by PSIM or by a rival; None where they were not kept."""
    rival = arrays_of(store, record, "rivals", "rival", "clean", "triggered")
    if rival is not None:
        return rival["clean"], rival["triggered"]
    clean, triggered = (
        arrays_of(store, record, "scores", f"{name}_scores", "scores") for name in ("clean", "triggered")
    )
    return None if clean is None or triggered is None else (clean["scores"], triggered["scores"])


def arrays_of(store: Path, record: Record, kind: str, part: str, *needed: str) -> dict[str, Array] | None:
    """Return the answers or scores that a cell's record was made from.

    None where a store does not keep them, or has them anew of weights that were made again and came out otherwise.

    Raises:
        DataError: a file that is damaged or has not the arrays that are `needed`, each a row of numbers.
    """
    parts: Any = record.settings.get("parts") or {}
    key = str(parts.get(part, ""))
    path = Path(store) / kind / f"{key}.npz"
    if not re.fullmatch(r"\w{1,64}", key) or not path.is_file():  # a stranger's record may hold anything
        return None
    arrays, sources = load_arrays(path), record.settings.get("sources")
    known = sources.items() if isinstance(sources, dict) else frozenset()
    if any(name not in arrays or arrays[name].ndim != 1 or arrays[name].dtype.kind not in "fiu" for name in needed):
        raise DataError(f"{path} is damaged: it has no {' and '.join(needed)}. Delete it.")
    return arrays if sources_of(arrays).items() <= known else None
