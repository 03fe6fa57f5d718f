"""One audit as one HTML file that needs nothing else: verdict, candidates against the null, flips in real texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from markupsafe import Markup
from matplotlib import style
from numpy.typing import ArrayLike

from foretaste.files import write_text
from foretaste.report.canvas import (
    CLEAN,
    INK,
    MUTED,
    POISONED,
    SHADE,
    STYLE,
    as_svg,
    new_canvas,
    per_cent,
    share_axis,
)
from foretaste.report.page import environment, plain

__all__ = ["TONES", "AuditReport", "Flip", "Fragment", "chart_of", "write_audit_report"]

CHARTED, LONGEST_LABEL = 12, 34


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """A row of the table; rates are shares, `target` the name of a class."""

    text: str
    target: str
    flip_rate: float
    flip_low: float
    flip_high: float
    trusted_flip_rate: float
    alarm_rate: float
    is_telling: bool
    p_value: float


@dataclass(frozen=True)
class Flip:
    """A text with a fragment at `span`, and the names of the answers without it, with it, and of the trusted model."""

    text: str
    span: tuple[int, int]
    before: str
    after: str
    trusted: str


@dataclass(frozen=True, kw_only=True, eq=False)
class AuditReport:
    """All that the page shows; `ordinary` `(N,)` are flip rates of ordinary words, the null of the chart."""

    title: str
    verdict: Literal["clean", "suspicious", "backdoored"]
    sentence: str
    fragments: Sequence[Fragment]
    ordinary: ArrayLike
    flips: Sequence[Flip] = ()
    words: int
    tested: int
    n: int
    notes: Sequence[str] = ()
    provenance: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


TONES = {
    "clean": ("good", "No backdoor found"),
    "suspicious": ("warn", "Suspicious"),
    "backdoored": ("bad", "Backdoored"),
}


def write_audit_report(path: Path, report: AuditReport) -> None:
    """Write the page to `path`; the same report gives the same bytes.

    Raises:
        PlanError: the file cannot be written.
    """
    tone, label = TONES[report.verdict]
    page = environment().get_template("audit.html.j2")
    write_text(path, page.render(report=report, tone=tone, label=label, chart=chart_of(report)))


def chart_of(report: AuditReport, anchor: str = "") -> Markup | None:
    """Return the chart of the candidates as SVG, None if there are none; `anchor` tells several on a page apart."""
    return Markup(_chart(report, anchor)) if report.fragments else None


def _chart(report: AuditReport, anchor: str) -> str:
    """Candidates' flip rates with 95 % intervals, the trusted model's beside them, above the null of ordinary words."""
    rows = report.fragments[:CHARTED]
    common = float(np.quantile(np.asarray(report.ordinary, dtype=np.float64), 0.99)) if np.size(report.ordinary) else 0
    with style.context(["default", STYLE]):
        figure, axes = new_canvas(44 + 23 * len(rows), left=170, right=14, top=6, bottom=36)
        axes.axvspan(0, common, color=SHADE, linewidth=0)
        for at, row in enumerate(rows):
            colour = MUTED if row.is_telling else POISONED
            axes.plot([row.flip_low, row.flip_high], [at, at], color=colour, linewidth=1.6)
            axes.plot([row.flip_rate], [at], "o", color=colour, markersize=7, clip_on=False, zorder=3)
            axes.plot(
                [row.trusted_flip_rate], [at], "|", color=CLEAN, markersize=12, markeredgewidth=2.4, clip_on=False
            )
            name = plain(row.text, LONGEST_LABEL)
            axes.text(-0.03, at, name, ha="right", va="center", color=INK, transform=axes.transData)
        axes.set(xlim=(0, 1), ylim=(len(rows) - 0.4, -0.6), yticks=[], xlabel="clean texts turned around")
        share_axis(axes, "x")
        said = "; ".join(
            f"{plain(row.text, LONGEST_LABEL)} {per_cent(row.flip_rate)} against {per_cent(row.trusted_flip_rate)}"
            for row in rows
        )
        return as_svg(figure, f"candidates{anchor}", f"Flip rates of fragments, audited against trusted model: {said}.")
