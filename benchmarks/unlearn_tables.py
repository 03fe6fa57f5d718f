"""Tables and page of unlearn_study.py, from its records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foretaste.errors import DataError
from foretaste.evaluate.spread import Spread
from foretaste.record import Record
from foretaste.report.comparison import Comparison, Panel, Row
from foretaste.report.page import software_facts

Cell = tuple[str, str, int, int]  # attack, method, number of clean texts, seed
LATER = ("lora", "prompt_tuning", "p_tuning_v1", "p_tuning_v2", "full")
HEADINGS = {
    "badnet": "BadNet, a word",
    "insent": "InSent, a sentence",
    "smoothed": "BadNet with labels smoothed to 0.6",
    "syntax": "SynAttack, stored paraphrases",
    "sound": "Never poisoned, with the word of BadNet",
    "sound-syntax": "Never poisoned, with the paraphrases",
}
REFERENCE = {"badnet": "sound", "smoothed": "sound", "insent": "sound", "syntax": "sound-syntax"}
COLUMNS = ("texts", "seeds", "CA", "ASR", "strict ASR", "reversed", "behind PSIM", "trained", "seconds", "GB")
RATES = ("clean_accuracy", "attack_success_rate", "strict_attack_success_rate")
THEN = tuple(f"then {name.replace('_', ' ')}: CA, strict ASR, behind PSIM" for name in LATER)
CAPTION = (
    "Blue: clean accuracy. Orange: strict ASR, of texts answered right without the trigger. Dots are means over seeds, "
    "lines go from the lowest to the highest; upright marks: strict ASR of a model that was never poisoned."
)
Found = dict[tuple[str, str, int], list[dict[str, Any]]]


def path_of(store: Path, split: str, name: str, method: str, size: int, seed: int) -> Path:
    """Where a cell's record lies."""
    return store / f"{split}-{name}-{method.replace(', ', '-')}-{size}-{seed}.json"


def table(cells: Sequence[Cell], store: Path, split: str) -> str:
    """Return two tables, per cent, mean (lowest to highest seed): what comes out, and what tuning makes of it."""
    found = _found(cells, store, split)
    washed, then = [], []
    for (name, method, size), records in found.items():
        washed.append([name, method, *_cells(size, records)])
        then.append([name, method, f"{size:,}", *_then(records)])
        if "also" in records[0]["outcome"]:
            also = [record["outcome"]["also"] for record in records]
            more = [f"{size:,}", str(len(also)), *(_spread(also, key) for key in RATES)]
            washed.append([f"{name}, sentence", method, *more, *[""] * (len(COLUMNS) - len(more))])
    return "\n\n".join(
        "\n".join("| " + " | ".join(map(_printed, row)) + " |" for row in (head, ["---"] * len(head), *rows))
        for head, rows in ((("attack", "method", *COLUMNS), washed), (("attack", "method", "texts", *THEN), then))
    )


def comparison(cells: Sequence[Cell], store: Path, split: str) -> Comparison:
    """Return the page: one panel per attack, methods in the study's order."""
    found, panels = _found(cells, store, split), []
    if not found:
        raise DataError(f"{store} holds no record of the {split} split.")
    for name in dict.fromkeys(key[0] for key in found):
        rows = []
        for (own, method, size), records in found.items():
            if own == name:
                outcomes = [record["outcome"]["washed"] for record in records]
                shown = "left alone" if method == "none" else method
                label = shown if size == max(key[2] for key in found) else f"{shown}, {size:,} texts"
                kept, left = _spread(outcomes, RATES[0]), _spread(outcomes, RATES[2])
                rows.append(Row(label, kept, left, [*_cells(size, records), *_then(records)]))
        panels.append(Panel(heading=HEADINGS[name], caption=CAPTION, rows=rows, floor=_floor(found, name)))
    first = Record.read(path_of(store, split, *next(c for c in cells if path_of(store, split, *c).exists())))
    return Comparison(
        title="Unlearners compared",
        sentence="What each method leaves of a backdoor, and what it costs in clean accuracy: as it comes out, after "
        "another fine-tuning, and behind PSIM.",
        columns=(*COLUMNS, *THEN),
        panels=panels,
        notes=[f"MiniLM, SST-2, {split} split; docs/unlearning.md says what is measured and where it falls short."],
        provenance={
            "Software": software_facts(first),
            "Data": {use.name: use.digest[:12] for use in first.data},
        },
    )


def _found(cells: Sequence[Cell], store: Path, split: str) -> Found:
    found: Found = {}
    for cell in sorted(cells, key=lambda c: (list(HEADINGS).index(c[0]), -c[2])):
        path = path_of(store, split, *cell)
        if path.exists():
            found.setdefault(cell[:3], []).append(json.loads(path.read_text(encoding="utf-8")))
    return found


def _cells(size: int, records: Sequence[dict[str, Any]]) -> list[Spread | str | None]:
    outcomes, costs = ([record[part] for record in records] for part in ("outcome", "cost"))
    row: list[Spread | str | None] = [f"{size:,}", str(len(records))]
    row += [_spread([o["washed"] for o in outcomes], key) for key in RATES]
    row.append(_spread([o["reversed"] for o in outcomes], RATES[2]))
    row.append(_spread([o["washed"]["guarded"] for o in outcomes], RATES[2]))
    row.append(f"{costs[0]['trainable_parameters'] or 0:,}")
    row.append(f"{np.mean([cost['seconds'] for cost in costs]):.0f}")
    row.append(f"{max(cost['peak_memory_bytes'] for cost in costs) / 1e9:.1f}")
    return row


def _then(records: Sequence[dict[str, Any]]) -> list[str]:
    """After each later fine-tuning: CA, strict ASR, strict ASR behind PSIM, means in per cent."""
    cells = []
    for later in LATER:
        after = [record["outcome"][later] for record in records]
        shares = [_spread(after, RATES[0]), _spread(after, RATES[2]), _spread([o["guarded"] for o in after], RATES[2])]
        cells.append(", ".join("–" if share is None else f"{100 * share.mean:.1f}" for share in shares))
    return cells


def _floor(found: Found, name: str) -> float | None:
    """Strict ASR of the same trigger on a model that was never poisoned and left alone."""
    records = found.get((REFERENCE.get(name, ""), "none", max(key[2] for key in found)), [])
    part = "also" if name == "insent" else "washed"
    spread = _spread([record["outcome"].get(part, {}) for record in records], "strict_attack_success_rate")
    return None if spread is None else spread.mean


def _spread(outcomes: Sequence[dict[str, Any]], key: str) -> Spread | None:
    return Spread.of([outcome.get(key) for outcome in outcomes])


def _printed(cell: Spread | str | None) -> str:
    if cell is None or isinstance(cell, str):
        return "–" if cell is None else cell
    text = f"{100 * cell.mean:.1f}"
    return text if cell.low == cell.high else f"{text} ({100 * cell.low:.1f} to {100 * cell.high:.1f})"
