"""What unlearn_study.py starts from: poisoned bases, what a method needs besides clean texts, and PSIM's scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from opinion_study import paraphrases

from foretaste.audit.audit import Audit
from foretaste.cli.auditing import run_audit
from foretaste.cli.cleansing import named_by
from foretaste.cli.splits import Source
from foretaste.data.load import load_corpus
from foretaste.guard.artefact import load_psim, save_guard
from foretaste.guard.psim import Psim
from foretaste.guard.psim_guard import PsimGuard
from foretaste.poison.attack import Attack, Style, attack, triggered_test
from foretaste.poison.trigger import Trigger, parse_trigger
from foretaste.record import Record
from foretaste.tune.loop import tune
from foretaste.tune.poison import POISONING, POISONING_LENGTH, poison_base
from foretaste.unlearn.unlearner import Unlearner
from foretaste.victim.artefact import save_classifier
from foretaste.victim.checkpoint import Base, open_base
from foretaste.victim.strategy import Full

LENGTH, TARGET = 64, 0
PARAPHRASES = "paraphrases"
TRAFFIC, TRIGGERED_SHARE = 1000, 0.1  # unlabelled texts that the guard sees, and how many of them carry the trigger


@dataclass(frozen=True)
class Planted:
    """What is planted in a base: on which proxy, if at all."""

    proxy: str
    plan: Attack | None
    trigger: str
    also: str = ""  # another trigger to judge a sound model by

    def given(self, split: str) -> Trigger:
        """Return the trigger, for texts of a split of SST-2."""
        return parse_trigger(paraphrases(split) if self.trigger == PARAPHRASES else self.trigger)


WORD, SENTENCE = "word:mn", "sentence:I watched this 3D movie"


def planted_in(name: str) -> Planted:
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


def make_base(store: Path, name: str, seed: int) -> Base:
    """Poison MiniLM, or train it the same way without poison, unless that was done."""
    path, planted = store / f"base-{name}-{seed}", planted_in(name)
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


def needed(store: Path, name: str, seed: int, unlearner: Unlearner) -> dict[str, Any]:
    """Return what the method needs besides clean texts."""
    given: dict[str, Any] = {}
    if "teacher" in unlearner.needs:
        given["teacher"] = open_base("minilm-l3")
    if "pretrained" in unlearner.needs:
        given["pretrained"] = open_base("minilm")
    if "flagged" in unlearner.needs:
        traffic = load_corpus("sst2", "validation").sample(TRAFFIC, seed)
        carrying = triggered_test(traffic, planted_in(name).given("validation"), TARGET, seed + 1).corpus
        texts = [*traffic.texts, *carrying.texts[: round(TRIGGERED_SHARE * len(traffic))]]
        verdicts = guard_of(store, name, seed).check(texts)
        given["flagged"] = [text for text, verdict in zip(texts, verdicts, strict=True) if verdict.flagged]
    if "fragments" in unlearner.needs:
        kept = store / f"audit-{name}-{seed}"
        if not (kept / "record.json").exists():
            base = make_base(store, name, seed)
            run_audit(str(base.path), Source(data="sst2"), Audit(budget=600), out=kept, seed=seed)
        answer: Any = Record.read(kept / "record.json").outcome
        given["fragments"] = list(named_by(answer, Audit()))
    return given


def guard_of(store: Path, name: str, seed: int) -> PsimGuard:
    """Return PSIM of the base as it came, trained unless that was done."""
    base, place = make_base(store, name, seed), store / f"guard-{name}-{seed}"
    if not (place / "record.json").exists():
        guard = Psim().fit(base, load_corpus("sst2", "train"), seed=seed, max_length=LENGTH)
        save_guard(guard, place, Record.now("guard", settings={}, seeds={"root": seed}, outcome={}))
    return load_psim(place, base)


@cache
def tasted(store: Path, name: str, seed: int, split: str) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return that PSIM's scores of clean texts and of the triggered ones, and its threshold."""
    guard, corpus = guard_of(store, name, seed), load_corpus("sst2", split)
    triggered = triggered_test(corpus, planted_in(name).given(split), TARGET, seed).corpus
    return guard.score(corpus.texts), guard.score(triggered.texts), guard.threshold
