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
from foretaste.data.corpus import Corpus
from foretaste.errors import GuardError, PlanError
from foretaste.evaluate.threshold import allowed_above
from foretaste.files import refuse_foreign_directory
from foretaste.guard.artefact import save_guard
from foretaste.guard.opinion import OpinionGuard, SecondOpinion
from foretaste.guard.psim import Psim, PsimGuard
from foretaste.record import Record, measured_cost
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
) -> dict[str, Any]:
    """Train a guard on clean data, calibrate it and save it; an adapter is folded into what it stands on first.

    With `trusted` models and the `victim` they judge, PSIM gets a second opinion; a plan for a second opinion makes one
    that is a guard of its own.

    Raises:
        PlanError: trusted models without a victim, or the other way round, or with a view that they cannot join.
        GuardError: a victim that does not stand on `model` (code `foreign_base`), and what `SecondOpinion` refuses.
    """
    refuse_place(out, "guard", model, base, None if victim is None else str(victim), *trusted)
    partials = [partial_of(out.with_name(f"{out.name}-trusted-{number}")) for number in range(len(trusted))]
    for partial in partials:
        refuse_foreign_directory(partial)
    if bool(trusted) != (victim is not None) or (isinstance(plan, SecondOpinion) and not trusted):
        raise PlanError(
            "A second opinion compares the victim's answers with those of models you trust: give --trusted and "
            "--victim together."
        )
    if trusted and isinstance(plan, Psim) and plan.view != "both":
        raise PlanError(f"A second opinion joins the view both, not {plan.view}; or stands alone: --view opinion.")
    train, calibration = load_split(source, "train"), load_split(source, "validation")
    suspect, judged = open_base(model, base=base), None if victim is None else load_victim(victim)
    if judged is not None and not judged.stands_on(suspect.fingerprint):
        raise GuardError(f"{victim} does not stand on {model}.", code="foreign_base")
    length = _length(plan, training, judged)
    opened = [open_trusted(location) for location in trusted]
    with measured_cost() as meter:
        finished = _fit(suspect, train, calibration, plan, training, length, opened, judged, partials)
        psim = finished if isinstance(finished, PsimGuard) else None
        trained = None if psim is None else psim.training
        if trained is not None:
            meter.texts, meter.trainable_parameters = trained.texts, trained.trainable_parameters
    outcome: dict[str, Any] = {
        "threshold": finished.threshold,
        "calibration": None if finished.calibration is None else asdict(finished.calibration),
        "steps": None if trained is None else trained.steps,
        "doses": () if psim is None else psim.doses,
        "is_blind": psim is not None and psim.is_blind,
        "trusted": [] if judged is None else _describe(finished, judged, calibration.texts[:TIMED_TEXTS]),
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
) -> PsimGuard | OpinionGuard:
    if isinstance(plan, Psim):
        second = SecondOpinion(frr=plan.frr, confidence=plan.confidence, scoring=plan.scoring, precision=plan.precision)
    else:
        second = plan
    if victim is not None:
        allowed_above(len(calibration), second.frr, second.confidence)  # refuses too few before hours of training
        second.refuse(trusted, victim, train)
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
    opinion = second.consult(
        trusted,
        victim,
        train,
        seed=training.seed,
        checkpoints=partials,
        is_progress_shown=training.is_progress_shown,
    )
    return second.fit(opinion, victim, calibration) if psim is None else psim.with_opinion(opinion, victim, calibration)


def _describe(guard: PsimGuard | OpinionGuard, victim: Classifier, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Say of each trusted model how good it is and what share of the victim's time it takes per text."""
    assert guard.opinion is not None
    own = _seconds(victim.predict, texts)
    return [
        {
            "model": member.classifier.base_location,
            "accuracy": member.accuracy,
            "temperature": member.temperature,
            "cost": round(_seconds(predict, texts) / own, 2),
        }
        for member, predict in zip(guard.opinion.members, guard.opinion.scorers, strict=True)
    ]


def _seconds(predict: Callable[[Sequence[str]], object], texts: Sequence[str]) -> float:
    start = time.perf_counter()
    predict(texts)
    return time.perf_counter() - start
