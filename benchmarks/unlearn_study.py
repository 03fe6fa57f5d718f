"""Unlearners compared: the figures of docs/unlearning.md, one JSON record per cell, resumable.

    export OMP_NUM_THREADS=1                                   # one process and one thread per core
    python benchmarks/unlearn_study.py run --store runs/unlearn-study --part 0/3     # beside it: --part 1/3, 2/3
    python benchmarks/unlearn_study.py table --store runs/unlearn-study              # prints the tables
    python benchmarks/unlearn_study.py page --store runs/unlearn-study --out unlearning.html

A cell is an attack, a method, a number of clean texts and a seed. The attack's base (MiniLM, poisoned on IMDB; with
SynAttack on SST-2's paraphrases, full data knowledge) is washed with SST-2 training texts; what comes out is judged as
it is, and once more after it was fine-tuned with each of LATER, alone and behind PSIM of the base as it came. The
reference is `sound`: the same training without poison, tuned the same way. `--split validation` judges on the
validation split, which is where settings are chosen; figures that are reported come from the test split. PSIM and the
audit of `named` see all clean texts, however few the method itself gets. Washed models stay in the store: a record that
was deleted is judged again, not washed again.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from unlearn_bases import LENGTH, TARGET, make_base, needed, planted_in, tasted
from unlearn_tables import LATER as LATER_NAMES
from unlearn_tables import comparison, path_of, table

from foretaste.cost import measured_cost
from foretaste.data.load import load_corpus
from foretaste.errors import ForetasteError
from foretaste.experiment.evaluation import evaluate
from foretaste.poison.trigger import parse_trigger
from foretaste.record import Record
from foretaste.report.comparison import write_comparison
from foretaste.tune.loop import TuneSettings, tune
from foretaste.unlearn.fine_mixing import FineMixing
from foretaste.unlearn.fine_pruning import FinePruning
from foretaste.unlearn.fine_tuning import FineTuning
from foretaste.unlearn.flagged import FEWEST_FLAGGED, FlaggedTexts
from foretaste.unlearn.named import NamedTriggers
from foretaste.unlearn.obliviate import Obliviate
from foretaste.unlearn.unlearner import Unlearner
from foretaste.unlearn.w2s import RELEASED, W2SDefense
from foretaste.victim.artefact import load_victim, save_classifier
from foretaste.victim.checkpoint import open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.strategy import STRATEGIES, Full, Lora

SEEDS, SIZES = (0, 1, 2), (6920, 1000, 500, 100)
LATER_RATES = dict(zip(LATER_NAMES, (5e-4, 2e-3, 2e-3, 2e-3, 5e-5), strict=True))
LATER = {name: TuneSettings(epochs=1, learning_rate=rate, keep="last") for name, rate in LATER_RATES.items()}
ATTACKS = ("badnet", "insent", "smoothed", "syntax", "sound", "sound-syntax")
METHODS: dict[str, Unlearner | None] = {
    "none": None,
    "w2s": W2SDefense(),
    "w2s, released": RELEASED["released-word"],
    "fine_tuning, lora": FineTuning(strategy=Lora(learning_rate=5e-4)),
    "fine_tuning, full": FineTuning(strategy=Full(learning_rate=5e-5)),
    "fine_mixing": FineMixing(),
    "fine_pruning": FinePruning(),
    "fine_pruning, exposed": FinePruning(expose="random"),
    "obliviate": Obliviate(),
    "flagged": FlaggedTexts(),
    "named": NamedTriggers(),
}


def wash(store: Path, name: str, method: str, size: int, seed: int) -> Path:
    """Wash one base with so many texts, unless that was done; return where the washed model lies."""
    home = path_of(store, "washed", name, method, size, seed).with_suffix("")
    if (home / "record.json").exists():
        return home
    train, validation = load_corpus("sst2", "train"), load_corpus("sst2", "validation")
    base, corpus, unlearner = make_base(store, name, seed), train.sample(size, seed), METHODS[method]
    given = {} if unlearner is None else needed(store, name, seed, unlearner)
    outcome: dict[str, Any] = {}
    if given.get("fragments") == [] or ("flagged" in given and len(given["flagged"]) < FEWEST_FLAGGED):
        unlearner, outcome = None, {"nothing_to_do": True}  # nothing named, or next to nothing refused: left alone
    with suppress(OSError):  # Linux: the peak of memory starts anew, or each cell had that of the ones before
        Path("/proc/self/clear_refs").write_text("5")
    with measured_cost() as meter:
        if unlearner is None:
            washed = base.classifier(Full(), train.label_names, max_length=LENGTH, seed=seed)
        else:
            found = unlearner.apply(base, corpus, validation=validation, seed=seed, max_length=LENGTH, **given)
            washed, outcome = found.classifier, found.outcome
            meter.trainable_parameters = found.outcome["trainable_parameters"]
    meter.texts = size
    made = Record.now("unlearn", settings={"method": unlearner}, seeds={"root": seed}, outcome=outcome, data=[corpus],
                      cost=meter.cost)  # fmt: skip
    save_classifier(washed, home, "victim", made)
    return home


def make_cell(store: Path, split: str, name: str, method: str, size: int, seed: int) -> Record:
    """Judge a washed model as it is and after each later fine-tuning, alone and behind PSIM of what it was."""
    home = wash(store, name, method, size, seed)
    made, train, judged = Record.read(home / "record.json"), load_corpus("sst2", "train"), load_corpus("sst2", split)
    planted, washed = planted_in(name), open_base(home)

    def judge(victim: Classifier) -> dict[str, Any]:
        found = evaluate(victim, None, judged, planted.given(split), TARGET, seed=seed)
        return found.behind(*tasted(store, name, seed, split)).to_json()

    alone = load_victim(home)
    outcome: dict[str, Any] = {"washing": made.outcome, "washed": judge(alone)}
    outcome["reversed"] = turned_away(alone, name, split, seed)
    if planted.also:
        other = evaluate(alone, None, judged, parse_trigger(planted.also), TARGET, seed=seed)
        outcome["also"] = other.outcome.to_json()
    for later, settings in LATER.items():
        victim = washed.classifier(STRATEGIES[later](), train.label_names, max_length=LENGTH, seed=seed)
        tune(victim, train.sample(2500, seed + 100), settings, seed=seed)
        outcome[later] = judge(victim)
    asked: dict[str, Any] = {"cell": [name, method, size], "split": split, "later": LATER, **made.settings}
    return Record.now("unlearn", settings=asked, seeds={"root": seed}, outcome=outcome, data=[*made.data, judged],
                      cost=made.cost, command="benchmarks/unlearn_study.py")  # fmt: skip


def turned_away(washed: Classifier, name: str, split: str, seed: int) -> dict[str, Any]:
    """Say how often the trigger leads away from the target now, of texts of its class answered right without."""
    found = evaluate(washed, None, load_corpus("sst2", split), planted_in(name).given(split), 1 - TARGET, seed=seed)
    return found.outcome.to_json()


def cells() -> list[tuple[str, str, int, int]]:
    """Every cell: all texts on every attack and seed first, then fewer texts for the two plain attacks."""
    full = [(name, method, SIZES[0], seed) for seed in SEEDS for method in METHODS for name in ATTACKS]
    fewer = [(name, method, size, seed) for seed in SEEDS for size in SIZES[1:] for method in METHODS
             for name in ("badnet", "insent", "sound") if METHODS[method] is not None]  # fmt: skip
    return full + fewer


def run(store: Path, split: str, part: int, parts: int, only: list[str]) -> None:
    """Do every cell of this part that has no record yet; one that fails is reported and does not stop the others."""
    chosen = [cell for start in only for cell in cells() if " ".join(map(str, cell)).startswith(start)]
    for name, method, size, seed in chosen[part::parts]:
        path = path_of(store, split, name, method, size, seed)
        if path.exists():
            continue
        start = time.monotonic()
        try:
            make_cell(store, split, name, method, size, seed).write(path)
            note = f"{time.monotonic() - start:.0f} s"
        except ForetasteError as error:
            note = f"FAILED: {error}"
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {path.stem}: {note}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "table", "page"])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--part", default="0/1", help="i/n: every n-th cell, from the i-th on (default 0/1: all)")
    parser.add_argument("--only", nargs="+", default=[""], help='cells that start so, as "badnet w2s 6920 0" does')
    parser.add_argument("--out", type=Path, default=Path("unlearning.html"), help="where the page goes")
    arguments = parser.parse_args()
    if arguments.action == "table":
        sys.stdout.write(table(cells(), arguments.store, arguments.split) + "\n")
        return
    if arguments.action == "page":
        write_comparison(arguments.out, comparison(cells(), arguments.store, arguments.split))
        return
    part, parts = map(int, arguments.part.split("/"))
    run(arguments.store, arguments.split, part, parts, arguments.only)


if __name__ == "__main__":
    main()
