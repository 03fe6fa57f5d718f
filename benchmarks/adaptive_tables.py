"""The tables of docs/adaptive.md, from the records of adaptive_study.py, whose `table` prints them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from adaptive_study import ATTACKS, FIRST, PROMISED, SEEDS, TRANSPLANTS, VIEWS, strict_rates

from foretaste.guard.psim import PSIM_STRATEGIES

__all__ = ["tables"]

Reader = Callable[[Any], float]
ALL = (*VIEWS, TRANSPLANTS)


def tables(store: Path) -> str:
    """The tables of docs/adaptive.md: mean (lowest to highest seed), the attack that gets most past the guard first."""
    found = {name: _records(store, name) for name in (*ATTACKS, "none")}
    names = sorted(
        (n for n in ATTACKS if found[n]), key=lambda n: -_mean(found[n], _guarded("both", "attack_success_rate"))
    )
    parts = [
        _success([*names, "none"], found),
        _headline([*names, "none"], found),
        _separation(names, found),
        _bars(names, found),
        _promises(found),
        _adapters(_records(store, "adapter")),
        _strategies(store),
    ]
    return "\n\n".join(parts)


def _success(names: Iterable[str], found: dict[str, list[Any]]) -> str:
    """What is left of the attack, and what the two guards cost: seconds for clean texts, transplants over PSIM."""
    head = ["attack", "seeds", "victim", "default guard", "with transplants", "FRR", "FRR with transplants", "cost"]
    rows = []
    for name in names:
        cells = [_spread(found[name], _strict(view)) for view in ("victim", "both", TRANSPLANTS)]
        cells += [_spread(found[name], _frr(view), digits=1) for view in ("both", TRANSPLANTS)]
        seconds = [record["outcome"]["guard"]["seconds"] for record in found[name]]
        cells.append(f"{np.mean([own[TRANSPLANTS] / own['psim'] for own in seconds]):.1f}")
        rows.append([name, str(len(found[name])), *cells])
    return _table(head, rows)


def _headline(names: Iterable[str], found: dict[str, list[Any]]) -> str:
    """What the attacker pays and what he keeps."""
    head = ["attack", "seeds", "base CA", "base ASR", "victim CA", "victim ASR", "strict", "CA, both", "ASR, both",
            "strict", "CA, transplants", "ASR, transplants", "strict"]  # fmt: skip
    rows = []
    for name in names:
        readers = [*(reader for who in ("base", "victim") for reader in (_plain(who), _worse(who))), _strict("victim")]
        for view in ("both", TRANSPLANTS):
            readers += [_kept(view), _guarded(view, "attack_success_rate"), _strict(view)]
        rows.append([name, str(len(found[name])), *(_spread(found[name], reader) for reader in readers)])
    return _table(head, rows)


def _separation(names: Iterable[str], found: dict[str, list[Any]]) -> str:
    """How well each view's scores tell triggered texts from clean ones."""
    head = ["attack", "seeds", *(f"{what}, {view}" for what in ("AUROC", "FAR at 1 % FRR") for view in ALL)]
    rows = []
    for name in names:
        cells = [_spread(found[name], _guarded(view, "auroc", min), percent=False) for view in ALL]
        cells += [_spread(found[name], _guarded(view, "far_at_1")) for view in ALL]
        rows.append([name, str(len(found[name])), *cells])
    return _table(head, rows)


def _bars(names: Iterable[str], found: dict[str, list[Any]]) -> str:
    """What passes at the calibrated threshold, and what that refuses of clean texts."""
    head = ["attack", "seeds", *(f"{what}, {view}" for view in ALL for what in ("FRR", "FAR"))]
    rows = []
    for name in names:
        cells = []
        for view in ALL:
            cells += [_spread(found[name], _frr(view), digits=1), _spread(found[name], _guarded(view, "far"))]
        rows.append([name, str(len(found[name])), *cells])
    return _table(head, rows)


