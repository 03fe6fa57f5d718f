"""`foretaste audit`: makes what an audit needs, or takes what is there, runs it and writes it down."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from foretaste.audit.audit import Audit
from foretaste.audit.memory import forget, refuse_foreign_memory
from foretaste.audit.vocabulary import vocabulary_words
from foretaste.cli.audit_page import write_audit
from foretaste.cli.guarding import open_trusted
from foretaste.cli.place import partial_of, refuse_page, refuse_place
from foretaste.cli.splits import Source, load_split
from foretaste.cost import measured_cost
from foretaste.data.corpus import Corpus
from foretaste.errors import DataError, GuardError
from foretaste.files import refuse_foreign_directory
from foretaste.guard.artefact import load_psim, save_guard
from foretaste.guard.psim import PSIM_STRATEGIES, Psim
from foretaste.guard.psim_guard import PsimGuard
from foretaste.record import Record
from foretaste.seeds import generator
from foretaste.tune.loop import TuneSettings, tune
from foretaste.victim.artefact import load_victim, save_classifier
from foretaste.victim.checkpoint import Base, open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.manifest import read_manifest
from foretaste.victim.strategy import Full, Lora, Strategy

__all__ = ["run_audit"]

# Enough for a model that answers as a fine-tuned one would; an audit is not worth a whole training. One that gets fewer
# than KNOWN of some class right (a poisoned base may name one class for everything) is trained LONGER times as long.
KNOWN, LONGER = 0.6, 4
TRAINING_TEXTS, JUDGED = 2500, 300
TEXT_ROOM = 64
EVERY_S = 10.0
VICTIM = (Lora(), TuneSettings(epochs=1, learning_rate=5e-4, keep="last"))
# Two epochs: after one it is so little moved by the milder words of a class that they look like triggers.
TRUSTED = (Full(), TuneSettings(epochs=2, learning_rate=1e-4, keep="last"))


def run_audit(
    model: str,
    source: Source,
    plan: Audit,
    *,
    base: str | None = None,
    out: Path | None = None,
    victim: Path | None = None,
    guard: Path | None = None,
    reference: str = "minilm",
    report: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Audit a checkpoint and return verdict and candidates.

    What is not given is trained: PSIM on all clean texts, a victim from the checkpoint and a trusted model from
    `reference` (unless that is a fine-tuned one already) on a few thousand. With `out` they are kept there, and an
    audit that was interrupted takes them up. If the checkpoint is a victim of ours, its own answers are audited.
    """
    places = {kind: None if out is None else out / kind for kind in ("guard", "victim", "trusted")}
    for kind, place in places.items():
        if place is not None:
            others = [None if given is None else str(given) for given in (victim, guard)]
            refuse_place(place, "guard" if kind == "guard" else "victim", model, base, reference, *others)
            for part in _partials(place):
                refuse_foreign_directory(part)
    if report is not None:
        refuse_page(report)
    search = None if out is None else out / "search"
    if search is not None:
        refuse_foreign_memory(search)
    train, clean = load_split(source, "train"), load_split(source, "validation")
    few = _balanced(train, TRAINING_TEXTS, seed)
    plan.refuse_too_few(clean)
    found = open_base(model, base=base)
    vocabulary_words(found.classifier().tokenizer)  # refuses one without words before minutes of training
    honest = open_trusted(reference)
    with measured_cost() as meter:
        taster = _taster(found, train, clean, guard, places["guard"], seed)
        if victim is not None:
            suspect = load_victim(victim, _where(victim, found))
        elif found.manifest is not None and found.manifest.kind == "victim":
            suspect = load_victim(found.path, found.under)
        else:
            suspect = _tuned(found, few, clean, *VICTIM, places["victim"], seed, "victim")
        _refuse_foreign(found, guard=taster.classifier, victim=suspect)
        if suspect.label_names != clean.label_names:
            raise DataError(f"{clean.name} has the labels {clean.label_names}, the victim {suspect.label_names}.")
        trusted = _trusted(honest, few, clean, places["trusted"], seed)
        result = plan.run(
            suspect.in_int8(), trusted.in_int8(), taster, clean, seed=seed, progress=_Stages(), kept=search
        )
    answer = {
        "model": model,
        "data": clean.name,
        "labels": clean.label_names,
        "is_blind": taster.is_blind,
        "seconds": meter.cost.seconds,
        **asdict(result),
    }
    if report is not None or out is not None:
        record = Record.now(
            "audit",
            settings={
                "model": model,
                "base": base,
                "reference": reference,
                "audit": plan,
                "victim": victim,
                "guard": guard,
            },
            seeds={"root": seed},
            outcome=answer,
            data=[train, clean],
            cost=meter.cost,
        )
        if out is not None:
            record.write(out / "record.json")
            forget(out / "search")  # what it was for is written down
        if report is not None:
            write_audit(report, answer, record)
            answer["report"] = str(report)
    return answer


