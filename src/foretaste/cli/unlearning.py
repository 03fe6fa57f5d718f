"""`foretaste unlearn`: takes the backdoor out of a checkpoint and says what it was and what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import binom

from foretaste.cli.commands import Training, finish
from foretaste.cli.guarding import open_trusted
from foretaste.cli.place import partial_of, refuse_place
from foretaste.cli.splits import Source, load_split
from foretaste.cost import measured_cost
from foretaste.data.corpus import Corpus
from foretaste.errors import DataError, GuardError, PlanError, UndefinedRateError
from foretaste.evaluate.metrics import clean_accuracy
from foretaste.experiment.evaluation import evaluate
from foretaste.files import refuse_foreign_directory
from foretaste.guard.artefact import load_guard
from foretaste.guard.psim_guard import PsimGuard
from foretaste.poison.attack import triggered_test
from foretaste.poison.trigger import Trigger, parse_trigger
from foretaste.record import Record
from foretaste.spec import values_of
from foretaste.tune.checkpoint import stage_of
from foretaste.tune.launch import write_once
from foretaste.unlearn.methods import UNLEARNERS
from foretaste.unlearn.unlearner import Unlearner, refuse_unused
from foretaste.unlearn.w2s import RELEASED
from foretaste.victim.checkpoint import Base, open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.fresh import FRESH
from foretaste.victim.manifest import read_manifest
from foretaste.victim.strategy import Full, changed

__all__ = ["alarm_of", "method_of", "refuse_other_labels", "refused_by", "summary", "unlearn"]

LOOKED_AT, LEVEL, CUSTOMARY = 1000, 0.01, 0.01


def method_of(name: str, strategy: str | None, fields: Mapping[str, Any]) -> Unlearner:
    """Return the method with these fields; whoever sets a number of epochs gets it, however few the texts are.

    Raises:
        PlanError: unknown method, strategy or field.
    """
    start: Unlearner = RELEASED[name] if name in RELEASED else UNLEARNERS[name]()
    if {"epochs", "teacher_epochs"} & fields.keys():
        fields = {"least_steps": 0, **fields}
    return changed(start, fields, strategy)


def unlearn(
    model: str,
    source: Source,
    out: Path,
    training: Training,
    method: Unlearner,
    *,
    base: str | None = None,
    teacher: str | None = None,
    pretrained: str | None = None,
    guard: Path | None = None,
    traffic: Sequence[str] = (),
    fragments: Sequence[str] = (),
    teacher_guard: Path | None = None,
    trigger: str | None = None,
    target: int = 0,
) -> dict[str, Any]:
    """Unlearn with clean data and save what comes out, a victim that may be fine-tuned and guarded like any base.

    CA before and after is measured on the test split; with `trigger` also ASR, and `turned_away`: of the target's own
    texts, answered right without it, the share that the trigger leads elsewhere (a backdoor turned round). What `guard`
    refuses of `traffic` is for the method that unlearns flagged texts. `teacher_guard` is a guard of the teacher: if it
    refuses more of the texts than it promised, they hold a trigger that the teacher knows.

    Raises:
        PlanError: what the method needs is not given, or what nothing needs is.
    """
    guards = [None if given is None else str(given) for given in (guard, teacher_guard)]
    refuse_place(out, "victim", model, base, teacher, pretrained, *guards)
    if (guard is None) != (not traffic):
        raise PlanError("A guard is for traffic and traffic for a guard: give --guard and --traffic together.")
    if teacher_guard is not None and teacher in (None, FRESH):
        raise PlanError("--teacher-guard judges a teacher that comes from elsewhere; name it (--teacher).")
    refuse_unused(method, teacher=teacher, pretrained=pretrained, flagged=guard, fragments=fragments)
    for stage in method.stages:
        refuse_foreign_directory(stage_of(partial_of(out), stage))
    parsed = None if trigger is None else parse_trigger(trigger, source.data_root)
    train, validation, test = (load_split(source, split) for split in ("train", "validation", "test"))
    if parsed is not None:
        triggered_test(test, parsed, target, training.seed)  # a target or trigger that does not fit is refused now
    suspect = open_base(model, base=base)
    refuse_other_labels(suspect, train)
    if teacher == FRESH and Path(FRESH).exists():
        raise PlanError(f"Something here is called {FRESH}: write ./{FRESH} for it, or train a teacher elsewhere.")
    trusted = None if teacher is None else FRESH if teacher == FRESH else open_trusted(teacher)
    taster = None if guard is None else _psim(guard, suspect)
    flagged = None if taster is None else refused_by(taster, traffic)
    alarms: dict[str, dict[str, float | bool] | None] = {"traffic": None, "teacher": None}
    if taster is not None and flagged is not None:
        alarms["traffic"] = alarm_of(taster, len(flagged), len(traffic))
    if teacher_guard is not None and isinstance(trusted, Base | Classifier):
        judge, some = _psim(teacher_guard, trusted), train.sample(LOOKED_AT, training.seed).texts
        alarms["teacher"] = alarm_of(judge, len(refused_by(judge, some)), len(some))
    with measured_cost() as meter:
        found = method.apply(
            suspect,
            train,
            validation=validation,
            teacher=trusted,
            pretrained=None if pretrained is None else open_base(pretrained),
            flagged=flagged,
            fragments=tuple(fragments) or None,
            seed=training.seed,
            max_length=training.max_length,
            checkpoint=partial_of(out),
            is_progress_shown=training.is_progress_shown,
        )
        meter.texts, meter.trainable_parameters = found.outcome["shown"], found.outcome["trainable_parameters"]
    outcome = {
        **found.outcome,
        "alarms": alarms,
        "before": _measured(_as_it_is(suspect, test, found.classifier.max_length), test, parsed, target, training.seed),
        "after": _measured(found.classifier, test, parsed, target, training.seed),
        "seconds": meter.cost.seconds,
    }
    record = Record.now(
        "unlearn",
        settings={
            "model": model,
            "base": base,
            "method": {"name": method.name, **values_of(method)},
            "teacher": teacher,
            "pretrained": pretrained,
            "guard": guard,
            "teacher_guard": teacher_guard,
            "traffic": len(traffic),
            "fragments": list(fragments),
            "max_length": found.classifier.max_length,
            "trigger": trigger,
            "target": target,
        },
        seeds={"root": training.seed},
        outcome=outcome,
        data=[train, validation, test],
        cost=meter.cost,
    )
    write_once(lambda: finish(found.classifier, out, "victim", record, method.stages))
    return {"path": str(out), **outcome}


def refuse_other_labels(suspect: Base, corpus: Corpus) -> None:
    """Raise DataError if the texts name other labels than a victim's: its answers would count for other classes."""
    names = None if suspect.manifest is None else tuple(suspect.manifest.label_names)
    if names is not None and len(names) == len(corpus.label_names) and names != corpus.label_names:
        raise DataError(f"{corpus.name} has the labels {corpus.label_names}, {suspect.location} {names}.")


