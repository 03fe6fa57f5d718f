"""A page per cell of a plan: the report of an evaluation, from what the store keeps of it, without any model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from foretaste.evaluate.outcome import Outcome
from foretaste.experiment.store import load_arrays
from foretaste.record import Record
from foretaste.report.page import Report, render, software_facts

__all__ = ["arrays_of", "cell_page"]

Array = NDArray[Any]


def cell_page(store: Path, record: Record) -> str | None:
    """Return the page of a cell's record, or None where there is none: no trigger, or the answers were not kept.

    Raises:
        DataError: answers or scores that contradict the record.
    """
    parts: Any = record.settings.get("parts") or {}
    clean, triggered = (arrays_of(store, "answers", parts.get(name)) for name in ("clean", "triggered"))
    if clean is None or triggered is None:
        return None
    outcome = Outcome.from_json(record.outcome)
    scores = _scores(store, parts) if outcome.guarded else (None, None)
    if scores is None:
        return None
    cell: Any = record.settings["cell"]
    names: Any = record.settings["label_names"]
    texts = f", tested with {cell['trigger']}" if cell.get("trigger") else ""
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
            provenance={
                "Cell": axes,
                "Made of": {name: str(key) for name, key in parts.items()},
                "Data": {each.name: each.digest[:12] for each in record.data},
                "Software": software_facts(record),
            },
        )
    )


def _scores(store: Path, parts: Mapping[str, str]) -> tuple[Array, Array] | None:
    """Scores of clean and of triggered texts, by PSIM or by a rival; None where they were not kept."""
    rival = arrays_of(store, "rivals", parts.get("rival"))
    if rival is not None:
        return rival["clean"], rival["triggered"]
    clean, triggered = (arrays_of(store, "scores", parts.get(f"{name}_scores")) for name in ("clean", "triggered"))
    return None if clean is None or triggered is None else (clean["scores"], triggered["scores"])


def arrays_of(store: Path, kind: str, key: str | None) -> dict[str, Array] | None:
    """Return what a store keeps of answers or scores, None where it does not."""
    path = Path(store) / kind / f"{key}.npz"
    return load_arrays(path) if key is not None and path.is_file() else None
