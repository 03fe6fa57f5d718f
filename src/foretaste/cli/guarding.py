"""`foretaste guard`: trains PSIM, a second opinion, or both as one guard."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foretaste.cli.commands import Training
from foretaste.cli.place import partial_of, refuse_place
from foretaste.cli.splits import Source, load_split
from foretaste.cost import measured_cost
from foretaste.data.corpus import Corpus
from foretaste.errors import GuardError, PlanError
from foretaste.evaluate.threshold import allowed_above
from foretaste.files import refuse_foreign_directory
from foretaste.guard.artefact import save_guard
from foretaste.guard.opinion import OpinionGuard
from foretaste.guard.psim import Psim
from foretaste.guard.psim_guard import PsimGuard
from foretaste.guard.second_opinion import SecondOpinion
from foretaste.guard.transplant import TransplantTest
from foretaste.record import Record
from foretaste.tune.launch import write_once
from foretaste.victim.artefact import load_victim
from foretaste.victim.checkpoint import Base, open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.manifest import MANIFEST, read_manifest
from foretaste.victim.source import EMBEDDED

__all__ = ["guard", "open_trusted"]

TIMED_TEXTS = 256


def guard(
    model: str,
    source: Source,
    out: Path,
    training: Training,
    plan: Psim | SecondOpinion,
    *,
    base: str | None = None,
    trusted: Sequence[str] = (),
    victim: Path | None = None,
    transplants: TransplantTest | None = None,
) -> dict[str, Any]:
    """Train a guard on clean data, calibrate it and save it; an adapter is folded into what it stands on first.

    With `trusted` models and the `victim` they judge, PSIM gets a second opinion; a plan for a second opinion makes one
    that is a guard of its own. With `transplants` PSIM tries the victim's decisive words in other texts.

    Raises:
        PlanError: what looks at a victim without one, or the other way round, or with a view that it cannot join.
        GuardError: a victim that does not stand on `model` (code `foreign_base`), and what `SecondOpinion` refuses.
    """
    refuse_place(out, "guard", model, base, None if victim is None else str(victim), *trusted)
    partials = [partial_of(out.with_name(f"{out.name}-trusted-{number}")) for number in range(len(trusted))]
    for partial in partials:
        refuse_foreign_directory(partial)
    asks_victim = bool(trusted) or transplants is not None
    if asks_victim != (victim is not None) or (isinstance(plan, SecondOpinion) and not trusted):
        raise PlanError(
            "A second opinion (--trusted) and transplants look at the victim's answers: give them together with "
            "--victim."
        )
    if asks_victim and isinstance(plan, Psim) and plan.view != "both":
        raise PlanError(
            f"What looks at the victim joins the view both, not {plan.view}; a second opinion also stands alone: "
            "--view opinion."
        )
    if transplants is not None and isinstance(plan, SecondOpinion):
        raise PlanError("Transplants need PSIM to say which texts to examine; leave out --view opinion.")
    train, calibration = load_split(source, "train"), load_split(source, "validation")
    suspect, judged = open_base(model, base=base), None if victim is None else load_victim(victim)
    if judged is not None and not judged.stands_on(suspect.fingerprint):
        raise GuardError(f"{victim} does not stand on {model}.", code="foreign_base")
    length = _length(plan, training, judged)
    opened = [open_trusted(location) for location in trusted]
    with measured_cost() as meter:
        finished = _fit(suspect, train, calibration, plan, training, length, opened, judged, partials, transplants)
        psim = finished if isinstance(finished, PsimGuard) else None
        trained = None if psim is None else psim.training
        if trained is not None:
            meter.texts, meter.trainable_parameters = trained.texts, trained.trainable_parameters
    outcome: dict[str, Any] = {
        "threshold": finished.threshold,
        "calibration": None if finished.calibration is None else asdict(finished.calibration),
        "steps": None if trained is None else trained.steps,
        "training_seconds": None if trained is None else trained.seconds,
        "doses": () if psim is None else psim.doses,
        "is_blind": psim is not None and psim.is_blind,
        "trusted": [] if judged is None else _describe(finished, judged, calibration),
        "transplants": None
        if judged is None or transplants is None
        else {
            "share": transplants.share,
            "cost": _cost_of_transplants(finished, judged, calibration.texts[:TIMED_TEXTS]),
        },
        "seconds": meter.cost.seconds,
    }
    record = Record.now(
        "guard",
        settings={
            "model": model,
            "base": base,
            "psim" if psim else "second_opinion": plan,
            "strategy": None if psim is None else psim.classifier.strategy.name,
            "trusted": list(trusted),
            "victim": victim,
            "transplants": transplants,
        },
        seeds={"root": training.seed},
        outcome=outcome,
        data=[train, calibration],
        cost=meter.cost,
    )
    write_once(lambda: save_guard(finished, out, record))
    for partial in partials:
        shutil.rmtree(partial, ignore_errors=True)
    return {"path": str(out), **outcome}


def open_trusted(location: str) -> Base | Classifier:
    """Open a checkpoint the user trusts, to be fine-tuned, or a victim somebody has fine-tuned already."""
    if (
        location not in EMBEDDED
        and (Path(location) / MANIFEST).is_file()
        and read_manifest(Path(location)).kind == "victim"
    ):
        return load_victim(location)
    return open_base(location)


def _length(plan: Psim | SecondOpinion, training: Training, victim: Classifier | None) -> int | None:
    """Tokens that PSIM reads: what was asked for, or as many as the victim."""
    asked = training.max_length
    if victim is None:
        return asked
    if asked is not None and (isinstance(plan, SecondOpinion) or asked < victim.max_length):
        raise PlanError(f"A guard of this victim reads {victim.max_length} tokens, as it does; leave out --max-length.")
    return asked or victim.max_length


def _fit(
    suspect: Base,
    train: Corpus,
    calibration: Corpus,
    plan: Psim | SecondOpinion,
    training: Training,
    length: int | None,
    trusted: Sequence[Base | Classifier],
    victim: Classifier | None,
    partials: Sequence[Path],
    transplants: TransplantTest | None,
) -> PsimGuard | OpinionGuard:
    if isinstance(plan, Psim):
        second = SecondOpinion(frr=plan.frr, confidence=plan.confidence, scoring=plan.scoring, precision=plan.precision)
    else:
        second = plan
    if victim is not None:
        allowed_above(len(calibration), second.frr, second.confidence)  # refuses too few before hours of training
        if trusted:
            second.refuse(trusted, victim, train)
        if transplants is not None:
            transplants.refuse(victim, train)
    psim = None
    if isinstance(plan, Psim):
        psim = plan.fit(
            suspect,
            train,
            calibration,
            seed=training.seed,
            max_length=length,
            is_progress_shown=training.is_progress_shown,
        )
        if victim is None:
            return psim
    assert victim is not None
    opinion = None
    if trusted:
        opinion = second.consult(
            trusted,
            victim,
            train,
            seed=training.seed,
            checkpoints=partials,
            is_progress_shown=training.is_progress_shown,
        )
    if psim is None:
        assert opinion is not None
        return second.fit(opinion, victim, calibration)
    transplant = (
        None
        if transplants is None
        else transplants.fit(
            psim.score, victim, train, seed=training.seed, is_progress_shown=training.is_progress_shown
        )
    )
    return psim.with_victim(
        victim, calibration, opinion=opinion, transplant=transplant, is_progress_shown=training.is_progress_shown
    )


def _cost_of_transplants(guard: PsimGuard | OpinionGuard, victim: Classifier, texts: Sequence[str]) -> float:
    """Return what examining takes per clean text, as a multiple of the victim's answer."""
    assert isinstance(guard, PsimGuard)
    test = guard.transplant
    assert test is not None
    said, tasted = victim.predict(texts), guard.judge(guard.predict(texts))
    took = _seconds(lambda few: test.surprise(victim, said, few, tasted), texts)
    return round(took / _seconds(victim.predict, texts), 2)


def _describe(guard: PsimGuard | OpinionGuard, victim: Classifier, clean: Corpus) -> list[dict[str, Any]]:
    """Say of each trusted model how good it is and what share of the victim's time it takes per text."""
    if guard.opinion is None:
        return []
    texts = clean.texts[:TIMED_TEXTS]
    own = _seconds(victim.predict, texts)
    return [
        {
            "model": member.classifier.base_location,
            "accuracy": member.accuracy,
            "majority": clean.majority,
            "temperature": member.temperature,
            "cost": round(_seconds(predict, texts) / own, 2),
        }
        for member, predict in zip(guard.opinion.members, guard.opinion.scorers, strict=True)
    ]


def _seconds(predict: Callable[[Sequence[str]], object], texts: Sequence[str]) -> float:
    start = time.perf_counter()
    predict(texts)
    return time.perf_counter() - start