def _promises(found: dict[str, list[Any]]) -> str:
    """How often the promise of 1 % FRR is broken, over calibration sets drawn anew."""
    head = ["base", "seed", *(f"{what}, {view}" for view in ALL for what in ("draws above 1 %", "mean FRR"))]
    rows = []
    for name, seed in PROMISED:
        for record in (record for record in found[name] if record["seeds"]["root"] == seed):
            promise = record["outcome"]["promise"]
            cells = [f"{100 * promise[v][key]:.{n}f} %" for v in ALL for key, n in (("share_above", 1), ("mean", 2))]
            rows.append([name, str(seed), *cells])
    return _table(head, rows)


def _adapters(found: list[Any]) -> str:
    """A poisoned adapter on a clean base: what a guard of the base sees, and one of base and adapter merged."""
    head = ["guard trained on", "seeds", "ASR of base + adapter", *(f"FAR at 1 % FRR, {view}" for view in ALL),
            "FRR, both", "ASR, both", "FRR, transplants", "ASR, transplants"]  # fmt: skip
    rows = []
    for key, what in (("guard", "the base"), ("guard_of_merged", "base + adapter, merged")):
        cells = [
            _spread(found, _worse("victim")),
            *(_spread(found, _guarded(view, "far_at_1", guard=key)) for view in ALL),
            _spread(found, _frr("both", key), digits=1),
            _spread(found, _guarded("both", "attack_success_rate", guard=key)),
            _spread(found, _frr(TRANSPLANTS, key), digits=1),
            _spread(found, _guarded(TRANSPLANTS, "attack_success_rate", guard=key)),
        ]
        rows.append([what, str(len(found)), *cells])
    return _table(head, rows)


def _strategies(store: Path) -> str:
    """What each strategy's PSIM lets pass, in the view both."""
    head = ["attack", "PSIM", "seeds", "AUROC", "FAR at 1 % FRR", "FRR", "FAR"]
    rows = []
    for name in FIRST:
        paths = [store / f"strategies-{name}-{seed}.json" for seed in SEEDS]
        found = [json.loads(path.read_text(encoding="utf-8"))["outcome"] for path in paths if path.exists()]
        for strategy in PSIM_STRATEGIES:
            own = [{"outcome": {"guard": outcome[strategy]}} for outcome in found if "views" in outcome[strategy]]
            cells = [_spread(own, _guarded("both", "auroc"), percent=False), _spread(own, _guarded("both", "far_at_1"))]
            cells += [_spread(own, _frr("both"), digits=1), _spread(own, _guarded("both", "far"))]
            rows.append([name, strategy, f"{len(own)} of {len(found)}", *cells])
    return _table(head, rows)


def _plain(who: str) -> Reader:
    return lambda outcome: float(outcome[who]["clean_accuracy"])


def _worse(who: str) -> Reader:
    return lambda outcome: max(float(entry["attack_success_rate"]) for entry in outcome[who]["directions"])


def _strict(view: str) -> Reader:
    return lambda outcome: float(outcome["strict"][view])


def _kept(view: str) -> Reader:
    return lambda outcome: float(outcome["guard"]["views"][view]["clean_accuracy"])


def _frr(view: str, guard: str = "guard") -> Reader:
    return lambda outcome: float(outcome[guard]["views"][view]["frr"])


def _guarded(view: str, key: str, worse: Callable[[Iterable[float]], float] = max, guard: str = "guard") -> Reader:
    """Read one number; of an all-to-all attack's two directions, the one that is worse for the user."""
    return lambda outcome: worse(float(entry[key]) for entry in outcome[guard]["views"][view]["directions"])


def _records(store: Path, name: str) -> list[Any]:
    found = []
    for seed in SEEDS:
        path = store / f"{name}-{seed}.json"
        if path.exists():
            record = json.loads(path.read_text(encoding="utf-8"))
            record["outcome"]["strict"] = strict_rates(store, name, seed, record)
            found.append(record)
    return found


def _mean(found: list[Any], read: Reader) -> float:
    return float(np.mean([read(record["outcome"]) for record in found]))


def _spread(found: list[Any], read: Reader, *, percent: bool = True, digits: int = 0) -> str:
    values = [read(record["outcome"]) * (100 if percent else 1) for record in found]
    if not values:
        return "-"
    digits = digits if percent else 3
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
