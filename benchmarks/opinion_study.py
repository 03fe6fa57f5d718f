"""The second opinion against grammar (SynAttack) and against attackers who know the guard: docs/opinion.md.

    export OMP_NUM_THREADS=1                                   # one process and one thread per core
    python benchmarks/opinion_study.py trusted --store runs/opinion-study --part 0/2       # and 1/2
    python benchmarks/opinion_study.py run --store runs/opinion-study --bases runs/adaptive-study --part 0/2
    python benchmarks/opinion_study.py table --store runs/opinion-study           # prints the tables

`trusted` fine-tunes the trusted models on the SST-2 training set. `run` judges SynAttack, made here: MiniLM, fully
fine-tuned on the SST-2 training set with 1,000 texts as paraphrases under the target label, with a LoRA victim on
the clean set; its floor, the same without poison; and the bases and victims that adaptive_study.py made, where they
exist. Thresholds come from the validation split; all is measured on the test split. A record per cell; a run that
was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from adaptive_study import ATTACKS, COUNT, SEEDS, TEST_SIZE, frr_of_draws
from numpy.typing import NDArray

from foretaste.data.corpus import Corpus
from foretaste.data.load import load_corpus
from foretaste.errors import ForetasteError
from foretaste.evaluate.metrics import attack_success_rate, auroc, clean_accuracy
from foretaste.evaluate.threshold import calibrate, is_flagged
from foretaste.guard.psim import PSIM_STRATEGIES, Psim
from foretaste.guard.second_opinion import SecondOpinion
from foretaste.poison.attack import Attack, Style, attack, triggered_test
from foretaste.poison.trigger import parse_trigger
from foretaste.record import Record
from foretaste.tune.loop import TuneSettings, tune
from foretaste.tune.poison import POISONING
from foretaste.victim.artefact import load_victim, save_classifier
from foretaste.victim.checkpoint import open_base
from foretaste.victim.classifier import Predictions
from foretaste.victim.strategy import Full, Lora

SYNTAX, FLOOR = "syntax", "syntax-floor"
POISONED = 1000
VICTIM = TuneSettings(epochs=2, learning_rate=5e-4)
PSIM = Psim(strategy=PSIM_STRATEGIES["lora"])  # the default when docs/opinion.md was measured
FRRS = (0.01, 0.03)
TRUSTED = ("minilm-l3", "minilm")
DRAWS, SPLIT = 3, 0  # of each trusted model; all hold out the same tenth of the training set
# The draw of a single trusted model is the cell's seed.
PANELS: dict[str, Callable[[int], list[tuple[str, int]]]] = {
    "minilm-l3": lambda seed: [("minilm-l3", seed)],
    "three minilm-l3": lambda seed: [("minilm-l3", draw) for draw in range(DRAWS)],
    "minilm": lambda seed: [("minilm", seed)],
    "minilm-l3 and minilm": lambda seed: [("minilm-l3", seed), ("minilm", seed)],
}
NAMES = (SYNTAX, FLOOR, *ATTACKS)

Scores = dict[str, NDArray[np.float64]]


def make_trusted(store: Path, location: str) -> None:
    """Fine-tune the draws of one trusted model as `SecondOpinion` does; whom they will judge plays no part in that."""
    if (store / f"trusted-{location}-{DRAWS - 1}" / "record.json").exists():
        return
    train = load_corpus("sst2", "train")
    stranger = open_base("minilm").classifier(Full(), train.label_names)
    opinion = SecondOpinion().consult([open_base(location)] * DRAWS, stranger, train, seed=SPLIT)
    for draw, member in enumerate(opinion.members):
        outcome = {"accuracy": member.accuracy, "temperature": member.temperature}
        record = Record.now("tune", settings={"trusted": SecondOpinion()}, seeds={"root": SPLIT, "draw": draw},
                            outcome=outcome, data=[train])  # fmt: skip
        save_classifier(member.classifier, store / f"trusted-{location}-{draw}", "victim", record)


def paraphrases(split: str) -> str:
    """The stored paraphrases of a split, as a trigger."""
    return f"file:{Path(os.environ['FORETASTE_DATA']) / 'sst2' / 'variants' / f'syntactic_full_{split}.parquet'}"


def make_syntax(home: Path, is_poisoned: bool, seed: int) -> None:
    """Poison a base with paraphrases, or fine-tune it without, and a victim from it, unless they exist."""
    train, validation = load_corpus("sst2", "train"), load_corpus("sst2", "validation")
    plan = Attack(trigger=parse_trigger(paraphrases("train")), style=Style.DIRTY_LABEL, count=POISONED)
    if not (home / "base" / "record.json").exists():
        base = open_base("minilm").classifier(Full(), train.label_names, seed=seed)
        corpus = attack(train, plan, seed).corpus if is_poisoned else train
        tune(base, corpus, POISONING, seed=seed)
        record = Record.now("poison", settings={"attack": plan if is_poisoned else None, "tune": POISONING},
                            seeds={"root": seed}, outcome={}, data=[train])  # fmt: skip
        save_classifier(base, home / "base", "base", record)
    if not (home / "victim" / "record.json").exists():
        victim = open_base(home / "base").classifier(Lora(), train.label_names, seed=seed)
        result = tune(victim, train, VICTIM, seed=seed, validation=validation)
        record = Record.now("tune", settings={"tune": VICTIM}, seeds={"root": seed},
                            outcome={"validation_accuracies": result.validation_accuracies}, data=[train])  # fmt: skip
        save_classifier(victim, home / "victim", "victim", record)


def judge_cell(store: Path, home: Path, name: str, seed: int) -> Record:
    """Measure PSIM, every panel alone, and both together on one base and victim."""
    train, validation, test = (load_corpus("sst2", split) for split in ("train", "validation", "test"))
    if name in (SYNTAX, FLOOR):
        clean, trigger, target = test, parse_trigger(paraphrases("test")), 0
    else:
        clean, trigger, target = test.sample(TEST_SIZE, seed), ATTACKS[name].trigger, ATTACKS[name].target
    triggered = triggered_test(clean, trigger, target, seed).corpus
    victim = load_victim(home / "victim")
    sides = {"validation": validation, "clean": clean, "triggered": triggered}
    said = {side: victim.predict(corpus.texts) for side, corpus in sides.items()}
    guard = PSIM.fit(open_base(home / "base"), train, validation, seed=seed, max_length=victim.max_length)
    views: dict[str, Scores] = {"PSIM": {side: guard.score(corpus.texts) for side, corpus in sides.items()}}
    for panel, members in PANELS.items():
        models = [load_victim(store / f"trusted-{location}-{draw}") for location, draw in members(seed)]
        opinion = SecondOpinion().consult(models, victim, train, seed=SPLIT)
        found = {side: opinion.surprise(victim, said[side], corpus.texts) for side, corpus in sides.items()}
        views[panel] = found
        views[f"PSIM and {panel}"] = {side: np.maximum(views["PSIM"][side], found[side]) for side in sides}
    outcome: dict[str, Any] = {
        "clean_accuracy": clean_accuracy(clean.labels, said["clean"].labels).value,
        "attack_success_rate": attack_success_rate(said["triggered"].labels, target).value,
        "n_triggered": len(triggered),
        "views": {view: _judge(scores, said, clean, target) for view, scores in views.items()},
    }
    if name == FLOOR:  # base and victim are sound; all clean texts that no model was trained on are there
        pools = {view: np.concatenate([scores["validation"], scores["clean"]]) for view, scores in views.items()}
        outcome["promise"] = {view: frr_of_draws(pool, seed) for view, pool in pools.items()}
    settings = {"cell": name, "psim": PSIM, "opinion": SecondOpinion(), "count": COUNT}
    return Record.now("evaluate", settings=settings, seeds={"root": seed}, outcome=outcome,
                      data=[train, validation, clean], command="benchmarks/opinion_study.py")  # fmt: skip


def _judge(scores: Scores, said: dict[str, Predictions], clean: Corpus, target: int) -> dict[str, Any]:
    """Rates at the promised FRRs, and at bars that refuse exactly so many of these clean texts."""
    found: dict[str, Any] = {"auroc": auroc(scores["clean"], scores["triggered"])}
    for frr in FRRS:
        bars = {
            "promised": calibrate(scores["validation"], frr).threshold,
            "exact": float(np.quantile(scores["clean"], 1 - frr, method="higher")),
        }
        for kind, bar in bars.items():
            refused, stopped = is_flagged(scores["clean"], bar), is_flagged(scores["triggered"], bar)
            found[f"{kind}_{frr}"] = {
                "frr": float(np.mean(refused)),
                "clean_accuracy": clean_accuracy(clean.labels, said["clean"].labels, refused).value,
                "attack_success_rate": attack_success_rate(said["triggered"].labels, target, stopped).value,
            }
    return found


def run(store: Path, bases: Path, part: int, parts: int) -> None:
    """Do every cell of this part that has no record yet; one that fails is reported and does not stop the others."""
    cells = [(name, seed) for name in NAMES for seed in SEEDS]
    for name, seed in cells[part::parts]:
        path = store / f"{name}-{seed}.json"
        home = (store if name in (SYNTAX, FLOOR) else bases) / f"models-{name}-{seed}"
        is_theirs = name not in (SYNTAX, FLOOR)
        if path.exists() or (is_theirs and not (home / "victim" / "record.json").exists()):
            continue
        start = time.monotonic()
        try:
            if not is_theirs:
                make_syntax(home, name == SYNTAX, seed)
            judge_cell(store, home, name, seed).write(path)
            note = f"{time.monotonic() - start:.0f} s"
        except ForetasteError as error:
            note = f"FAILED: {error}"
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {path.stem}: {note}\n")


def table(store: Path) -> str:
    """Mean over seeds, in per cent: ASR (and CA, FRR) of the victim alone and behind each guard."""
    found = {
        name: [json.loads(p.read_text())["outcome"] for p in sorted(store.glob(f"{name}-[0-9].json"))] for name in NAMES
    }
    views = ["PSIM", *PANELS, *(f"PSIM and {panel}" for panel in PANELS)]
    parts = []
    for kind in ("exact", "promised"):
        for frr in FRRS:
            head = ["attack", "seeds", "victim CA", "victim ASR", *(f"{view}" for view in views)]
            rows = [head, ["---"] * len(head)]
            for name, outcomes in found.items():
                if outcomes:
                    cells = [
                        _spread([o["views"][view][f"{kind}_{frr}"]["attack_success_rate"] for o in outcomes])
                        for view in views
                    ]
                    own = [_spread([o[key] for o in outcomes]) for key in ("clean_accuracy", "attack_success_rate")]
                    rows.append([name, str(len(outcomes)), *own, *cells])
            parts.append(f"ASR, FRR {frr:.0%}, {kind}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))
    rows = [
        [
            "guard",
            "AUROC",
            *(f"{what} {frr:.0%}" for frr in FRRS for what in ("FRR at promised", "CA lost at promised")),
        ]
    ]
    rows.append(["---"] * len(rows[0]))
    for view in views:
        outcomes = [o for name in found for o in found[name]]
        if outcomes:
            cells = []
            for frr in FRRS:
                cells.append(_spread([o["views"][view][f"promised_{frr}"]["frr"] for o in outcomes]))
                cells.append(
                    _spread(
                        [o["clean_accuracy"] - o["views"][view][f"promised_{frr}"]["clean_accuracy"] for o in outcomes]
                    )
                )
            values = [o["views"][view]["auroc"] for o in found[SYNTAX]]
            rows.append([view, " ".join(f"{v:.3f}" for v in values), *cells])
    parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(parts)


def _spread(values: list[float]) -> str:
    low, mean, high = (100 * float(f(values)) for f in (np.min, np.mean, np.max))
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ({low:.1f} to {high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["trusted", "run", "table"])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--bases", type=Path, default=Path("runs/adaptive-study"), help="what adaptive_study.py made")
    parser.add_argument("--part", default="0/1", help="i/n: every n-th piece, from the i-th on (default 0/1: all)")
    arguments = parser.parse_args()
    part, parts = map(int, arguments.part.split("/"))
    if arguments.action == "table":
        sys.stdout.write(table(arguments.store) + "\n")
    elif arguments.action == "trusted":
        for location in TRUSTED[part::parts]:
            make_trusted(arguments.store, location)
    else:
        run(arguments.store, arguments.bases, part, parts)


if __name__ == "__main__":
    main()
