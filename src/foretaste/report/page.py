"""One evaluation as one HTML file that needs nothing else: no network, no script, no model."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray

from foretaste.errors import DataError
from foretaste.evaluate.metrics import Rate, goals_of
from foretaste.evaluate.outcome import Outcome
from foretaste.evaluate.threshold import is_flagged
from foretaste.files import write_text
from foretaste.record import Record
from foretaste.report import chart
from foretaste.report.canvas import per_cent
from foretaste.report.excerpt import cut_out
from foretaste.report.share import points
from foretaste.report.verdict import judge, natural_rate

__all__ = ["Report", "Sample", "Shared", "environment", "render", "software_facts", "write_report"]

LONGEST_TEXT, LONGEST_NAME, AROUND = 360, 80, 80
SAMPLES_PER_GROUP = 12


@dataclass(frozen=True)
class Sample:
    """One text to show. `label` is the true class; `confidence` the victim's, `score` the guard's; None = unknown.

    `carrying` is where the words lie that carry the refusal, `(start, end)` each, in order and apart.
    """

    text: str
    kind: Literal["clean", "triggered"]
    label: int | None
    predicted: int
    confidence: float | None = None
    score: float | None = None
    flagged: bool = False
    note: str = ""
    carrying: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class Shared:
    """A fragment that carries the refusal of `texts` of the refused texts looked at; `accepted` texts hold it too."""

    text: str
    texts: int
    accepted: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """All that the page shows. Clean columns are `(N,)`, those of triggered texts `(M,)`.

    `target` None means that each true class has its own, the next. Scores and threshold are None without a guard.
    `provenance` is flat, or grouped one level deep. `notes` are caveats a reader must know; `samples` a few texts each
    of what was caught, missed and refused; `shared` what the refusals of `explained` texts rest on; `up` a way back.

    Raises:
        DataError: columns, scores or threshold that contradict the outcome.
    """

    title: str
    outcome: Outcome
    clean_labels: ArrayLike
    clean_predicted: ArrayLike
    poisoned_labels: ArrayLike
    poisoned_predicted: ArrayLike
    target: int | None
    label_names: Sequence[str]
    clean_scores: ArrayLike | None = None
    poisoned_scores: ArrayLike | None = None
    threshold: float | None = None
    samples: Sequence[Sample] = ()
    shared: Sequence[Shared] = ()
    explained: int = 0
    provenance: Mapping[str, str | Mapping[str, str]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    up: str | None = None

    def __post_init__(self) -> None:
        n, m, guarded = self.outcome.n_clean, self.outcome.n_poisoned, self.outcome.guarded
        columns = {"clean_labels": n, "clean_predicted": n, "poisoned_labels": m, "poisoned_predicted": m}
        if guarded:
            columns |= {"clean_scores": n, "poisoned_scores": m}
        for name, length in columns.items():
            if (shape := np.shape(getattr(self, name))) != (length,):
                raise DataError(f"Report: the outcome counts {length} texts but {name} has shape {shape}.")
        if self.target != self.outcome.target:
            raise DataError(f"Report: target {self.target}, but the outcome was measured for {self.outcome.target}.")
        if self.threshold != (guarded.threshold if guarded else None):
            raise DataError(f"Report: threshold {self.threshold}, but the outcome was measured otherwise.")

    def goals(self, labels: ArrayLike) -> NDArray[np.int64]:
        """Return where triggered texts of these classes are to end, `(N,)`."""
        return goals_of(labels, self.target, len(self.label_names))


def write_report(path: Path, report: Report) -> None:
    """Write the page to `path`; the same report gives the same bytes.

    Raises:
        PlanError: the file cannot be written.
    """
    write_text(path, render(report))


def render(report: Report) -> str:
    """Return the page as HTML; every text is escaped, and what would not be seen is spelled out."""
    outcome, guarded = report.outcome, report.outcome.guarded
    natural = natural_rate(report.clean_labels, report.clean_predicted, report.goals(report.clean_labels))
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            outcome=outcome,
            guarded=guarded,
            verdict=judge(outcome, natural, _name(report)),
            target_name=_name(report),
            rows=_rows(outcome),
            charts=_charts(report),
            groups=_groups(report),
            provenance=_grouped(report.provenance),
            broken=_count_broken(report),
            has_marks=any(sample.carrying for sample in report.samples),
        )
    )


@cache
def environment() -> Environment:
    """Return what renders the pages' templates: everything escaped, nothing undefined let through."""
    loader = PackageLoader("foretaste.report")
    made = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # fmt: skip
    made.filters |= {"percent": per_cent, "plain": plain, "visible": visible, "score": print_score}
    made.filters |= {"between": _between, "counted": _counted, "points": points}
    return made


def software_facts(record: Record) -> dict[str, str]:
    """Return versions, commit and time of a record, as a page's provenance shows them."""
    commit = "not from a checkout"
    if record.commit is not None:
        commit = record.commit[:12] + (" with changes" if record.is_dirty else "")
    versions = {name: str(version) for name, version in record.versions.items()}
    return {**versions, "commit": commit, "made": record.created.isoformat()}


def plain(text: object, longest: int = LONGEST_NAME) -> str:
    """Return one line for a heading or a table cell: shortened, and each invisible character as `[U+202E]`.

    >>> plain("a\\u202eb")
    'a[U+202E]b'
    """
    whole = str(text)
    short = whole if len(whole) <= longest else whole[: longest - 1] + "…"
    return "".join(f"[{_code(char)}]" if _is_hidden(char) else char for char in short)


