"""The values that Zhao et al. (2024, arXiv 2402.12168) print: tables 1 to 11 and 13 from a file, 12 and 14 here."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from statistics import fmean
from typing import Any, NamedTuple

__all__ = ["CONFIDENCES", "RESOURCES", "Printed", "printed_mean", "printed_value"]

KEYS = ("table", "dataset", "model", "attack", "defence", "strategy")
# Where PSIM's strategy or its reset rate is what the table is about, it tells rows apart.
_FURTHER = {3: "psim_strategy", 13: "reset_rate"}
# Table 12: the share of texts in each bin of confidence, 0.5 to 0.6 and so on up to 1, of whom and on which texts.
CONFIDENCES = {
    ("victim", "triggered"): (0.03, 0.04, 0.13, 0.31, 0.49),
    ("psim", "clean"): (0.70, 0.28, 0.02, 0.0, 0.0),
    ("psim", "triggered"): (0.0, 0.01, 0.11, 0.31, 0.56),
}
# Table 14: whether a defence takes another module, graphics memory and storage.
RESOURCES = {
    "wedef": (True, True, True),
    "fine_mixing": (True, True, True),
    "darcy": (True, True, False),
    "attdef": (True, True, True),
    "psim": (True, True, True),
}
_UNSTATED = "unstated"
_DEFENCES = {"psim_paper": "psim", "back_translation_stored": "back_translation", "scpd_stored": "scpd"}
_ATTACKS = {"mixed": "badnet+insent", "synattack_sbar": "synattack"}


class Printed(NamedTuple):
    """A printed pair; `doubtful` are those of the two with damaged glyphs, or that are no share of the test set."""

    clean_accuracy: float
    attack_success_rate: float | None
    doubtful: frozenset[str]


def printed_value(table: int, model: str, cell: Mapping[str, Any]) -> Printed | None:
    """Return what the paper prints for a cell, given by its axes, in the column of `model`; None if nothing.

    >>> cell = {"data": "sst2", "knowledge": "full_task", "attack": "none", "defence": "none", "strategy": "lora"}
    >>> printed_value(1, "bert-large", cell).clean_accuracy
    0.9284
    """
    if cell.get("trigger") is not None:
        return None  # the paper tests each base with its own trigger
    defence = _DEFENCES.get(cell["defence"], str(cell["defence"]))
    attack = _ATTACKS.get(cell["attack"], cell["attack"])
    further = cell.get(_FURTHER[table]) or "" if table in _FURTHER and defence == "psim" else ""
    further = f"{further:g}" if isinstance(further, float) else str(further)
    for data in (str(cell["data"]), _UNSTATED):  # Table 11 names no data set
        for knowledge in (cell["knowledge"], _UNSTATED):
            key = (table, data, model, attack, defence, str(cell["strategy"]), further, knowledge)
            if found := _values().get(key):
                return found
    return None


def printed_mean(tables: Sequence[int], attack: str) -> tuple[float, float] | None:
    """Return the mean ASR behind PSIM and the mean loss of CA over all models and strategies of tables, if any.

    >>> [round(share, 4) for share in printed_mean((1, 2, 4, 5, 6, 7), "badnet")]
    [0.0145, 0.011]
    """
    rates, losses = [], []
    for key, value in _values().items():
        plain = _values().get((*key[:4], "none", *key[5:6], "", *key[7:]))
        if key[0] in tables and key[3] == attack and key[4] == "psim" and plain is not None:
            assert value.attack_success_rate is not None
            rates.append(value.attack_success_rate)
            losses.append(plain.clean_accuracy - value.clean_accuracy)
    return (fmean(rates), fmean(losses)) if rates else None


@cache
def _values() -> Mapping[tuple[Any, ...], Printed]:
    found: dict[tuple[Any, ...], Printed] = {}
    text = (files("foretaste.report") / "printed.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        table = int(row["table"])
        further = row[_FURTHER[table]] if table in _FURTHER and row["defence"] == "psim" else ""
        rates = [_share(row[name]) for name in ("clean_accuracy", "attack_success_rate")]
        assert rates[0] is not None
        value = Printed(rates[0], rates[1], frozenset(row["doubtful"].split()))
        found[(table, *(row[name] for name in KEYS[1:]), further, row["knowledge"])] = value
    return found


def _share(per_cent: str) -> float | None:
    return round(float(per_cent) / 100, 6) if per_cent else None
