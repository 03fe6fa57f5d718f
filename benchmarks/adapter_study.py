"""A poisoned adapter on a clean base, end to end through the commands: the figures of docs/attacks.md.

    export FORETASTE_DATA=... OMP_NUM_THREADS=1
    python benchmarks/adapter_study.py run --store runs/adapter-study       # one JSON record per seed
    python benchmarks/adapter_study.py table --store runs/adapter-study     # prints the tables

The attacker's part (base and adapter) is that of the cell `adapter` of adaptive_study.py. The user's part is commands:
a guard of the base, a guard of the adapter, the adapter fine-tuned further, each on 600 texts of the test set.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import adaptive_study as study

from foretaste.cost import measured_cost
from foretaste.data.load import load_corpus
from foretaste.guard.artefact import load_psim
from foretaste.record import Record

TRIGGER = "word:mn"
GUARDS = ("base", "adapter")
_RATES = ("attack_success_rate", "clean_accuracy", "false_rejection_rate", "false_acceptance_rate")


def make_seed(store: Path, seed: int) -> Record:
    """Make base and adapter, run the commands, measure the views; the models are deleted."""
    train, validation = load_corpus("sst2", "train"), load_corpus("sst2", "validation")
    part = load_corpus("sst2", "test").sample(study.TEST_SIZE, seed)
    theirs, plan = train.sample(study.BASE_SIZE, seed), study.ATTACKS["word"]
    home = store / f"models-{seed}"
    place = {name: home / name for name in ("base", "tuned", "guard-base", "guard-adapter")}
    place["adapter"] = home / "victim"
    with measured_cost() as meter:
        _, victim = study.make_models(home, "adapter", seed)
        for name in GUARDS:
            _command("guard", "--model", place[name], "--data", "sst2", "--seed", seed, "--max-length", study.LENGTH,
                     "--strategy", "lora",  # the default when docs/attacks.md was measured
                     "-o", place[f"guard-{name}"])  # fmt: skip
        _command("tune", "--model", place["adapter"], "--data", "sst2", "--limit", study.VICTIM_SIZE, "--epochs", 1,
                 "--learning-rate", study.VICTIM.learning_rate, "--keep", "last", "--max-length", study.LENGTH,
                     "--strategy", "lora",  # the default when docs/attacks.md was measured
                 "--seed", seed + 100, "-o", place["tuned"])  # fmt: skip
        asked = ("--data", "sst2", "--limit", study.TEST_SIZE, "--seed", seed, "--trigger", TRIGGER)
        evaluated = {
            "adapter, guard of the base": _evaluate(place["adapter"], place["guard-base"], asked),
            "adapter, guard of the adapter": _evaluate(place["adapter"], place["guard-adapter"], asked),
            "tuned further, guard of the adapter": _evaluate(place["tuned"], place["guard-adapter"], asked),
        }
        directions = study.directions_of(part, plan, seed)
        views = {
            name: study.judge_guard(load_psim(place[f"guard-{name}"]), victim, validation, part, directions)
            for name in GUARDS
        }
    training = {
        name: json.loads((place[f"guard-{name}"] / "record.json").read_text(encoding="utf-8"))["outcome"]
        for name in GUARDS
    }
    shutil.rmtree(home)
    return Record.now(
        "evaluate",
        settings={"attack": plan, "adapter": study.ADAPTER, "max_length": study.LENGTH},
        seeds={"root": seed},
        outcome={"evaluated": evaluated, "views": views, "guards": training},
        data=[theirs, train, validation, part],
        cost=meter.cost,
        command="benchmarks/adapter_study.py",
    )


def _command(*arguments: object) -> dict[str, Any]:
    start = [sys.executable, "-c", "from foretaste.cli import main; main()", *map(str, arguments), "--json"]
    answer: dict[str, Any] = json.loads(subprocess.run(start, check=True, capture_output=True, text=True).stdout)
    return answer


def _evaluate(victim: Path, guard: Path, asked: tuple[object, ...]) -> dict[str, Any]:
    return _command("evaluate", "--victim", victim, "--guard", guard, *asked)


def tables(store: Path) -> str:
    """Return both tables in Markdown: a figure for each seed, in their order, in per cent but for AUROC."""
    found: list[Any] = [Record.read(path).outcome for path in sorted(store.glob("seed-*.json"))]
    lines = ["| victim, guard | seeds | ASR | guarded ASR | CA | guarded CA | FRR | FAR |", "| --- " * 8 + "|"]
    for name in found[0]["evaluated"]:
        rows = [outcome["evaluated"][name] for outcome in found]
        guarded = [row["guarded"] for row in rows]
        cells = [
            *(_span([row[key] for row in side]) for key in _RATES[:2] for side in (rows, guarded)),
            *(_span([row[key] for row in guarded]) for key in _RATES[2:]),
        ]
        lines.append(f"| {name} | {len(rows)} | {' | '.join(cells)} |")
    lines += [
        "",
        "| guard trained on | view | AUROC | FAR at 1 % FRR | FRR | FAR | guarded ASR |",
        "| --- " * 7 + "|",
    ]
    for name in GUARDS:
        for view in study.VIEWS:
            sides = [outcome["views"][name]["views"][view] for outcome in found]
            one = [side["directions"][0] for side in sides]
            auroc = [row["auroc"] for row in one]
            cells = [
                ", ".join(f"{value:.3f}" for value in auroc),
                _span([row["far_at_1"] for row in one]),
                _span([side["frr"] for side in sides]),
                _span([row["far"] for row in one]),
                _span([row["attack_success_rate"] for row in one]),
            ]
            lines.append(f"| {name} | {view} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _span(values: list[float]) -> str:
    return ", ".join(f"{100 * value:.0f}" for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=list(study.SEEDS))
    arguments = parser.parse_args()
    if arguments.action == "table":
        sys.stdout.write(tables(arguments.store) + "\n")
        return
    for seed in arguments.seeds:
        path = arguments.store / f"seed-{seed}.json"
        if not path.exists():
            make_seed(arguments.store, seed).write(path)
            sys.stderr.write(f"{path.stem}: done\n")


if __name__ == "__main__":
    main()
