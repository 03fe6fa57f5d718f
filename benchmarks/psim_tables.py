"""Print the tables of docs/psim.md from the records of psim_study.py, as Markdown: mean (lowest to highest seed).

python benchmarks/psim_tables.py --store runs/psim-study [--default lora_both]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from psim_study import DOSES, FOLLOWED, PROXIES, RATES, RECIPES, SEEDS, TRIGGERS, VICTIMS

LOST = 0.02
ATTACKS = {"badnet": "BadNet", "insent": "InSent"}
# Zhao et al. 2024, table 1 (SST-2, full task knowledge, BERT-large), in per cent:
# CA and ASR of the attacked victim, CA and ASR with PSIM.
PAPER = {
    ("badnet", "full"): (93.06, 77.63, 91.08, 4.65),
    ("badnet", "lora"): (92.00, 99.70, 90.02, 7.92),
    ("badnet", "p_tuning_v1"): (92.14, 99.30, 90.17, 4.95),
    ("insent", "full"): (92.46, 68.24, 86.29, 9.35),
    ("insent", "lora"): (92.49, 100.0, 86.34, 17.82),
    ("insent", "p_tuning_v1"): (92.86, 99.26, 86.76, 17.38),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--default", default="default", choices=RECIPES)
    arguments = parser.parse_args()
    store = arguments.store
    parts = [bases(store), doses(store), recipes(store), int8(store), rates(store), victims(store, arguments.default)]
    sys.stdout.write("\n\n".join(parts) + "\n")


def bases(store: Path) -> str:
    """The poisoned bases: CA and ASR right after poisoning, on the proxy's validation split."""
    rows = []
    for attack in TRIGGERS:
        for knowledge, proxy in PROXIES.items():
            found = [r["outcome"] for r in _records(store, "base", attack, knowledge)]
            cells = [_spread(found, key) for key in ("clean_accuracy", "attack_success_rate")]
            rows.append([ATTACKS[attack], f"full {knowledge} ({proxy})", str(len(found)), *cells])
    return _table(["attack", "knowledge (proxy)", "seeds", "CA", "ASR"], rows)


def doses(store: Path) -> str:
    """FAR at 1 % FRR on the worst base, at the first step below each dose; how many bases were lost; the margin."""
    rows = []
    for recipe in FOLLOWED:
        found = [r for a in TRIGGERS for k in PROXIES for r in _records(store, "dose", a, k, recipe)]
        cells = []
        for dose in DOSES:
            at = [r["doses"][str(dose)] for r in found if str(dose) in r["doses"]]
            if at:
                lost = sum(entry["far_at_1"] > LOST for entry in at)
                margin = min(entry["triggered_5"] - entry["clean_99"] for entry in at)
                worst = max(entry["far_at_1"] for entry in at)
                cells.append(f"{lost} of {len(at)} lost, {worst:.0%}, {margin:+.2f}")
            else:
                cells.append("not reached")
        rows.append([recipe, str(len(found)), *cells])
    return _table(["recipe", "bases", *(f"dose {dose}" for dose in DOSES)], rows)


def recipes(store: Path) -> str:
    """Every recipe on the test split, over all attacks, knowledge settings and seeds, and the worst single base."""
    rows = []
    for recipe in RECIPES:
        found = [r["outcome"] for a in TRIGGERS for k in PROXIES for r in _records(store, "recipe", a, k, recipe)]
        keys = ("auroc", "far_at_1", "frr", "far", "frr_07", "far_07")
        is_bar_printed = RECIPES[recipe].view == "confidence"  # 0.7 is a probability
        cells = [_spread(found, key, percent=key != "auroc") if is_bar_printed or not key.endswith("_07") else "–"
                 for key in keys]  # fmt: skip
        rows.append([recipe, str(len(found)), *cells, _spread(found, "seconds", percent=False)])
    head = ["recipe", "bases", "AUROC", "FAR at 1 % FRR", "FRR", "FAR", "FRR at 0.7", "FAR at 0.7", "seconds"]
    return _table(head, rows)


def int8(store: Path) -> str:
    """The same guards calibrated and scored in int8."""
    rows = []
    for recipe in RECIPES:
        found = [r["outcome"] for a in TRIGGERS for k in PROXIES for r in _records(store, "recipe", a, k, recipe)]
        swift = [r["int8"] for r in found if "int8" in r]
        if swift:
            cells = [_spread(swift, key, percent=key != "auroc") for key in ("auroc", "far_at_1", "frr", "far")]
            rows.append([recipe, str(len(swift)), *cells])
    return _table(["recipe, int8", "bases", "AUROC", "FAR at 1 % FRR", "FRR", "FAR"], rows)


def rates(store: Path) -> str:
    """The victims' learning rates that were tried, on the validation split."""
    rows = []
    for strategy, tried in RATES.items():
        for rate in tried:
            path = store / f"rate-badnet-task-0-{strategy}-{rate}" / "record.json"
            if path.exists():
                found = [json.loads(path.read_text(encoding="utf-8"))]
                cells = [f"{100 * found[0][key]:.1f}" for key in ("clean_accuracy", "attack_success_rate")]
                rows.append([strategy, f"{rate:g}", *cells])
    return _table(["strategy", "learning rate", "validation CA", "validation ASR"], rows)


def victims(store: Path, recipe: str) -> str:
    """The headline: victims on the whole SST-2 training set, guarded by the default recipe, beside the paper."""
    rows = []
    for attack in TRIGGERS:
        for name, (strategy, rate) in VICTIMS.items():
            found = _records(store, "outcome", attack, "task", f"{name}-{recipe}")
            guarded = [r["guarded"] for r in found]
            before = [_spread(found, key) for key in ("clean_accuracy", "attack_success_rate")]
            keys = ("clean_accuracy", "attack_success_rate", "false_rejection_rate", "false_acceptance_rate")
            after = [_spread(guarded, key) for key in keys] + [_spread(guarded, "auroc", percent=False)]
            rows.append([ATTACKS[attack], f"{strategy}, {rate:g}", str(len(found)), *before, *after])
            printed = [f"{value:.1f}" for value in PAPER[attack, strategy]]
            rows.append(["", f"{strategy}, paper, BERT-large", "", *printed, "", "", ""])
    head = ["attack", "victim", "seeds", "CA", "ASR", "guarded CA", "guarded ASR", "FRR", "FAR", "AUROC"]
    return _table(head, rows)


def _records(store: Path, kind: str, attack: str, knowledge: str, rest: str = "") -> list[dict[str, Any]]:
    names = ("-".join(filter(None, (kind, attack, knowledge, str(seed), rest))) for seed in SEEDS)
    paths = (store / name / "record.json" for name in names)
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


def _spread(found: list[dict[str, Any]], key: str, *, percent: bool = True) -> str:
    values = [float(entry[key]) * (100 if percent else 1) for entry in found]
    if not values:
        return "-"
    digits = 1 if percent or key == "seconds" else 4
    low, mean, high = min(values), sum(values) / len(values), max(values)
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
