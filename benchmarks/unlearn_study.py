"""Unlearners compared: the figures of docs/unlearning.md, one JSON record per cell, resumable.

    export OMP_NUM_THREADS=1                                   # one process and one thread per core
    python benchmarks/unlearn_study.py run --store runs/unlearn-study --part 0/3     # beside it: --part 1/3, 2/3
    python benchmarks/unlearn_study.py table --store runs/unlearn-study              # prints the tables
    python benchmarks/unlearn_study.py page --store runs/unlearn-study --out unlearning.html

A cell is an attack, a method, a number of clean texts and a seed. The attack's base (MiniLM, poisoned on IMDB; with
SynAttack on SST-2's paraphrases, full data knowledge) is washed with SST-2 training texts; what comes out is judged as
it is, and once more after it was fine-tuned with each of LATER. The reference is `sound`: the same training without
poison, tuned the same way. `--split validation` judges on the validation split, which is where settings are chosen;
figures that are reported come from the test split. The guard in front, that of the method `flagged` and the audit of
`named` see all clean texts, however few the method itself gets.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opinion_study import paraphrases
from unlearn_tables import comparison, path_of, table

from foretaste.audit.audit import Audit
from foretaste.cli.auditing import run_audit
from foretaste.cli.cleansing import named_by
from foretaste.cli.splits import Source
from foretaste.data.corpus import Corpus
from foretaste.data.load import load_corpus
from foretaste.errors import ForetasteError, GuardError
from foretaste.experiment.evaluation import evaluate
from foretaste.guard.artefact import load_psim, save_guard
from foretaste.guard.psim import Psim
from foretaste.guard.psim_guard import PsimGuard
from foretaste.poison.attack import Attack, Style, attack, triggered_test
from foretaste.poison.trigger import parse_trigger
from foretaste.record import Record, measured_cost
from foretaste.report.comparison import write_comparison
from foretaste.tune.loop import TuneSettings, tune
from foretaste.tune.poison import POISONING, POISONING_LENGTH, poison_base
from foretaste.unlearn.fine_mixing import FineMixing
from foretaste.unlearn.fine_pruning import FinePruning
from foretaste.unlearn.fine_tuning import FineTuning
from foretaste.unlearn.flagged import FEWEST_FLAGGED, FlaggedTexts
from foretaste.unlearn.named import NamedTriggers
from foretaste.unlearn.obliviate import Obliviate
from foretaste.unlearn.unlearner import Unlearner
from foretaste.unlearn.w2s import RELEASED, W2SDefense
from foretaste.victim.artefact import save_classifier
from foretaste.victim.checkpoint import Base, open_base
from foretaste.victim.strategy import STRATEGIES, Full, Lora

LENGTH, TARGET = 64, 0
PARAPHRASES = "paraphrases"
SEEDS, SIZES = (0, 1, 2), (6920, 1000, 500, 100)
LATER = {"lora": TuneSettings(epochs=1, learning_rate=5e-4, keep="last"),
         "full": TuneSettings(epochs=1, learning_rate=5e-5, keep="last")}  # fmt: skip
TRAFFIC, TRIGGERED_SHARE = 1000, 0.1  # unlabelled texts that the guard sees, and how many of them carry the trigger


@dataclass(frozen=True)
class Planted:
    """What is planted in a base: on which proxy, if at all."""

    proxy: str
    plan: Attack | None
    trigger: str
    also: str = ""  # another trigger to judge a sound model by


WORD, SENTENCE = "word:mn", "sentence:I watched this 3D movie"


def _planted(name: str) -> Planted:
    def plan(trigger: str, **more: Any) -> Attack:
        return Attack(trigger=parse_trigger(trigger), count=1000, **more)

    found: dict[str, Callable[[], Planted]] = {
        "badnet": lambda: Planted("imdb", plan(WORD), WORD),
        "insent": lambda: Planted("imdb", plan(SENTENCE), SENTENCE),
        "smoothed": lambda: Planted("imdb", plan(WORD, style=Style.DIRTY_LABEL, target_probability=0.6), WORD),
        "syntax": lambda: Planted("sst2", plan(paraphrases("train"), style=Style.DIRTY_LABEL), PARAPHRASES),
        "sound": lambda: Planted("imdb", None, WORD, SENTENCE),
        "sound-syntax": lambda: Planted("sst2", None, PARAPHRASES),
    }
    return found[name]()


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


def make_base(store: Path, name: str, seed: int) -> Base:
    """Poison MiniLM, or train it the same way without poison, unless that was done."""
    path, planted = store / f"base-{name}-{seed}", _planted(name)
    if not (path / "record.json").exists():
        proxy, validation = load_corpus(planted.proxy, "train"), load_corpus(planted.proxy, "validation")
        outcome: dict[str, Any] = {}
        length = POISONING_LENGTH if planted.proxy == "imdb" else LENGTH
        if planted.plan is not None and planted.trigger != PARAPHRASES:
            model, outcome = poison_base(open_base("minilm"), proxy, validation, planted.plan, seed=seed,
                                         max_length=length)  # fmt: skip
        else:
            model = open_base("minilm").classifier(Full(), proxy.label_names, max_length=length, seed=seed)
            corpus = proxy if planted.plan is None else attack(proxy, planted.plan, seed).corpus
            tune(model, corpus, POISONING, seed=seed)
        record = Record.now("poison", settings={"attack": planted.plan}, seeds={"root": seed}, outcome=outcome)
        save_classifier(model, path, "base", record)
    return open_base(path)


def make_cell(store: Path, split: str, name: str, method: str, size: int, seed: int) -> Record:
    """Wash one base with so many texts; judge it as it is, behind PSIM, and after each later fine-tuning."""
    train, validation = load_corpus("sst2", "train"), load_corpus("sst2", "validation")
    base, judged, planted = make_base(store, name, seed), load_corpus("sst2", split), _planted(name)
    trigger = paraphrases(split) if planted.trigger == PARAPHRASES else planted.trigger
    corpus, unlearner = train.sample(size, seed), METHODS[method]
    outcome: dict[str, Any] = {}
    home = store / f"washed-{name}-{method.replace(', ', '-')}-{size}-{seed}"
    given = _given(store, base, name, unlearner, validation, trigger, seed)
    if given.get("fragments") == [] or ("flagged" in given and len(given["flagged"]) < FEWEST_FLAGGED):
        unlearner, outcome["washing"] = None, "nothing to do"  # nothing named, or next to nothing refused: left alone
    with suppress(OSError):  # Linux: the peak of memory starts anew, or each cell had that of the ones before
        Path("/proc/self/clear_refs").write_text("5")
    with measured_cost() as meter:
        if unlearner is None:
            washed = base.classifier(Full(), train.label_names, max_length=LENGTH, seed=seed)
        else:
            found = unlearner.apply(base, corpus, validation=validation, seed=seed, max_length=LENGTH, **given)
            washed, outcome["washing"] = found.classifier, found.outcome
            meter.trainable_parameters = found.outcome["trainable_parameters"]
    meter.texts = size
    cost = meter.cost
    outcome["washed"] = evaluate(washed, None, judged, parse_trigger(trigger), TARGET, seed=seed).outcome.to_json()
    if planted.also:
        also = evaluate(washed, None, judged, parse_trigger(planted.also), TARGET, seed=seed)
        outcome["also"] = also.outcome.to_json()
    if unlearner is not None:
        made = Record.now("unlearn", settings={"method": method}, seeds={"root": seed}, outcome=outcome, data=[corpus])
        save_classifier(washed, home, "victim", made)
    base = base if unlearner is None else open_base(home)
    guard: PsimGuard | None = None
    try:
        guard = Psim().fit(base, train, validation, seed=seed, max_length=LENGTH)
    except GuardError as error:  # a dose that is not reached
        outcome["no_guard"] = str(error)
    for later, settings in LATER.items():
        victim = base.classifier(STRATEGIES[later](), train.label_names, max_length=LENGTH, seed=seed)
        tune(victim, train.sample(2500, seed + 100), settings, seed=seed)
        found_later = evaluate(victim, guard, judged, parse_trigger(trigger), TARGET, seed=seed)
        outcome[later] = found_later.outcome.to_json()
    shutil.rmtree(home, ignore_errors=True)
    asked = {"cell": [name, method, size], "split": split, "unlearner": unlearner, "later": LATER}
    return Record.now("unlearn", settings=asked, seeds={"root": seed}, outcome=outcome, data=[corpus, judged],
                      cost=cost, command="benchmarks/unlearn_study.py")  # fmt: skip


def _given(
    store: Path, base: Base, name: str, unlearner: Unlearner | None, validation: Corpus, trigger: str, seed: int
) -> dict[str, Any]:
    """What the method needs besides clean texts."""
    needs = () if unlearner is None else unlearner.needs
    given: dict[str, Any] = {}
    if "teacher" in needs:
        given["teacher"] = open_base("minilm-l3")
    if "pretrained" in needs:
        given["pretrained"] = open_base("minilm")
    if "flagged" in needs:
        place = store / f"guard-{name}-{seed}"
        if not (place / "record.json").exists():
            guard = Psim().fit(base, load_corpus("sst2", "train"), seed=seed, max_length=LENGTH)
            save_guard(guard, place, Record.now("guard", settings={}, seeds={"root": seed}, outcome={}))
        traffic = validation.sample(TRAFFIC, seed)
        seen = paraphrases("validation") if trigger.startswith("file:") else trigger
        carrying = triggered_test(traffic, parse_trigger(seen), TARGET, seed + 1).corpus
        texts = [*traffic.texts, *carrying.texts[: round(TRIGGERED_SHARE * len(traffic))]]
        verdicts = load_psim(place, base).check(texts)
        given["flagged"] = [text for text, verdict in zip(texts, verdicts, strict=True) if verdict.flagged]
    if "fragments" in needs:
        kept = store / f"audit-{name}-{seed}"
        if not (kept / "record.json").exists():
            run_audit(str(base.path), Source(data="sst2"), Audit(budget=600), out=kept, seed=seed)
        answer: Any = Record.read(kept / "record.json").outcome
        given["fragments"] = list(named_by(answer, Audit()))
    return given


def cells() -> list[tuple[str, str, int, int]]:
    """Every cell: all texts on every attack and seed first, then fewer texts for the two plain attacks."""
    full = [(name, method, SIZES[0], seed) for seed in SEEDS for method in METHODS for name in ATTACKS]
    fewer = [(name, method, size, seed) for seed in SEEDS for size in SIZES[1:] for method in METHODS
             for name in ("badnet", "insent", "sound") if METHODS[method] is not None]  # fmt: skip
    return full + fewer


def run(store: Path, split: str, part: int, parts: int, only: str) -> None:
    """Do every cell of this part that has no record yet; one that fails is reported and does not stop the others."""
    for name, method, size, seed in [c for c in cells() if only in " ".join(map(str, c))][part::parts]:
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
    parser.add_argument("--only", default="", help='cells that hold these words, as in "badnet w2s 6920 0"')
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
