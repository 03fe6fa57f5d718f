"""What each command does, as plain functions that return one JSON object."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from foretaste.cli.explaining import Explained, explain_refused
from foretaste.cli.pair import load_pair
from foretaste.cli.place import partial_of, refuse_page, refuse_place
from foretaste.cli.splits import Source, load_split
from foretaste.cost import measured_cost
from foretaste.errors import PlanError
from foretaste.experiment.evaluation import Evaluation, evaluate
from foretaste.guard.artefact import read_bar
from foretaste.guard.guarded import GuardedClassifier, GuardedVerdict
from foretaste.poison.attack import Attack, Style
from foretaste.poison.trigger import FileTrigger, parse_trigger
from foretaste.record import Record
from foretaste.spec import build
from foretaste.tune.checkpoint import stage_of
from foretaste.tune.launch import write_once
from foretaste.tune.loop import TuneSettings, tune
from foretaste.tune.poison import POISONING, POISONING_LENGTH, poison_base, stages_of
from foretaste.tune.w2s_attack import STAGES, W2SAttack, poison_by_teacher
from foretaste.victim.adapter import head_size
from foretaste.victim.artefact import save_classifier
from foretaste.victim.checkpoint import TEXT_LENGTH, open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.manifest import read_manifest
from foretaste.victim.strategy import STRATEGIES, changed

__all__ = ["Training", "check", "check_and_explain", "finish", "inspect", "poison", "run_evaluation", "tune_victim"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """Options that every training command takes; None means the default of the thing trained."""

    seed: int = 0
    max_length: int | None = None
    fields: Mapping[str, Any] | None = None
    is_progress_shown: bool = True


def poison(
    model: str,
    source: Source,
    trigger: str,
    out: Path,
    training: Training,
    attack: Mapping[str, Any],
    *,
    teacher: str | None = None,
    method: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Plant a backdoor in a base and save it; the result says whether the attack is strong enough to matter.

    All weights are trained; with `teacher`, the student of a poisoned teacher (W2SAttack, with the fields of `method`).
    """
    refuse_place(out, "base", model, teacher)
    if method and teacher is None:
        raise PlanError("--w2s-set is for W2SAttack; name its teacher (--teacher).")
    if teacher is not None and {"epochs", "learning_rate"} & (training.fields or {}).keys():
        raise PlanError("W2SAttack trains two models: set their lengths and rates with --w2s-set.")
    style = attack.get("style", Style.CLEAN_LABEL)
    if style not in tuple(Style):
        raise PlanError(f"Unknown style {style!r}; known: {', '.join(Style)}.")
    plan = build(Attack, {"trigger": parse_trigger(trigger, source.data_root), **attack})
    settings = build(TuneSettings, {**asdict(POISONING), **(training.fields or {})})
    by_teacher = None if teacher is None else changed(W2SAttack(), method or {})
    proxy, validation = load_split(source, "train"), load_split(source, "validation")
    if isinstance(plan.trigger, FileTrigger) and plan.trigger.path.is_file() and proxy.name != validation.name:
        raise PlanError(
            f"{plan.trigger} is one file, and both {proxy.name} and {validation.name} are triggered: name a directory "
            "with a file for each, train.jsonl and validation.jsonl."
        )
    how: dict[str, Any] = {
        "seed": training.seed,
        "settings": settings,
        "max_length": training.max_length or POISONING_LENGTH,
        "checkpoint": partial_of(out),
        "is_progress_shown": training.is_progress_shown,
    }
    with measured_cost() as meter:
        if by_teacher is None or teacher is None:
            classifier, outcome = poison_base(open_base(model), proxy, validation, plan, **how)
        else:
            pair = open_base(model), open_base(teacher)
            classifier, outcome = poison_by_teacher(*pair, proxy, validation, plan, by_teacher, **how)
        meter.texts = outcome["texts"] + outcome.get("teacher", {}).get("texts", 0)
    record = Record.now(
        "poison",
        settings={
            "model": model,
            "attack": plan,
            "teacher": teacher,
            "w2s_attack": by_teacher,
            "tune": settings if by_teacher is None else None,
            "max_length": classifier.max_length,
        },
        seeds={"root": training.seed},
        outcome=outcome,
        data=[proxy, validation],
        cost=meter.cost,
    )
    stages = stages_of(plan) if by_teacher is None else STAGES
    write_once(lambda: finish(classifier, out, "base", record, stages))
    return {"path": str(out), "max_length": classifier.max_length, **outcome}


