"""A plan's page: its tables and figures, from records, from what the plan asked for and from what a store keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from foretaste.record import Record
from foretaste.report.certainty import certainties_of
from foretaste.report.costs import costs_of
from foretaste.report.figure import line_chart, plots_of
from foretaste.report.floors import floors_of
from foretaste.report.listing import Listing
from foretaste.report.ranking import ranking_of
from foretaste.report.summary import charts_of, summary_of
from foretaste.report.tables import Group, Sheet, groups_of

__all__ = ["Page", "Section", "page_of"]

CONFIDENCE_TABLE, COST_TABLE = 12, 14


@dataclass(frozen=True, eq=False)
class Section:
    """One model, data set and kind of knowledge: its table, in short (`summary`, `charts`), floors, guards, costs."""

    group: Group
    charts: Mapping[str, str]
    summary: Listing | None
    floors: Listing | None
    ranking: Listing | None
    cost: Listing | None

    @property
    def listings(self) -> tuple[Listing, ...]:
        """The tables beside the one of all entries."""
        return tuple(each for each in (self.summary, self.floors, self.ranking, self.cost) if each is not None)


@dataclass(frozen=True, eq=False)
class Page:
    """A plan's page: its tables and figures, how many of its cells were run, and which of them have a page."""

    sheet: Sheet
    sections: Sequence[Section]
    plots: Sequence[tuple[str, str]]
    certainties: Sequence[Listing]
    done: int
    shown: frozenset[str] = frozenset()

    @property
    def is_about_cost(self) -> bool:
        """True if what defences take is what the plan is for."""
        return self.sheet.table == COST_TABLE

    @property
    def listings(self) -> tuple[Listing, ...]:
        """All tables beside those of all entries."""
        return (*self.certainties, *(listing for section in self.sections for listing in section.listings))


def page_of(sheet: Sheet, records: Mapping[str, Record], store: Path, shown: frozenset[str]) -> Page:
    """Lay a plan's page out; `records` are those there are, by key, `shown` the keys of cells that have a page."""
    done = sum(cell["key"] in records for cell in sheet.cells)
    plots = plots_of(sheet, records)
    drawn = [(plot.caption, Markup(line_chart(plot, f"plot-{number}"))) for number, plot in enumerate(plots)]
    is_figure = sheet.figure is not None
    sections = []
    for number, group in enumerate(groups_of(sheet, records), 1):
        charts = {} if is_figure and plots else charts_of(group, f"chart-{number}", is_by_strategy=is_figure)
        # Over the values that a figure varies, a mean says nothing; over one strategy, nothing new.
        is_summed = not is_figure and len(group.strategies) > 1
        cost = costs_of(group, records, f"cost-{number}", is_printed=sheet.table == COST_TABLE)
        summary = summary_of(group, f"summary-{number}") if is_summed else None
        floors = None if is_figure else floors_of(group, records, f"floors-{number}")
        ranking = None if is_figure else ranking_of(group, records, f"ranking-{number}")
        drawn_charts = {attack: Markup(svg) for attack, svg in charts.items()}
        sections.append(Section(group, drawn_charts, summary, floors, ranking, cost))
    is_about_confidence = sheet.table == CONFIDENCE_TABLE
    certainties = certainties_of(sheet, records, store, "confidence") if is_about_confidence else ()
    return Page(sheet, sections, drawn, certainties, done, shown)
