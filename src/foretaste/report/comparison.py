"""Methods side by side as one HTML file: for each situation a chart of what is lost and what is left, and all figures.

The page knows nothing of what is compared: rows are named and their cells are shares, numbers or words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib import style

from foretaste.errors import DataError
from foretaste.evaluate.spread import Spread
from foretaste.files import write_text
from foretaste.report.canvas import (
    CLEAN,
    INK,
    LINE,
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

__all__ = ["Comparison", "Panel", "Row", "comparison_chart", "write_comparison"]

LONGEST_LABEL = 30
PER_ROW, MARGIN = 30, 34  # points of the chart's height
MARKS = ((CLEAN, "o", "kept"), (POISONED, "D", "left"))  # told apart without colours, too


@dataclass(frozen=True)
class Row:
    """A method: what it keeps (`kept`, a clean accuracy), what is left of an attack (`left`), and all its `cells`.

    `printed` is what a paper prints for the two.
    """

    name: str
    kept: Spread | None
    left: Spread | None
    cells: Sequence[Spread | str | None] = ()
    printed: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Rows that may be compared with each other; `floor` is what is left where there never was an attack, if known."""

    heading: str
    caption: str
    rows: Sequence[Row]
    floor: float | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that the page shows; every row has one cell for each of `columns`.

    Raises:
        DataError: a row with more or fewer cells.
    """

    title: str
    sentence: str
    columns: Sequence[str]
    panels: Sequence[Panel]
    notes: Sequence[str] = ()
    provenance: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for panel in self.panels:
            for row in panel.rows:
                if len(row.cells) != len(self.columns):
                    raise DataError(f"{row.name} has {len(row.cells)} cells for {len(self.columns)} columns.")


def comparison_chart(panel: Panel, name: str) -> str:
    """Return what each row keeps and what is left, as marks with their ranges on one axis from 0 to 100 %."""
    rows = [row for row in panel.rows if row.kept is not None or row.left is not None]
    texts = []
    with style.context(["default", STYLE]):
        figure, axes = new_canvas(MARGIN + PER_ROW * len(rows), left=2, right=10, top=4, bottom=26)
        for at, row in enumerate(rows):
            axes.barh(at, 1, height=0.3, color=SHADE)
            said = []
            for spread, printed, (colour, mark, what) in zip((row.kept, row.left), row.printed, MARKS, strict=True):
                if printed is not None:
                    axes.plot([printed, printed], [at - 0.22, at + 0.22], color=colour, linewidth=1.6, clip_on=False)
                    said.append(f"{what} {per_cent(printed)} in print")
                if spread is None:
                    continue
                axes.plot([spread.low, spread.high], [at, at], color=colour, linewidth=3, solid_capstyle="round")
                axes.plot([spread.mean], [at], mark, color=colour, markersize=7 if mark == "o" else 6, clip_on=False)
                said.append(f"{what} {per_cent(spread.mean)}")
            label = plain(row.name, LONGEST_LABEL)
            axes.text(0, at - 0.24, label, va="bottom", color=MUTED)
            texts.append(f"{label}: {', '.join(said)}")
        if panel.floor is not None:
            for at in range(len(rows)):  # not across the labels
                axes.plot([panel.floor, panel.floor], [at - 0.22, at + 0.22], color=INK, linewidth=1.6)
            texts.append(f"upright marks at {per_cent(panel.floor)}: never attacked")
        axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.85), yticks=[])
        axes.spines["bottom"].set_color(LINE)
        share_axis(axes, "x")
        return as_svg(figure, name, "; ".join(texts) + ".")


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write the page to `path`; the same comparison gives the same bytes.

    Raises:
        PlanError: the file cannot be written.
    """
    charts = [comparison_chart(panel, f"panel-{number}") for number, panel in enumerate(comparison.panels)]
    page = environment().get_template("comparison.html.j2")
    write_text(path, page.render(report=comparison, charts=charts))
