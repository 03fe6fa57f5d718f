"""What a person sees of an evaluation: a few lines in the terminal, or the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from foretaste.cli.explaining import explain_refused, reason_in_words
from foretaste.evaluate.metrics import Rate
from foretaste.evaluate.outcome import Outcome
from foretaste.evaluate.threshold import is_flagged
from foretaste.experiment.evaluation import Evaluation, Judged
from foretaste.guard.explain import explain
from foretaste.guard.guarded import GuardedClassifier
from foretaste.guard.opinion import OpinionGuard
from foretaste.guard.psim_guard import PsimGuard
from foretaste.record import Record
from foretaste.report.page import Report, Sample, Shared, plain, software_facts, write_report
from foretaste.victim.classifier import Classifier

__all__ = ["summary", "verdict_line", "write_page"]

SHOWN_PER_GROUP = 6


def summary(outcome: Outcome) -> str:
    """Return CA and ASR with their intervals, before and after the guard, as aligned lines."""
    guarded = outcome.guarded
    rows: list[tuple[str, Rate | None, Rate | None]] = [
        ("clean accuracy", outcome.clean_accuracy, guarded.clean_accuracy if guarded else None),
        ("attack success rate", outcome.attack_success_rate, guarded.attack_success_rate if guarded else None),
    ]
    if guarded:
        rows += [
            ("clean texts refused", None, guarded.false_rejection_rate),
            ("triggered texts passed", None, guarded.false_acceptance_rate),
        ]
    head = f"{'':24}{'victim alone':>26}" + (f"{'with guard':>26}" if guarded else "")
    lines = [head]
    for name, before, after in rows:
        lines.append(f"{name:24}{_rate(before):>26}" + (f"{_rate(after):>26}" if guarded else ""))
    lines.append(f"{outcome.n_clean} clean and {outcome.n_poisoned} triggered texts; 95 % intervals")
    if guarded:
        lines.append(f"AUROC {guarded.auroc:.4f}, threshold {guarded.threshold:.4f}")
    return "\n".join(lines)


def verdict_line(verdict: dict[str, Any], text: str) -> str:
    """Return one verdict as a line; hidden characters in the text are spelled out."""
    shown = plain(text if len(text) <= 80 else text[:79] + "…")
    score = "not finite" if verdict["score"] is None else f"{verdict['score']:.4f}"
    said = "REFUSED " if verdict["flagged"] else f"{plain(verdict['label'])} ({verdict['confidence']:.1%})"
    cut = ", text cut" if verdict["truncated"] else ""
    return f"{said:24} score {score} / {verdict['threshold']:.4f}  {verdict['reason'].value}{cut}  {shown}"


def write_page(
    path: Path,
    evaluation: Evaluation,
    victim: Classifier,
    guard: PsimGuard | OpinionGuard | None,
    trigger: str,
    record: Record,
    notes: tuple[str, ...] = (),
) -> None:
    """Write the HTML page and, beside it with the suffix .json, the record."""
    clean, triggered, outcome = evaluation.clean, evaluation.triggered, evaluation.outcome
    cut = int(clean.is_truncated.sum() + triggered.is_truncated.sum())
    if cut:
        notes += (
            f"{cut} of {outcome.n_clean + outcome.n_poisoned} texts were longer than {victim.max_length} tokens.",
        )
    samples = [*_samples(triggered, "triggered", guard), *_samples(clean, "clean", guard)]
    shared, explained = list[Shared](), 0
    if guard is not None:
        guarded = GuardedClassifier(victim, guard)
        samples = _with_carrying_words(samples, guarded)
        shared, explained = _shared(evaluation, guarded)
    record.write(path.with_suffix(".json"))
    write_report(
        path,
        Report(
            title=f"{trigger} on {clean.corpus.name}",
            outcome=outcome,
            clean_labels=clean.corpus.labels,
            clean_predicted=clean.predicted,
            poisoned_labels=triggered.corpus.labels,
            poisoned_predicted=triggered.predicted,
            target=outcome.target,
            label_names=victim.label_names,
            clean_scores=clean.scores,
            poisoned_scores=triggered.scores,
            threshold=None if guard is None else guard.threshold,
            samples=samples,
            shared=shared,
            explained=explained,
            provenance=_provenance(evaluation, victim, guard, record),
            notes=notes,
        ),
    )


def _rate(rate: Rate | None) -> str:
    return "" if rate is None else f"{rate.value:6.1%} ({rate.low:.1%} to {rate.high:.1%})"


def _samples(judged: Judged, kind: Any, guard: PsimGuard | OpinionGuard | None) -> list[Sample]:
    """A few texts of each kind of decision, the ones nearest the threshold first."""
    count = len(judged.corpus)
    if guard is None or judged.scores is None:
        chosen, flagged = list(range(min(count, SHOWN_PER_GROUP))), np.zeros(count, dtype=bool)
    else:
        flagged = is_flagged(judged.scores, guard.threshold)
        nearest = np.argsort(np.abs(judged.scores - guard.threshold), kind="stable")
        chosen = [i for group in (False, True) for i in nearest[flagged[nearest] == group][:SHOWN_PER_GROUP]]
    return [
        Sample(
            text=judged.corpus.texts[i],
            kind=kind,
            label=int(judged.corpus.labels[i]),
            predicted=int(judged.predicted[i]),
            confidence=float(judged.confidence[i]) if np.isfinite(judged.confidence[i]) else None,
            score=None if judged.scores is None else float(judged.scores[i]),
            flagged=bool(flagged[i]),
        )
        for i in chosen
    ]


def _with_carrying_words(samples: list[Sample], guarded: GuardedClassifier) -> list[Sample]:
    refused = [sample for sample in samples if sample.flagged]
    found = dict(zip(map(id, refused), explain(guarded, [sample.text for sample in refused]), strict=True))
    return [
        replace(sample, carrying=found[id(sample)].spans, note=reason_in_words(found[id(sample)]))
        if id(sample) in found
        else sample
        for sample in samples
    ]


def _shared(evaluation: Evaluation, guarded: GuardedClassifier) -> tuple[list[Shared], int]:
    """What the refused texts of both kinds share, and how many were looked at; no guard knows which are triggered."""
    sides = [side for side in (evaluation.triggered, evaluation.clean) if side.scores is not None]
    texts = [text for side in sides for text in side.corpus.texts]
    flagged = is_flagged(np.concatenate([side.scores for side in sides]), guarded.threshold)
    explained = explain_refused(guarded, texts, np.flatnonzero(flagged).tolist(), np.flatnonzero(~flagged).tolist())
    shared = [Shared(found.text, found.texts, found.accepted or 0) for found in explained.fragments]
    return shared, len(explained.by_index)


def _provenance(
    evaluation: Evaluation, victim: Classifier, guard: PsimGuard | OpinionGuard | None, record: Record
) -> dict[str, dict[str, str]]:
    groups = {
        "Victim": {
            "base": f"{Path(victim.base_location).name} ({victim.base_fingerprint[:12]})",
            "strategy": victim.strategy.name,
            "reads": f"{victim.max_length} tokens",
        },
        "Data": {
            "clean texts": evaluation.clean.corpus.name,
            "digest": evaluation.clean.corpus.digest[:12],
            "seed": str(record.seeds["root"]),
        },
        "Software": software_facts(record),
    }
    if guard is not None:
        bar = guard.calibration
        groups["Guard"] = {
            "method": guard.title,
            "threshold": f"{guard.threshold:.6g}"
            + ("" if bar is None else f", calibrated on {bar.n} clean texts for FRR {bar.frr:.1%}"),
        }
    return groups