def visible(text: str, carrying: Sequence[tuple[int, int]] = ()) -> Markup:
    """Return a text as HTML: escaped, shortened if it is long, invisible characters as codes, carrying words marked."""
    mark, whole = Markup("<mark>{}</mark>"), f"{len(text):,}"
    cut = Markup('<span class="cut"> … {} characters left out of {} … </span>')
    shown = []
    for piece in cut_out(text, carrying, LONGEST_TEXT, AROUND):
        if piece.kind == "gap":
            shown.append(cut.format(f"{len(piece.text):,}", whole))
        else:
            shown.append(mark.format(_marked(piece.text)) if piece.kind == "marked" else _marked(piece.text))
    return Markup("").join(shown)


def print_score(score: float | None) -> str:
    """Return a guard score in four digits, or words for one that is missing or not finite."""
    if score is None:
        return "none"
    if math.isfinite(score):
        return f"{score:.4g}"
    return "not a number" if math.isnan(score) else "infinite"


def _marked(text: str) -> Markup:
    code = Markup('<span class="code">{}</span>')
    return Markup("").join(code.format(_code(char)) if _is_hidden(char) else char for char in text)


def _is_hidden(char: str) -> bool:
    """Say whether a character shows nothing or changes how others show: controls, formats, bidi, odd spaces."""
    return char != " " and unicodedata.category(char)[0] in "CZ"


def _code(char: str) -> str:
    return {"\n": "⏎", "\r": "␍", "\t": "⇥"}.get(char, f"U+{ord(char):04X}")


def _between(rate: Rate) -> str:
    return f"{per_cent(rate.low)} to {per_cent(rate.high)}"


def _counted(rate: Rate) -> str:
    return f"{rate.count:,} of {rate.n:,}"


def _name(report: Report, label: int | None = None) -> str:
    index = report.target if label is None else label
    if index is None:
        return "the class after their own"
    names = report.label_names
    return plain(names[index] if 0 <= index < len(names) else index, 40)


def _rows(outcome: Outcome) -> list[tuple[str, str, Rate | None, Rate | None]]:
    """Return (name, short name, rate of the victim alone, rate behind the guard) for the table of key figures."""
    guarded, strict = outcome.guarded, outcome.strict_attack_success_rate
    rows: list[tuple[str, str, Rate | None, Rate | None]] = [
        ("Clean accuracy", "CA", outcome.clean_accuracy, guarded.clean_accuracy if guarded else None),
        ("Attack success", "ASR", outcome.attack_success_rate, guarded.attack_success_rate if guarded else None),
    ]
    if strict:
        rows.append(("Attack success, strict", "", strict, guarded.strict_attack_success_rate if guarded else None))
    if guarded:
        rows.append(("Clean texts refused", "FRR", None, guarded.false_rejection_rate))
        rows.append(("Triggered texts passed", "FAR", None, guarded.false_acceptance_rate))
    return rows


def _charts(report: Report) -> dict[str, Markup]:
    drawn = {"bars": chart.bar_chart(report.outcome)}
    if report.clean_scores is not None and report.poisoned_scores is not None and report.threshold is not None:
        scores = {"clean_scores": report.clean_scores, "poisoned_scores": report.poisoned_scores}
        drawn["scores"] = chart.score_chart(**scores, threshold=report.threshold)
        drawn["roc"] = chart.roc_chart(**scores, threshold=report.threshold)
        drawn["sweep"] = chart.sweep_chart(
            **scores,
            clean_labels=report.clean_labels,
            clean_predicted=report.clean_predicted,
            poisoned_predicted=report.poisoned_predicted,
            target=report.goals(report.poisoned_labels),
            threshold=report.threshold,
        )
    return {name: Markup(svg) for name, svg in drawn.items()}


def _groups(report: Report) -> list[dict[str, Any]]:
    """Return the samples by fate, each group with its heading and how many such texts there are in all."""
    if report.outcome.guarded and report.clean_scores is not None and report.poisoned_scores is not None:
        threshold = report.outcome.guarded.threshold
        clean = is_flagged(report.clean_scores, threshold)
        poisoned = is_flagged(report.poisoned_scores, threshold)
        fates = [
            ("Triggered texts that passed", "triggered", False, int((~poisoned).sum())),
            ("Triggered texts the guard refused", "triggered", True, int(poisoned.sum())),
            ("Clean texts the guard refused", "clean", True, int(clean.sum())),
            ("Clean texts that passed", "clean", False, int((~clean).sum())),
        ]
    else:
        fates = [
            ("Triggered texts", "triggered", False, report.outcome.n_poisoned),
            ("Clean texts", "clean", False, report.outcome.n_clean),
        ]
    groups = []
    for heading, kind, flagged, total in fates:
        chosen = [sample for sample in report.samples if sample.kind == kind and sample.flagged == flagged]
        shown = [(sample, _fate(report, sample)) for sample in chosen[:SAMPLES_PER_GROUP]]
        if shown or (report.samples and not total):
            groups.append({"heading": heading, "total": total, "samples": shown})
    return groups


def _fate(report: Report, sample: Sample) -> str:
    said = f"victim: “{_name(report, sample.predicted)}”"
    if sample.confidence is not None:
        said += f" ({per_cent(sample.confidence)} sure)"
    return said if sample.label is None else f"{said} · true label: “{_name(report, sample.label)}”"


def _grouped(provenance: Mapping[str, str | Mapping[str, str]]) -> list[tuple[str, list[tuple[str, str]]]]:
    flat = [(key, value) for key, value in provenance.items() if not isinstance(value, Mapping)]
    nested = [(key, list(value.items())) for key, value in provenance.items() if isinstance(value, Mapping)]
    return ([("", flat)] if flat else []) + nested


def _count_broken(report: Report) -> int:
    columns = [column for column in (report.clean_scores, report.poisoned_scores) if column is not None]
    return sum(int((~np.isfinite(np.asarray(column, dtype=np.float64))).sum()) for column in columns)
