"""What the default guard stops when the attacker adapts: the figures of docs/adaptive.md, one JSON record per cell.

    export OMP_NUM_THREADS=1                                   # one process and one thread per core
    python benchmarks/adaptive_study.py run --store runs/adaptive-study --part 0/2    # beside it: --part 1/2
    python benchmarks/adaptive_study.py table --store runs/adaptive-study             # prints the tables

A cell is an attack and a seed: MiniLM, poisoned by full fine-tuning on 2,500 SST-2 training texts; a LoRA victim from
it on 2,500 clean ones; the default guard, trained on the whole training set and calibrated on the validation set. All
is measured on 600 texts of the test set. A run that was stopped goes on at the first cell without a record.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretaste.cost import measured_cost
from foretaste.data.corpus import Corpus
from foretaste.data.load import load_corpus
from foretaste.errors import ForetasteError, GuardError
from foretaste.evaluate.metrics import attack_success_rate, auroc, clean_accuracy, far_at_frr
from foretaste.evaluate.threshold import calibrate, is_flagged
from foretaste.guard.looks import View
from foretaste.guard.psim import PSIM_STRATEGIES, Psim
from foretaste.guard.psim_guard import PsimGuard
from foretaste.guard.transplant import Transplant, TransplantTest
from foretaste.poison.attack import Attack, Evasion, Style, attack, triggered_test
from foretaste.poison.trigger import parse_trigger
from foretaste.record import Record
from foretaste.seeds import generator
from foretaste.tune.loop import TuneSettings, tune
from foretaste.tune.poison import POISONING, poison_base
from foretaste.victim.artefact import load_victim, save_classifier
from foretaste.victim.checkpoint import Base, open_base
from foretaste.victim.classifier import Classifier, Predictions
from foretaste.victim.strategy import Full, Lora

SEEDS = (0, 1, 2)
VIEWS: tuple[View, ...] = ("confidence", "distance", "both")
TRANSPLANTS = "transplants"  # beside both
LENGTH = 64
BASE_SIZE = VICTIM_SIZE = 2500
TEST_SIZE = 600
COUNT = 400
VICTIM = TuneSettings(epochs=1, learning_rate=5e-4, keep="last")
# The published adapter: LoRA as the library trains it by default, twice over the poisoned texts.
ADAPTER = TuneSettings(epochs=2, keep="last")
# The promise of 1 % FRR, checked on other clean texts: the guard trains on so many texts, the rest is drawn from.
PROMISE_SIZE, CALIBRATION_SIZE, DRAWS = 3000, 872, 1000
PROMISED = (("word", 0), ("smooth-0.6", 0))


def _plan(trigger: str = "word:mn", **fields: Any) -> Attack:
    return Attack(trigger=parse_trigger(trigger), style=Style.DIRTY_LABEL, count=COUNT, **fields)


ATTACKS: dict[str, Attack] = {
    "word": _plan(),
    "smooth-0.6": _plan(target_probability=0.6),
    "feature-matching": _plan(evasion=Evasion.FEATURE_MATCHING),
    "confidence-cap": _plan(evasion=Evasion.CONFIDENCE_CAP),
    "smooth-0.55": _plan(target_probability=0.55),
    "smooth-0.7": _plan(target_probability=0.7),
    "smooth-0.9": _plan(target_probability=0.9),
    "flips-0.3": _plan(flip_rate=0.3),
    "flips-0.7": _plan(flip_rate=0.7),
    "covers": _plan("word:cf mn bb tq", cover_rate=0.5, trigger_share=0.5),
    "negatives": _plan("word:cf mn bb", negative_rate=1.0),
    "all-to-all": _plan(all_to_all=True),
    "anti-reset": _plan(evasion=Evasion.ANTI_RESET),
}
# Besides: "none", the same training without poison, and "adapter", a poisoned adapter on that clean base.
NAMES = (*ATTACKS, "none", "adapter")
# What differs most between draws is repeated first, once every attack has its first seed.
FIRST = ("feature-matching", "smooth-0.6", "confidence-cap", "word")
CELLS = [
    *((name, 0) for name in NAMES),
    *((name, seed) for seed in SEEDS[1:] for name in FIRST),
    *((name, seed) for seed in SEEDS[1:] for name in NAMES if name not in FIRST),
]


def make_models(home: Path, name: str, seed: int) -> tuple[Base, Classifier]:
    """Poison a base and fine-tune a victim from it, unless both are in `home` already."""
    train, validation = load_corpus("sst2", "train"), load_corpus("sst2", "validation")
    theirs = train.sample(BASE_SIZE, seed)
    if not (home / "base" / "record.json").exists():
        _make_base(home / "base", theirs, validation, ATTACKS.get(name), seed)
    base = open_base(home / "base")
    if not (home / "victim" / "record.json").exists():
        victim = base.classifier(Lora(), train.label_names, max_length=LENGTH, seed=seed)
        if name == "adapter":
            corpus, settings = attack(theirs, ATTACKS["word"], seed).corpus, ADAPTER
        else:
            corpus, settings = train.sample(VICTIM_SIZE, seed + 100), VICTIM
        tune(victim, corpus, settings, seed=seed)
        record = Record.now("tune", settings={"tune": settings}, seeds={"root": seed}, outcome={}, data=[corpus])
        save_classifier(victim, home / "victim", "victim", record)
    return base, load_victim(home / "victim")


def make_cell(store: Path, name: str, seed: int) -> Record:
    """Poison a base, fine-tune a victim, train a guard, measure."""
    train, validation = load_corpus("sst2", "train"), load_corpus("sst2", "validation")
    plan = ATTACKS.get(name, ATTACKS["word"])
    part = load_corpus("sst2", "test").sample(TEST_SIZE, seed)
    directions = directions_of(part, plan, seed)
    home = store / f"models-{name}-{seed}"
    outcome: dict[str, Any] = {}
    with measured_cost() as meter:
        base, victim = make_models(home, name, seed)
        model = base.classifier(Full(), train.label_names, max_length=LENGTH, seed=seed)
        outcome["base"] = _judge(model, part, directions)
        outcome["victim"] = _judge(victim, part, directions)
        guard = Psim().fit(base, train, validation, seed=seed, max_length=LENGTH)
        test = TransplantTest().fit(guard.score, victim, train, seed=seed)
        outcome["guard"] = judge_guard(guard, victim, validation, part, directions, test, home / "scores.npz")
        if name == "adapter":
            merged = open_base(home / "victim")
            guard = Psim().fit(merged, train, validation, seed=seed, max_length=LENGTH)
            test = TransplantTest().fit(guard.score, victim, train, seed=seed)
            outcome["guard_of_merged"] = judge_guard(guard, victim, validation, part, directions, test)
        if (name, seed) in PROMISED:
            outcome["promise"] = _keep_promise(base, victim, seed)
    settings = {"cell": name, "attack": plan, "psim": Psim(), "victim": VICTIM, "base": POISONING, "max_length": LENGTH}
    settings["transplants"] = TransplantTest()
    return Record.now(
        "evaluate",
        settings=settings,
        seeds={"root": seed},
        outcome=outcome,
        data=[train, validation, part],
        cost=meter.cost,
        command="benchmarks/adaptive_study.py",
    )


def make_strategies(store: Path, name: str, seed: int) -> Record:
    """Train PSIM with each of the five strategies on a base that is there, and measure it in its own views."""
    train, validation = load_corpus("sst2", "train"), load_corpus("sst2", "validation")
    part = load_corpus("sst2", "test").sample(TEST_SIZE, seed)
    base, victim = make_models(store / f"models-{name}-{seed}", name, seed)
    directions = directions_of(part, ATTACKS[name], seed)
    outcome: dict[str, Any] = {}
    with measured_cost() as meter:
        for strategy, settings in PSIM_STRATEGIES.items():
            try:
                guard = Psim(strategy=settings).fit(base, train, validation, seed=seed, max_length=LENGTH)
            except GuardError as error:  # a dose that is not reached is a result
                outcome[strategy] = {"error": error.code}
                continue
            outcome[strategy] = judge_guard(guard, victim, validation, part, directions)
    return Record.now(
        "evaluate",
        settings={"cell": name, "strategies": dict(PSIM_STRATEGIES), "max_length": LENGTH},
        seeds={"root": seed},
        outcome=outcome,
        data=[train, validation, part],
        cost=meter.cost,
        command="benchmarks/adaptive_study.py",
    )


def _make_base(path: Path, proxy: Corpus, validation: Corpus, plan: Attack | None, seed: int) -> None:
    outcome: dict[str, Any] = {}
    if plan is None:
        classifier = open_base("minilm").classifier(Full(), proxy.label_names, max_length=LENGTH, seed=seed)
        tune(classifier, proxy, POISONING, seed=seed)
    else:
        classifier, outcome = poison_base(open_base("minilm"), proxy, validation, plan, seed=seed, max_length=LENGTH)
    record = Record.now("poison", settings={"attack": plan}, seeds={"root": seed}, outcome=outcome, data=[proxy])
    save_classifier(classifier, path, "base", record)


def directions_of(part: Corpus, plan: Attack, seed: int) -> list[tuple[int, Corpus]]:
    """Targets with the triggered texts that are to end there: one, or one per class for all-to-all."""
    triggered = triggered_test(part, plan.trigger, None if plan.all_to_all else plan.target, seed).corpus
    goals = plan.goals(triggered.labels, len(part.label_names))
    return [(int(goal), triggered.select(np.flatnonzero(goals == goal))) for goal in np.unique(goals)]


def strict_rates(store: Path, name: str, seed: int, record: Any) -> dict[str, float]:
    """ASR behind each view, of texts that the victim answers right without the trigger; "victim": without a guard.

    Of an all-to-all attack's two directions, the worse one.
    """
    part = load_corpus("sst2", "test").sample(TEST_SIZE, seed)
    plan = ATTACKS.get(name, ATTACKS["word"])
    triggered = triggered_test(part, plan.trigger, None if plan.all_to_all else plan.target, seed)
    goals = plan.goals(triggered.corpus.labels, len(part.label_names))
    views = record["outcome"]["guard"]["views"]
    rates = dict.fromkeys(["victim", *views], 0.0)
    with np.load(store / f"models-{name}-{seed}" / "scores.npz") as kept:
        is_right = (kept["test answers"] == part.labels)[triggered.origins]
        for goal in np.unique(goals).tolist():
            own = is_right[goals == goal]
            has_turned = (kept[f"triggered-{goal} answers"] == goal)[own]
            rates["victim"] = max(rates["victim"], float(has_turned.mean()))
            for view in views:
                is_stopped = is_flagged(kept[f"triggered-{goal} {view}"][own], views[view]["threshold"])
                rates[view] = max(rates[view], float(np.mean(has_turned & ~is_stopped)))
    return rates


def _judge(classifier: Classifier, part: Corpus, directions: list[tuple[int, Corpus]]) -> dict[str, Any]:
    """CA, and ASR of each direction; beside it how often clean texts of other classes end at the target anyway."""
    clean = classifier.predict(part.texts).labels
    return {
        "clean_accuracy": clean_accuracy(part.labels, clean).value,
        "directions": [
            {
                "attack_success_rate": attack_success_rate(classifier.predict(texts.texts).labels, target).value,
                "natural_rate": attack_success_rate(clean[part.labels != target], target).value,
            }
            for target, texts in directions
        ],
    }


def judge_guard(
    guard: PsimGuard,
    victim: Classifier,
    validation: Corpus,
    part: Corpus,
    directions: list[tuple[int, Corpus]],
    transplant: Transplant | None = None,
    kept: Path | None = None,
) -> dict[str, Any]:
    """One fit in three views, and with transplants beside both; each calibrated on the validation split.

    The scores of validation, test and triggered texts are kept in the file `kept`.
    """
    corpora = [validation, part, *(texts for _, texts in directions)]
    answers = [victim.predict(corpus.texts) for corpus in corpora]
    scores, seconds = _scores(guard, victim, transplant, corpora, answers)
    if kept is not None:
        names = ["validation", "test", *(f"triggered-{target}" for target, _ in directions)]
        flat = {f"{n} {v}": own[v] for n, own in zip(names, scores, strict=True) for v in own}
        np.savez_compressed(kept, **flat, **{f"{n} answers": a.labels for n, a in zip(names, answers, strict=True)})  # type: ignore[arg-type]
    held_out, clean, *triggered = scores
    views: dict[str, Any] = {}
    for view, low in clean.items():
        bar = calibrate(held_out[view]).threshold
        refused = is_flagged(low, bar)
        found = []
        for (target, _), own, said in zip(directions, triggered, answers[2:], strict=True):
            is_stopped = is_flagged(own[view], bar)
            found.append(
                {
                    "auroc": auroc(low, own[view]),
                    "far_at_1": far_at_frr(low, own[view], 0.01).value,
                    "far_at_5": far_at_frr(low, own[view], 0.05).value,
                    "far": float(np.mean(~is_stopped)),
                    "attack_success_rate": attack_success_rate(said.labels, target, is_stopped).value,
                    "n": len(is_stopped),
                }
            )
        views[view] = {
            "threshold": bar,
            "frr": float(np.mean(refused)),
            "clean_accuracy": clean_accuracy(part.labels, answers[1].labels, refused).value,
            "directions": found,
        }
    return {
        "views": views,
        "steps": guard.training.steps if guard.training else None,
        "doses": guard.doses,
        "is_blind": guard.is_blind,
        "seconds": seconds,
    }


def _scores(
    guard: PsimGuard,
    victim: Classifier,
    transplant: Transplant | None,
    corpora: list[Corpus],
    answers: list[Predictions],
) -> tuple[list[dict[str, NDArray[np.float64]]], dict[str, float]]:
    """Score every corpus in every view; beside it, what the clean test texts took in seconds."""
    looks = guard.looks
    assert looks is not None
    scores, seconds = [], dict[str, float]()
    for number, (corpus, said) in enumerate(zip(corpora, answers, strict=True)):
        start = time.monotonic()
        predictions = guard.predict(corpus.texts)
        own: dict[str, NDArray[np.float64]] = {view: looks.score(predictions, view) for view in VIEWS}
        psim = time.monotonic() - start
        if transplant is not None:
            bound = replace(guard, transplant=transplant)
            own[TRANSPLANTS] = bound.behind(victim, said, corpus.texts, own["both"])
        if number == 1:
            seconds = {"psim": psim, TRANSPLANTS: time.monotonic() - start - psim}
        scores.append(own)
    return scores, seconds


def _keep_promise(base: Base, victim: Classifier, seed: int) -> dict[str, Any]:
    """Calibrate 1,000 times on 872 clean texts drawn anew; how often are more than 1 % of all others refused?"""
    train, validation, test_texts = (load_corpus("sst2", split) for split in ("train", "validation", "test"))
    fitted, rest = train.partition([PROMISE_SIZE, len(train) - PROMISE_SIZE], seed)
    guard = Psim().fit(base, fitted, validation, seed=seed, max_length=LENGTH)
    test = TransplantTest().fit(guard.score, victim, fitted, seed=seed)
    texts = [*rest.texts, *validation.texts, *test_texts.texts]
    pool = Corpus.of("pool", texts, [0] * len(texts), rest.label_names)
    (scores,), _ = _scores(guard, victim, test, [pool], [victim.predict(texts)])
    return {view: frr_of_draws(own, seed) for view, own in scores.items()}


def frr_of_draws(scores: NDArray[np.float64], seed: int) -> dict[str, Any]:
    draw = generator(seed, "promise")
    rates = []
    for _ in range(DRAWS):
        order = draw.permutation(len(scores))
        bar = calibrate(scores[order[:CALIBRATION_SIZE]]).threshold
        rates.append(float(is_flagged(scores[order[CALIBRATION_SIZE:]], bar).mean()))
    return {
        "texts": len(scores),
        "draws": DRAWS,
        "share_above": float(np.mean(np.array(rates) > 0.01)),
        "mean": float(np.mean(rates)),
        "highest": max(rates),
    }


def run(store: Path, part: int, parts: int, what: str) -> None:
    """Do every cell of this part that has no record yet; one that fails is reported and does not stop the others."""
    cells = [cell for cell in CELLS if cell[0] in FIRST] if what == "strategies" else CELLS
    for name, seed in cells[part::parts]:
        path = store / (f"strategies-{name}-{seed}.json" if what == "strategies" else f"{name}-{seed}.json")
        if path.exists():
            continue
        start = time.monotonic()
        try:
            if what == "models":
                make_models(store / f"models-{name}-{seed}", name, seed)
            elif what == "strategies":
                make_strategies(store, name, seed).write(path)
            else:
                make_cell(store, name, seed).write(path)
            note = f"{time.monotonic() - start:.0f} s"
        except ForetasteError as error:
            note = f"FAILED: {error}"
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {path.stem}: {note}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--part", default="0/1", help="i/n: every n-th cell, from the i-th on (default 0/1: all)")
    parser.add_argument(
        "--only",
        choices=["cells", "models", "strategies"],
        default="cells",
        help="the cells (default); their bases and victims, which a later run takes up; PSIM with every strategy",
    )
    arguments = parser.parse_args()
    if arguments.action == "table":
        from adaptive_tables import tables

        sys.stdout.write(tables(arguments.store) + "\n")
        return
    part, parts = map(int, arguments.part.split("/"))
    run(arguments.store, part, parts, arguments.only)


if __name__ == "__main__":
    main()
