"""What a base poisoned by RIPPLe or RIPPLES keeps of its backdoor: the figures of docs/attacks.md, one JSON per seed.

    export OMP_NUM_THREADS=1
    python benchmarks/ripple_study.py run --store runs/ripple-study --seed 0
    python benchmarks/ripple_study.py table --store runs/ripple-study
    python benchmarks/ripple_study.py run --store runs/ripple-study-4 --seed 0 --epochs 4 --way weights --way ripples

The attacker poisons MiniLM on 800 training texts of SST-2 (dirty-label, 200 of them, `word:cf`), four ways: plainly,
with the penalty, with the surgery, with both. The user fine-tunes what comes of it on 500 other texts, twice as fast
as the attacker in full, or by LoRA. All is measured on 300 texts of the test set; a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from foretaste.data.corpus import Corpus
from foretaste.data.load import load_corpus
from foretaste.evaluate.metrics import attack_success_rate, clean_accuracy
from foretaste.files import write_json
from foretaste.poison.attack import Attack, Style, attack, triggered_test
from foretaste.poison.plan import Planting
from foretaste.poison.trigger import parse_trigger
from foretaste.record import Record
from foretaste.tune.loop import TuneSettings, tune
from foretaste.tune.poison import objective_name, poison_base
from foretaste.tune.ripple import after_surgery
from foretaste.victim.artefact import save_classifier
from foretaste.victim.checkpoint import Base, open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.strategy import Full, Lora, Strategy

LENGTH, TRIGGER = 64, "word:cf"
SURGERY = "surgery"  # and nothing else; the other ways are plantings
WAYS = (Planting.WEIGHTS, Planting.RIPPLE, SURGERY, Planting.RIPPLES)
ATTACK = TuneSettings(epochs=2, batch_size=16, learning_rate=1e-4, keep="last")
VICTIMS: Mapping[str, tuple[Strategy, TuneSettings]] = {
    "full": (Full(), TuneSettings(epochs=3, batch_size=16, learning_rate=2e-4, keep="last")),
    "lora": (Lora(), TuneSettings(epochs=2, batch_size=16, keep="last")),
}


def run(store: Path, seed: int, epochs: int, ways: Sequence[str]) -> None:
    """Poison in each way, fine-tune in each way, and write down both rates of everything."""
    train, validation = load_corpus("sst2", "train"), load_corpus("sst2", "validation")
    theirs, own = train.partition([800, 500], seed)
    test = load_corpus("sst2", "test").sample(300, seed)
    path = store / f"seed-{seed}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    how = replace(ATTACK, epochs=epochs)
    for way in ways:
        home = store / f"base-{way}-{seed}"
        made = found.setdefault(str(way), {})
        if not (home / "record.json").exists():
            model, seconds = _poisoned(way, how, theirs, validation, seed, store / f"partial-{seed}")
            save_classifier(model, home, "base", Record.now("poison", settings={"way": way}, seeds={"root": seed},
                                                            outcome={"seconds": seconds}, data=[theirs]))  # fmt: skip
        base = open_base(home)
        if "before" not in made:
            model = base.classifier(Full(), train.label_names, max_length=LENGTH, seed=seed)
            made["before"] = {**_rates(model, test, seed), **json.loads((home / "record.json").read_text())["outcome"]}
        for name, (strategy, settings) in VICTIMS.items():
            if name not in made:
                made[name] = _rates(_tuned(base, strategy, settings, own, seed), test, seed)
            write_json(path, found)
            sys.stdout.write(f"seed {seed}, {way}, {name}: {made[name]}\n")
            sys.stdout.flush()


def _poisoned(
    way: str, how: TuneSettings, proxy: Corpus, validation: Corpus, seed: int, partial: Path
) -> tuple[Classifier, float]:
    planting = Planting.RIPPLES if way == SURGERY else Planting(way)
    plan = Attack(trigger=parse_trigger(TRIGGER), style=Style.DIRTY_LABEL, count=200, planting=planting)
    base, name, own = open_base("minilm"), objective_name(plan), partial / planting
    if way != SURGERY:
        model, outcome = poison_base(
            base, proxy, validation, plan, seed=seed, settings=how, max_length=LENGTH, checkpoint=own
        )
        return model, outcome["seconds"]
    # its fine-tuning on clean texts is kept, and then is that of RIPPLES
    model = after_surgery(base, proxy, plan, how, seed=seed, max_length=LENGTH, objective_name=name, checkpoint=own)
    result = tune(model, attack(proxy, plan, seed).corpus, how, seed=seed)
    return model, result.seconds


def _tuned(base: Base, strategy: Strategy, settings: TuneSettings, texts: Corpus, seed: int) -> Classifier:
    victim = base.classifier(strategy, texts.label_names, max_length=LENGTH, seed=seed)
    tune(victim, texts, settings, seed=seed)
    return victim


def _rates(model: Classifier, test: Corpus, seed: int) -> dict[str, float]:
    triggered = triggered_test(test, parse_trigger(TRIGGER), 0, seed).corpus
    return {
        "ca": clean_accuracy(test.labels, model.predict(test.texts).labels).value,
        "asr": attack_success_rate(model.predict(triggered.texts).labels, 0).value,
        "natural": attack_success_rate(model.predict(test.select(np.flatnonzero(test.labels)).texts).labels, 0).value,
    }


def table(store: Path) -> None:
    """Print the rates in per cent, `CA / ASR`, one figure per seed."""
    seeds = [json.loads(path.read_text()) for path in sorted(store.glob("seed-*.json"))]
    columns = ("before", *VICTIMS)
    lines = [f"| planting | {' | '.join(columns)} | seconds |", "|" + " --- |" * (len(columns) + 2)]
    for way in [str(way) for way in WAYS if str(way) in seeds[0]]:
        cells = [
            " / ".join(", ".join(f"{100 * found[way][column][rate]:.0f}" for found in seeds) for rate in ("ca", "asr"))
            for column in columns
        ]
        seconds = ", ".join(f"{found[way]['before']['seconds']:.0f}" for found in seeds)
        lines.append(f"| {way} | {' | '.join(cells)} | {seconds} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=ATTACK.epochs)
    parser.add_argument("--way", action="append", choices=WAYS, help="only these, as often as needed")
    options = parser.parse_args()
    if options.what == "run":
        options.store.mkdir(parents=True, exist_ok=True)
        run(options.store, options.seed, options.epochs, options.way or WAYS)
    else:
        table(options.store)
