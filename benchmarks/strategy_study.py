"""Which strategy PSIM should train with: the figures of decision record 8, one file of scores per fit, resumable.

    export OMP_NUM_THREADS=1                                   # one process and one thread per core
    python benchmarks/strategy_study.py run --store runs/strategy-study --part 0/2         # beside it: --part 1/2
    python benchmarks/strategy_study.py table --store runs/strategy-study

Chosen on validation texts alone: a fifth of the training set calibrates, the validation split is judged. The poisoned
bases are those of psim_study.py, adaptive_study.py and audit_study.py, and bases of the first kind with smoothed labels
(`base-smooth-0`, made by `foretaste poison --model minilm --data sst2 --trigger word:mn --style dirty-label
--target-probability 0.6 --seed 0`) put beside those of psim_study.py.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from adaptive_study import ATTACKS, LENGTH, directions_of
from audit_study import CASES
from numpy.typing import NDArray
from psim_study import TRIGGERS

from foretaste.data.load import load_corpus
from foretaste.errors import GuardError
from foretaste.evaluate.threshold import calibrate, is_flagged
from foretaste.guard.psim import PSIM_STRATEGIES, Psim
from foretaste.poison.attack import Attack
from foretaste.poison.trigger import parse_trigger
from foretaste.victim.checkpoint import open_base

STRATEGIES = ("lora", "prompt_tuning")
DRAWS = (0, 1, 2, 3, 4)  # added to the base's seed, a hundred apart: labels, batches, adapter and split
FEWER, JUDGED = 4000, 872  # texts at most, training and validation, of the audit study's data sets
FEWEST = 299  # that calibrate
Scores = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Suspect:
    """A poisoned base, what it was poisoned with, and how many texts of which task the guard has."""

    path: Path
    attack: Attack
    seed: int
    data: str = "sst2"
    size: int = 10_000


def find_bases(psim: Path, adaptive: Path, audit: Path) -> dict[str, Suspect]:
    """Every poisoned base in the stores, by name."""
    found: dict[str, Suspect] = {}
    for path in sorted(psim.glob("base-*")):
        name = path.name.removeprefix("base-")
        trigger = TRIGGERS.get(name.split("-")[0], TRIGGERS["badnet"])
        found[name] = Suspect(path, Attack(trigger=parse_trigger(trigger)), int(name[-1]))
    for path in sorted(adaptive.glob("models-*/base")):
        name, _, number = path.parent.name.removeprefix("models-").rpartition("-")
        if name in ATTACKS:
            found[f"small-{name}-{number}"] = Suspect(path, ATTACKS[name], int(number))
    for name, case in CASES.items():
        path = audit / f"base-{name}"
        if case.trigger is not None and path.exists():
            attack = Attack(trigger=parse_trigger(case.trigger), target=case.target)
            found[f"audit-{name}"] = Suspect(path, attack, case.seed, case.audited_with, FEWER)
    return found


def fit(base: Suspect, strategy: str, draw: int) -> Scores:
    """Train one PSIM; return its scores of calibration texts, clean validation texts and triggered ones, by name."""
    train = load_corpus(base.data, "train").sample(base.size, 7)
    validation = load_corpus(base.data, "validation").sample(JUDGED, 7)
    size = max(FEWEST, len(train) // 5)
    rest, held_out = train.partition([len(train) - size, size], base.seed + 50)
    plan = Psim(strategy=PSIM_STRATEGIES[strategy])
    guard = plan.fit(open_base(base.path), rest, held_out, seed=base.seed + 100 * draw, max_length=LENGTH)
    triggered = {f"triggered-{goal}": corpus for goal, corpus in directions_of(validation, base.attack, base.seed)}
    parts = {"calibration": held_out, "clean": validation, **triggered}
    return {name: guard.judge(guard.predict(corpus.texts)) for name, corpus in parts.items()}


def run(store: Path, bases: dict[str, Suspect], part: int, parts: int, only: str) -> None:
    """Do every fit of this part that is not in the store; a dose that is not reached is written down as no scores."""
    jobs = [(name, strategy, draw) for draw in DRAWS for strategy in STRATEGIES for name in bases]
    jobs = [job for job in jobs if re.search(only, "{}={}={}".format(*job))]
    store.mkdir(parents=True, exist_ok=True)
    for name, strategy, draw in jobs[part::parts]:
        out, start = store / f"{name}={strategy}={draw}.npz", time.monotonic()
        if out.exists():
            continue
        try:
            scores = fit(bases[name], strategy, draw)
        except GuardError as error:
            sys.stderr.write(f"{out.stem}: {error}\n")
            scores = {}
        beside = out.with_suffix(".partial.npz")
        np.savez_compressed(beside, **scores)  # type: ignore[arg-type]
        beside.rename(out)
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {out.stem}: {time.monotonic() - start:.0f} s\n")


def table(store: Path) -> str:
    """FRR and FAR at the calibrated bar, mean (lowest to highest fit) over seeds and draws of each kind of base."""
    rates: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    failed = defaultdict[tuple[str, str], int](int)
    for path in sorted(store.glob("*=*=*.npz")):
        name, strategy, _ = path.stem.split("=")
        kind = "audit study" if name.startswith("audit-") else re.sub(r"-\d$", "", name)
        with np.load(path) as scores:
            if not scores.files:
                failed[kind, strategy] += 1
                continue
            bar = calibrate(scores["calibration"]).threshold
            # of an all-to-all attack's two directions the one that fires, 1 to 0
            triggered = next(scores[key] for key in sorted(scores.files) if key.startswith("triggered"))
            passed = float(np.mean(~is_flagged(triggered, bar)))
            rates[kind][strategy].append((float(np.mean(is_flagged(scores["clean"], bar))), passed))
    head = "".join(f" fits | FRR, {s} | FAR, {s} |" for s in STRATEGIES)
    lines = [f"| bases |{head}", "| --- |" + " --- |" * 3 * len(STRATEGIES)]
    for kind, found in rates.items():
        cells = []
        for strategy in STRATEGIES:
            own = np.array(found[strategy]) * 100
            lost = f" ({failed[kind, strategy]} failed)" if failed[kind, strategy] else ""
            spread = [f"{c.mean():.1f} ({c.min():.1f} to {c.max():.1f})" for c in own.T] if len(own) else ["–", "–"]
            cells += [f"{len(own)}{lost}", *spread]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--psim", type=Path, default=Path("runs/psim-study"))
    parser.add_argument("--adaptive", type=Path, default=Path("runs/adaptive-study"))
    parser.add_argument("--audit", type=Path, default=Path("runs/audit-study"))
    parser.add_argument("--part", default="0/1", help="i/n: every n-th fit, from the i-th on (default 0/1: all)")
    parser.add_argument(
        "--only", default="", help="fits whose name this pattern finds, as in 'task.*=prompt_tuning=[0-4]'"
    )
    arguments = parser.parse_args()
    if arguments.action == "table":
        sys.stdout.write(table(arguments.store) + "\n")
        return
    part, parts = map(int, arguments.part.split("/"))
    run(arguments.store, find_bases(arguments.psim, arguments.adaptive, arguments.audit), part, parts, arguments.only)


if __name__ == "__main__":
    main()
