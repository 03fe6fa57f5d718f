"""The PSIM study behind docs/psim.md: attacks x knowledge x seeds, resumable, one JSON record per finished piece.

    OMP_NUM_THREADS=1 python benchmarks/psim_study.py run --store runs/psim-study --seed 0      # hours, resumable
    python benchmarks/psim_tables.py --store runs/psim-study        # prints the tables of docs/psim.md

Bases are poisoned on IMDB (full task knowledge) or on SST-2 itself (full data knowledge). `dose` pieces follow PSIM's
training on the validation split and choose the recipe; `recipe` and `victim` pieces report on the test split.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from foretaste.data.corpus import Corpus
from foretaste.data.load import load_corpus
from foretaste.errors import ForetasteError, GuardError
from foretaste.evaluate.metrics import auroc, far_at_frr
from foretaste.evaluate.threshold import calibrate
from foretaste.experiment.evaluation import evaluate
from foretaste.files import write_json
from foretaste.guard.artefact import load_psim, save_guard
from foretaste.guard.psim import PSIM_STRATEGIES, Psim
from foretaste.guard.psim_guard import PsimGuard
from foretaste.poison.attack import Attack, triggered_test
from foretaste.poison.trigger import parse_trigger
from foretaste.record import Record
from foretaste.tune.loop import TuneSettings, tune
from foretaste.tune.poison import POISONING, POISONING_LENGTH, poison_base
from foretaste.victim.artefact import load_victim, save_classifier
from foretaste.victim.checkpoint import open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.strategy import STRATEGIES, Full, Lora, PTuningV1, PTuningV2

TRIGGERS = {"badnet": "word:mn", "insent": "sentence:I watched this 3D movie"}
PROXIES = {"task": "imdb", "data": "sst2"}
# Tried for the victims on one base (BadNet, full task knowledge, seed 0); the best CA on the validation split decides.
RATES = {"lora": (2e-3, 1e-3, 5e-4, 2e-4), "p_tuning_v1": (2e-3, 5e-3, 1e-2), "full": (2e-5, 5e-5, 1e-4)}
# Strategy and learning rate. The gentler LoRA costs a point of CA but keeps the backdoor whole, so that the guard has
# more to stop.
VICTIMS = {"lora": ("lora", 2e-3), "lora_gentle": ("lora", 5e-4), "p_tuning_v1": ("p_tuning_v1", 5e-3),
           "full": ("full", 1e-4)}  # fmt: skip
SEEDS = (0, 1, 2)
KINDS = ("base", "rate", "recipe", "victim", "outcome", "dose")
LORA = PSIM_STRATEGIES["lora"]
# Every recipe that is measured on all bases; all but `paper` stop at a dose. The first two look twice.
RECIPES: dict[str, Psim] = {
    "default": Psim(),
    "lora_both": Psim(strategy=LORA),
    "lora": Psim(strategy=LORA, view="confidence"),
    "lora_attention": Psim(strategy=Lora(), view="confidence"),
    "lora_trained_head": Psim(strategy=Lora(), is_head_frozen=False, dose=0.05, view="confidence"),
    "full": Psim(strategy=Full(), learning_rate=5e-5, view="confidence"),
    "p_tuning_v1": Psim(strategy=PTuningV1(), view="confidence"),
    "p_tuning_v2": Psim(strategy=PTuningV2(), view="confidence"),
    "paper": Psim.paper(),
}
# Followed along their training on the validation split, from which the dose was chosen; the number is added to the seed
# of the base: other label draws and batch orders.
FOLLOWED: dict[str, tuple[Psim, int]] = {
    "lora": (RECIPES["lora"], 0),
    "lora_draw_2": (RECIPES["lora"], 10),
    "lora_draw_3": (RECIPES["lora"], 20),
    "lora_attention": (RECIPES["lora_attention"], 0),
    "lora_trained_head": (RECIPES["lora_trained_head"], 0),
    "full": (RECIPES["full"], 0),
    "p_tuning_v1": (RECIPES["p_tuning_v1"], 0),
}
DOSES = (0.4, 0.3, 0.2, 0.15, 0.1, 0.075, 0.05)


def make_base(store: Path, attack: str, knowledge: str, seed: int) -> None:
    """Poison MiniLM on the proxy dataset."""
    path = store / f"base-{attack}-{knowledge}-{seed}"
    proxy, validation = (load_corpus(PROXIES[knowledge], split) for split in ("train", "validation"))
    plan = Attack(trigger=parse_trigger(TRIGGERS[attack]), target=0, count=1000)
    partial = path.with_name(path.name + ".partial")
    base = open_base("minilm")
    classifier, outcome = poison_base(base, proxy, validation, plan, seed=seed, checkpoint=partial)
    settings = {"attack": plan, "tune": POISONING, "max_length": POISONING_LENGTH}
    record = Record.now("poison", settings=settings, seeds={"root": seed}, outcome=outcome, data=[proxy, validation])
    save_classifier(classifier, path, "base", record)
    shutil.rmtree(partial, ignore_errors=True)


def make_victim(store: Path, attack: str, knowledge: str, seed: int, name: str) -> None:
    """Fine-tune on the whole SST-2 training set."""
    path = store / f"victim-{attack}-{knowledge}-{seed}-{name}"
    strategy, rate = VICTIMS[name]
    train, validation = load_corpus("sst2", "train"), load_corpus("sst2", "validation")
    base = open_base(store / f"base-{attack}-{knowledge}-{seed}")
    victim = base.classifier(STRATEGIES[strategy](), train.label_names, seed=seed)
    settings = TuneSettings(epochs=2, learning_rate=rate)
    partial = path.with_name(path.name + ".partial")
    result = tune(victim, train, settings, seed=seed, validation=validation, checkpoint=partial)
    record = Record.now(
        "tune",
        settings={"tune": settings, "strategy": strategy},
        seeds={"root": seed},
        outcome=asdict(result),
        data=[train, validation],
    )
    save_classifier(victim, path, "victim", record)
    shutil.rmtree(partial, ignore_errors=True)


def try_rate(store: Path, attack: str, knowledge: str, seed: int, strategy: str, rate: float) -> None:
    """Fine-tune a victim at one learning rate: CA decides, on the validation split; ASR is there to be seen."""
    train, validation = load_corpus("sst2", "train"), load_corpus("sst2", "validation")
    base = open_base(store / f"base-{attack}-{knowledge}-{seed}")
    victim = base.classifier(STRATEGIES[strategy](), train.label_names, seed=seed)
    tune(victim, train, TuneSettings(epochs=2, learning_rate=rate), seed=seed, validation=validation)
    outcome = evaluate(victim, None, validation, parse_trigger(TRIGGERS[attack]), 0, seed=seed).outcome.to_json()
    path = store / f"rate-{attack}-{knowledge}-{seed}-{strategy}-{rate}"
    write_json(path / "record.json", outcome)


def follow_dose(store: Path, attack: str, knowledge: str, seed: int, recipe: str) -> None:
    """Train PSIM until the smallest dose; at the first step below each dose, measure on the validation split."""
    validation = load_corpus("sst2", "validation")
    clean = validation.sample(400, 0)
    triggered = triggered_test(validation, parse_trigger(TRIGGERS[attack]), 0, seed).corpus.sample(150, 0)
    seen: dict[str, Any] = {}

    def measure(step: int, classifier: Classifier, dose: float) -> None:
        reached = [d for d in DOSES if dose <= d and str(d) not in seen]
        if not reached:
            return
        low, high = (_certainty(classifier, corpus.texts) for corpus in (clean, triggered))
        entry = {
            "step": step,
            "auroc": auroc(low, high),
            "far_at_1": far_at_frr(low, high, 0.01).value,
            "clean_median": float(np.median(low)),
            "clean_99": float(np.quantile(low, 0.99)),
            "triggered_5": float(np.quantile(high, 0.05)),
        }
        seen.update({str(d): entry for d in reached})

    plan, draw = FOLLOWED[recipe]
    plan = replace(plan, dose=DOSES[-1], threshold=0.7, view="confidence")
    start = time.monotonic()
    try:
        base = open_base(store / f"base-{attack}-{knowledge}-{seed}")
        plan.fit(base, load_corpus("sst2", "train"), validation, seed=seed + draw, after_dose=measure)
    except GuardError as error:
        if error.code != "dose_not_reached":
            raise
    outcome = {"doses": seen, "seconds": time.monotonic() - start}
    write_json(store / f"dose-{attack}-{knowledge}-{seed}-{recipe}" / "record.json", outcome)


def fit_recipe(store: Path, attack: str, knowledge: str, seed: int, recipe: str) -> None:
    """Train and calibrate one PSIM and measure it on the test split, beside each victim that exists."""
    path = store / f"recipe-{attack}-{knowledge}-{seed}-{recipe}"
    base = open_base(store / f"base-{attack}-{knowledge}-{seed}")
    train, validation = load_corpus("sst2", "train"), load_corpus("sst2", "validation")
    start = time.monotonic()
    guard = RECIPES[recipe].fit(base, train, validation, seed=seed)
    seconds = time.monotonic() - start
    clean = load_corpus("sst2", "test")
    triggered = triggered_test(clean, parse_trigger(TRIGGERS[attack]), 0, seed).corpus
    outcome: dict[str, Any] = {
        "steps": guard.training.steps if guard.training else None,
        "seconds": seconds,
        "doses": guard.doses,
        **_judge_guard(guard, clean, triggered),
    }
    if guard.calibration is not None:
        swift = replace(guard, scoring="int8")
        bar = calibrate(swift.score(validation.texts), guard.calibration.frr, guard.calibration.confidence)
        outcome["int8"] = _judge_guard(replace(swift, threshold=bar.threshold, calibration=bar), clean, triggered)
    record = Record.now(
        "guard",
        settings={"recipe": recipe, "psim": RECIPES[recipe], "strategy": RECIPES[recipe].strategy.name},
        seeds={"root": seed},
        outcome=outcome,
        data=[train, validation, clean],
    )
    save_guard(guard, path, record)


def judge_victim(store: Path, attack: str, knowledge: str, seed: int, name: str, recipe: str) -> None:
    """Victim and guard on the SST-2 test split: the headline table."""
    victim = load_victim(store / f"victim-{attack}-{knowledge}-{seed}-{name}")
    guard = load_psim(store / f"recipe-{attack}-{knowledge}-{seed}-{recipe}")
    corpus = load_corpus("sst2", "test")
    outcome = evaluate(victim, guard, corpus, parse_trigger(TRIGGERS[attack]), 0, seed=seed).outcome.to_json()
    write_json(store / f"outcome-{attack}-{knowledge}-{seed}-{name}-{recipe}" / "record.json", outcome)


def pieces(default: str) -> list[tuple[str, Callable[..., None], tuple[Any, ...]]]:
    """Everything to do, what others stand on first."""
    cells = list(product(TRIGGERS, PROXIES, SEEDS))
    task = [cell for cell in cells if cell[1] == "task"]
    rates = [(strategy, rate) for strategy, tried in RATES.items() for rate in tried]
    return [
        *(("base", make_base, cell) for cell in cells),
        *(("rate", try_rate, ("badnet", "task", 0, *tried)) for tried in rates),
        *(("dose", follow_dose, (*cell, recipe)) for recipe, cell in product(FOLLOWED, cells)),
        *(("recipe", fit_recipe, (*cell, recipe)) for recipe, cell in product(RECIPES, cells)),
        *(("victim", make_victim, (*cell, name)) for cell, name in product(task, VICTIMS)),
        *(("outcome", judge_victim, (*cell, name, default)) for cell, name in product(task, VICTIMS)),
    ]


def run(store: Path, default: str, seed: int | None, kind: str | None) -> None:
    """Do every piece that is not done yet; a piece that fails is reported and does not stop the others."""
    todo = [piece for piece in pieces(default) if seed in (None, piece[2][2]) and kind in (None, piece[0])]
    for number, (piece, make, inputs) in enumerate(todo, 1):
        path = store / "-".join(map(str, (piece, *inputs)))
        if (path / "record.json").exists():
            continue
        start = time.monotonic()
        try:
            make(store, *inputs)
            note = f"{time.monotonic() - start:.0f} s"
        except ForetasteError as error:
            note = f"FAILED: {error}"
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {number}/{len(todo)} {path.name}: {note}\n")


def _judge_guard(guard: PsimGuard, clean: Corpus, triggered: Corpus) -> dict[str, float]:
    low, high = guard.score(clean.texts), guard.score(triggered.texts)
    return {
        "threshold": guard.threshold,
        "auroc": auroc(low, high),
        "far_at_1": far_at_frr(low, high, 0.01).value,
        "frr": float(np.mean(low > guard.threshold)),
        "far": float(np.mean(high <= guard.threshold)),
        "frr_07": float(np.mean(low > 0.7)),
        "far_07": float(np.mean(high <= 0.7)),
    }


def _certainty(classifier: Classifier, texts: Any) -> Any:
    return classifier.predict(texts, precision="auto").certainty


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["run"])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--default", default="default", choices=RECIPES, help="recipe of the headline table")
    parser.add_argument("--seed", type=int, choices=SEEDS, help="this seed only: one process per seed and core")
    parser.add_argument("--kind", choices=KINDS, help="these pieces only")
    arguments = parser.parse_args()
    run(arguments.store, arguments.default, arguments.seed, arguments.kind)


if __name__ == "__main__":
    main()