def tune_victim(
    model: str,
    source: Source,
    strategy: str,
    out: Path,
    training: Training,
    *,
    strategy_fields: Mapping[str, Any],
    base: str | None = None,
) -> dict[str, Any]:
    """Fine-tune a victim on clean data and save it."""
    refuse_place(out, "victim", model, base)
    chosen: Any = build(STRATEGIES[strategy], strategy_fields)
    settings = build(TuneSettings, training.fields or {})
    train, validation = load_split(source, "train"), load_split(source, "validation")
    classifier = open_base(model, base=base).classifier(
        chosen, train.label_names, max_length=training.max_length or TEXT_LENGTH, seed=training.seed
    )
    with measured_cost() as meter:
        result = tune(
            classifier,
            train,
            settings,
            seed=training.seed,
            validation=validation,
            checkpoint=partial_of(out),
            title=f"victim ({strategy})",
            is_progress_shown=training.is_progress_shown,
        )
        meter.texts, meter.trainable_parameters = result.texts, result.trainable_parameters
    outcome = asdict(result)
    record = Record.now(
        "tune",
        settings={"model": model, "base": base, "strategy": {"name": strategy, **asdict(chosen)}, "tune": settings},
        seeds={"root": training.seed},
        outcome=outcome,
        data=[train, validation],
        cost=meter.cost,
    )
    write_once(lambda: finish(classifier, out, "victim", record))
    return {"path": str(out), **outcome}


def run_evaluation(
    victim_path: Path,
    guard_path: Path | None,
    source: Source,
    trigger: str,
    *,
    target: int = 0,
    model: str | None = None,
    report: Path | None = None,
    seed: int = 0,
    notes: tuple[str, ...] = (),
) -> tuple[dict[str, Any], Evaluation]:
    """Measure CA and ASR, with the guard if there is one; write the page and its record if asked."""
    parsed = parse_trigger(trigger, source.data_root)
    if report is not None:
        refuse_page(report)
    victim, taster = load_pair(victim_path, guard_path, model)
    corpus = load_split(source, "test", victim.label_names)
    with measured_cost() as meter:
        evaluation = evaluate(victim, taster, corpus, parsed, target, seed=seed, is_progress_shown=True)
        meter.texts = evaluation.outcome.n_clean + evaluation.outcome.n_poisoned
    result = evaluation.outcome.to_json()
    if report is not None:
        from foretaste.cli.page import write_page

        record = Record.now(
            "evaluate",
            settings={"victim": victim_path, "guard": guard_path, "trigger": trigger, "target": target},
            seeds={"root": seed},
            outcome=result,
            data=[corpus],
            cost=meter.cost,
        )
        write_once(lambda: write_page(report, evaluation, victim, taster, trigger, record, notes))
        result["report"] = str(report)
    return result, evaluation


def check(victim_path: Path, guard_path: Path, texts: list[str], model: str | None = None) -> list[dict[str, Any]]:
    """Return one verdict per text, with the text's number."""
    victim, taster = load_pair(victim_path, guard_path, model)
    assert taster is not None
    guarded = GuardedClassifier(victim, taster)
    return _numbered(guarded(texts))


def check_and_explain(
    victim_path: Path, guard_path: Path, texts: list[str], model: str | None = None
) -> tuple[list[dict[str, Any]], Explained]:
    """Return the verdicts of `check`, and which words carry the refusals."""
    victim, taster = load_pair(victim_path, guard_path, model)
    assert taster is not None
    guarded = GuardedClassifier(victim, taster)
    verdicts = guarded(texts)
    refused = [index for index, verdict in enumerate(verdicts) if verdict.flagged]
    accepted = [index for index, verdict in enumerate(verdicts) if not verdict.flagged]
    return _numbered(verdicts), explain_refused(guarded, texts, refused, accepted)


def inspect(path: str) -> dict[str, Any]:
    """Say what a directory is and whether it is sound, without running the model.

    Raises:
        ModelError, GuardError: it is not; the code and the message say why.
    """
    directory = Path(path)
    if (directory / "foretaste.json").is_file():
        manifest = read_manifest(directory)
        if manifest.kind == "guard" or manifest.guard is not None:
            read_bar(manifest.guard, directory)
        return {
            "path": path,
            "kind": manifest.kind,
            "strategy": manifest.strategy,
            "labels": manifest.label_names,
            "max_length": manifest.max_length,
            "base": manifest.base.model_dump(),
            "guard": manifest.guard,
            "instruction": manifest.instruction,
            "files": sorted(manifest.files),
            "versions": manifest.versions,
            "is_sound": True,
        }
    base = open_base(path)
    count = int(getattr(base.config, "num_labels", 2)) if base.under is None else head_size(base.path)
    model, has_own_head, mark = base.load(count)
    return {
        "path": path,
        "kind": "checkpoint" if base.under is None else f"adapter on {base.under.location}",
        "family": base.config.model_type,
        "parameters": sum(p.numel() for p in model.parameters()),
        "has_classification_head": has_own_head,
        "fingerprint": mark,
        "is_sound": True,
    }


def finish(
    classifier: Classifier, out: Path, kind: Literal["base", "victim"], record: Record, stages: Sequence[str] = ("",)
) -> None:
    """Save what was trained and throw away the half-done trainings it came from."""
    save_classifier(classifier, out, kind, record)
    for stage in stages:
        shutil.rmtree(stage_of(partial_of(out), stage), ignore_errors=True)


def _numbered(verdicts: list[GuardedVerdict]) -> list[dict[str, Any]]:
    return [{"index": index, **_finite(asdict(verdict))} for index, verdict in enumerate(verdicts)]


def _finite(verdict: dict[str, Any]) -> dict[str, Any]:
    # JSON has no NaN: a score that is not finite is null, and the reason says so.
    score = verdict["score"]
    return {**verdict, "score": score if score == score and abs(score) != float("inf") else None}