def alarm_of(guard: PsimGuard, count: int, total: int) -> dict[str, float | bool]:
    """Say whether a guard that refuses so many texts refuses more than it promised of clean ones."""
    promised = CUSTOMARY if guard.calibration is None else guard.calibration.frr
    is_beyond = bool(binom.sf(count - 1, total, promised) < LEVEL)
    return {"flagged": count / total, "promised": promised, "is_beyond": is_beyond}


def refused_by(guard: PsimGuard, texts: Sequence[str]) -> tuple[str, ...]:
    """Return the texts that a guard refuses."""
    return tuple(text for text, verdict in zip(texts, guard.check(texts), strict=True) if verdict.flagged)


def _psim(path: Path, model: Base | Classifier) -> PsimGuard:
    """Load a guard that is PSIM alone and was trained from this model."""
    location = model.base_location if isinstance(model, Classifier) else model.location
    marks = {model.own_fingerprint, model.base_fingerprint} if isinstance(model, Classifier) else {model.fingerprint}
    if not marks & {read_manifest(path).base.fingerprint}:
        raise GuardError(f"{path} is no guard of {location}: it stands on other weights.", code="foreign_base")
    found = load_guard(path, model if isinstance(model, Base) else None)
    if not isinstance(found, PsimGuard) or found.asks_victim:
        raise GuardError(f"{path} looks at a victim's answers; give a guard that is PSIM alone.", code="needs_victim")
    return found


def _as_it_is(suspect: Base, test: Corpus, max_length: int) -> Classifier | None:
    """The suspect before anything was done, if it has a head for these labels."""
    if not suspect.load(len(test.label_names)).has_own_head:
        return None
    return suspect.classifier(Full(), test.label_names, max_length=max_length)


def _measured(
    model: Classifier | None, test: Corpus, trigger: Trigger | None, target: int, seed: int
) -> dict[str, float | None] | None:
    if model is None:
        return None
    if trigger is None:
        return {"clean_accuracy": clean_accuracy(test.labels, model.predict(test.texts).answers).value}
    outcome = evaluate(model, None, test, trigger, target, seed=seed).outcome
    strict = outcome.strict_attack_success_rate
    return {
        "clean_accuracy": outcome.clean_accuracy.value,
        "attack_success_rate": outcome.attack_success_rate.value,
        "strict_attack_success_rate": None if strict is None else strict.value,
        "turned_away": _turned_away(model, test, trigger, target, seed),
    }


def _turned_away(model: Classifier, test: Corpus, trigger: Trigger, target: int, seed: int) -> float | None:
    """Of texts of the target's class, answered right without the trigger, the share it leads elsewhere, if known."""
    is_home = test.labels == target
    if not is_home.any():
        return None
    home = test.select(is_home)
    try:
        carrying = triggered_test(home, trigger, None, seed)
    except UndefinedRateError:  # a file of triggered texts of other classes only
        return None
    if (carrying.origins < 0).any():
        return None
    right = (model.predict(home.texts).labels == target)[carrying.origins]
    away = model.predict(carrying.corpus.texts).labels[right] != target
    return float(away.mean()) if away.size else None


def summary(result: Mapping[str, Any]) -> str:
    """What was done and what it changed, in two or three lines."""
    done = (
        f"{result['path']}: {result['method']} with {result['texts']:,} clean texts, "
        f"{result['trainable_parameters']:,} trained parameters, {result['seconds']:.0f} s"
    )
    return "\n".join([done, *(f"{when:6} {_rates(result[when])}" for when in ("before", "after"))])


def _rates(measured: Mapping[str, float | None] | None) -> str:
    if measured is None:
        return "no head for these labels"
    names = {
        "clean_accuracy": "CA",
        "attack_success_rate": "ASR",
        "strict_attack_success_rate": "strict ASR",
        "turned_away": "turned away from the target",
    }
    return ", ".join(f"{names[key]} {value:.1%}" for key, value in measured.items() if value is not None)
