"""A cleansing as one HTML file: what each audit found, what was unlearned, what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from foretaste.files import write_text
from foretaste.report.audit import TONES, AuditReport, chart_of
from foretaste.report.page import environment

__all__ = ["CleanseReport", "Step", "write_cleanse_report"]


@dataclass(frozen=True)
class Step:
    """An audit and what the model could do when it was made.

    `unlearned` fragments had been taken out before it; the number is the share of texts that each still turns.
    """

    audit: AuditReport
    unlearned: Mapping[str, float | None]
    clean_accuracy: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class CleanseReport:
    """All that the page shows; the first step is the checkpoint as it came, the last one what the user gets."""

    title: str
    steps: Sequence[Step]
    sentence: str
    notes: Sequence[str] = ()
    provenance: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def write_cleanse_report(path: Path, report: CleanseReport) -> None:
    """Write the page to `path`; the same report gives the same bytes.

    Raises:
        PlanError: the file cannot be written.
    """
    tone, label = TONES[report.steps[-1].audit.verdict]
    charts = [chart_of(step.audit, f"-{number}") for number, step in enumerate(report.steps)]
    page = environment().get_template("cleanse.html.j2")
    write_text(path, page.render(report=report, tone=tone, label=label, charts=charts, labels=TONES))