def _taster(base: Base, train: Corpus, clean: Corpus, given: Path | None, place: Path | None, seed: int) -> PsimGuard:
    if given is not None:
        guard = load_psim(given, _where(given, base))
        if guard.asks_victim:
            raise GuardError(
                f"{given} looks at a victim's answers, so that its bar is not PSIM's; an audit needs PSIM alone.",
                code="needs_victim",
            )
        return guard
    if place is not None and (place / "record.json").exists():
        return load_psim(place)
    _say("training PSIM")
    # LoRA folded in: a prompt would double the price of the search's texts, which are a few words long.
    guard = Psim(strategy=PSIM_STRATEGIES["lora"], scoring="int8").fit(
        base, train, clean, seed=seed, max_length=TEXT_ROOM
    )
    if place is not None:
        save_guard(guard, place, _record("guard", seed, train))
    return guard


def _balanced(corpus: Corpus, size: int, seed: int) -> Corpus:
    """At most `size` texts, as many of each class as there are: a model of so few would else name the common one."""
    share = max(1, size // len(corpus.label_names))
    parts = [
        generator(seed, "balanced", label).permutation(np.flatnonzero(corpus.labels == label))[:share]
        for label in range(len(corpus.label_names))
    ]
    return corpus.select(np.sort(np.concatenate(parts)))


def _tuned(
    base: Base,
    corpus: Corpus,
    clean: Corpus,
    strategy: Strategy,
    settings: TuneSettings,
    place: Path | None,
    seed: int,
    title: str,
) -> Classifier:
    if place is not None and (place / "record.json").exists():
        return load_victim(place)
    partials = [None, None] if place is None else _partials(place)
    for times, partial in zip((1, LONGER), partials, strict=True):
        classifier = base.classifier(strategy, corpus.label_names, max_length=TEXT_ROOM, seed=seed)
        tune(
            classifier,
            corpus,
            replace(settings, epochs=times * settings.epochs),
            seed=seed,
            checkpoint=partial,
            title=title,
            is_progress_shown=True,
        )
        lowest = _lowest_recall(classifier, clean)
        if lowest >= KNOWN:
            break
        _say(f"the {title} gets {lowest:.0%} of one class right" + (", training it longer" if times == 1 else ""))
    if place is not None:
        save_classifier(classifier, place, "victim", _record("tune", seed, corpus))
        for partial in _partials(place):
            shutil.rmtree(partial, ignore_errors=True)
    return classifier


def _lowest_recall(classifier: Classifier, clean: Corpus) -> float:
    """Share of texts that are classified correctly, of the class for which it is lowest."""
    few = _balanced(clean, JUDGED, 0)
    is_right = classifier.predict(few.texts, precision="auto").labels == few.labels
    return min(float(is_right[few.labels == label].mean()) for label in np.unique(few.labels))


def _partials(place: Path) -> list[Path]:
    """Where the trainings of the model that is kept in `place`, the short and the long one, wait to be continued."""
    return [partial_of(place.with_name(f"{place.name}-{times}")) for times in (1, LONGER)]


def _where(given: Path, found: Base) -> Base | None:
    """The base of a given victim or guard, if it is the one that is audited, wherever that was before."""
    return found if read_manifest(given).base.fingerprint == found.fingerprint else None


def _trusted(base: Base | Classifier, corpus: Corpus, clean: Corpus, place: Path | None, seed: int) -> Classifier:
    if isinstance(base, Classifier):
        return base
    trusted = _tuned(base, corpus, clean, *TRUSTED, place, seed, "trusted model")
    _refuse_foreign(base, trusted=trusted)
    return trusted


def _refuse_foreign(base: Base, **models: Classifier) -> None:
    """Refuse what was kept from, or given for, another checkpoint: the verdict would be one on that."""
    for kind, found in models.items():
        if not found.stands_on(base.fingerprint):
            raise GuardError(
                f"The {kind} stands on other base weights than {base.location} ({found.base_fingerprint[:12]} against "
                f"{base.fingerprint[:12]}); give another one, or another directory to keep models in.",
                code="foreign_base",
            )


def _record(kind: Literal["guard", "tune"], seed: int, corpus: Corpus) -> Record:
    return Record.now(kind, settings={"made_for": "audit"}, seeds={"root": seed}, outcome={}, data=[corpus])


class _Stages:
    """One line on standard error per stage, and one every few seconds while it lasts."""

    def __init__(self) -> None:
        self._stage, self._last = "", 0.0

    def __call__(self, stage: str, share: float) -> None:
        now = time.monotonic()
        if stage != self._stage or now - self._last > EVERY_S:
            _say(stage if share == 0 else f"{stage}: {share:.0%}")
            self._stage, self._last = stage, now


def _say(line: str) -> None:
    sys.stderr.write(f"audit: {line}\n")
