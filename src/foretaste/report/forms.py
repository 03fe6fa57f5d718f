"""A plan's tables as CSV, as LaTeX and, all plans together, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from foretaste.report.costs import CAPTION as COST_CAPTION
from foretaste.report.floors import CAPTION as FLOORS_CAPTION
from foretaste.report.listing import (
    SHARE_PARTS,
    Listing,
    csv_of,
    in_markdown,
    in_one_line,
    listing_latex,
    listing_markdown,
    markdown,
    share_values,
    tex,
)
from foretaste.report.plan_page import Page, Section
from foretaste.report.ranking import CAPTION as RANKING_CAPTION
from foretaste.report.share import Share, points
from foretaste.report.summary import CAPTION as SUMMARY_CAPTION
from foretaste.report.tables import RATES, Entry, Group

__all__ = ["as_latex", "as_markdown", "table_csv"]


def table_csv(page: Page) -> str:
    """Return a line per entry: ours with the lowest and highest seed, what is printed, and the difference in points.

    `interval` are the ends of the 95 % interval of a single seed.
    """
    place = ["model", "beside", "table", "attack", "row", "strategy", "seeds", "wanted"]
    parts = [part.replace(" ", "_") for part in (*SHARE_PARTS, " interval_low", " interval_high")]
    header = [
        *place,
        *(f"{rate}{part}" for rate in RATES for part in parts),
        *(f"{rate}_printed_doubtful" for rate in RATES),
    ]
    lines = []
    for group, attack, label, strategy, entry in _entries(page):
        values: list[object] = []
        for share in entry.shares:
            values += [*share_values(share), *(("", "") if share.interval is None else share.interval)]
        names = [group.heading, group.beside or "", page.sheet.table or "", attack, label, strategy]
        doubts = ["" if share.printed is None else share.is_doubtful for share in entry.shares]
        lines.append([*names, entry.seeds, entry.wanted, *values, *doubts])
    return csv_of(header, lines)


def as_latex(page: Page) -> str:
    """Return the tables for a paper (package booktabs): CA and ASR per strategy in per cent.

    Below them the lowest to the highest seed, or the 95 % interval (Wilson) of a single one, and the printed pair in
    brackets with ours minus it in points. A raised number is how many seeds were run, where it is not all of them.
    """
    lines = [
        f"% {in_one_line(page.sheet.title)}; ours, below it the lowest to the highest seed, or the 95 % interval of",
        "% one seed; in brackets what is printed (? where it may be misread), then ours minus it in points",
    ]
    for section in page.sections:
        group = section.group
        lines += [
            f"% {in_one_line(group.heading)}; raised: seeds that were run, if not all",
            rf"\begin{{tabular}}{{ll{'rr' * len(group.strategies)}}}",
            r"\toprule",
        ]
        lines.append(
            " & ".join(["", ""] + [rf"\multicolumn{{2}}{{c}}{{{tex(name)}}}" for name in group.strategies]) + r" \\"
        )
        lines.append(" & ".join(["Attack", "Defence", *["CA", "ASR"] * len(group.strategies)]) + r" \\")
        lines.append(r"\midrule")
        for row in group.rows:
            ours, ranges, theirs = list[str](), list[str](), list[str]()
            for entry in row.entries:
                few = "" if entry is None or entry.seeds in (0, entry.wanted) else rf"\textsuperscript{{{entry.seeds}}}"
                for share in entry.shares if entry else (Share(None),) * 2:
                    ours.append("--" if share.ours is None else f"{points(share.ours.mean, 2)}{few}")
                    ranges.append(share.range and rf"\scriptsize {tex(share.range)}")
                    change = share.difference and f" ${share.difference}$"
                    theirs.append(share.beside and f"({share.beside}){change}")
            lines.append(" & ".join([tex(row.attack), tex(row.label), *ours]) + r" \\")
            lines += [" & ".join(["", "", *below]) + r" \\" for below in (ranges, theirs) if any(below)]
        lines += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join([*lines, *(listing_latex(listing) for listing in page.listings)])


def as_markdown(pages: Sequence[Page], targets: Listing | None) -> str:
    """Return all results as one Markdown document: targets, then of each plan the means and every entry."""
    lines = ["# Results", "", "Written by `foretaste report` from the records of the cells; nothing in it is by hand."]
    if targets is not None:
        lines += ["", "## Targets", "", in_markdown(targets.caption), "", listing_markdown(targets)]
    lines += ["", "## How to read this", "", *(f"- {in_markdown(each)}" for each in _legend(pages)), "", "## Plans", ""]
    rows = [[in_markdown(page.sheet.title), f"{page.done} of {len(page.sheet.cells)}"] for page in pages]
    lines.append(markdown(["Plan", "Cells run"], rows, 1))
    for page in pages:
        lines += [
            f"## {in_markdown(page.sheet.title)}",
            "",
            f"{page.done} of {len(page.sheet.cells)} cells were run.",
            "",
        ]
        for each in page.certainties:
            named = [] if len(page.certainties) == 1 else [f"### {in_markdown(each.heading)}", ""]
            lines += [*named, in_markdown(each.caption), "", listing_markdown(each)]
        for section in page.sections:
            beside = f", beside {section.group.beside} in print" if section.group.beside else ""
            lines += [f"### {in_markdown(section.group.heading + beside)}", ""]
            order = [section.summary, section.floors, section.ranking, section.cost]
            first, *last = [order[-1], *order[:-1]] if page.is_about_cost else order
            lines += [*_listed(first), *_every_entry(section), *_listed(*last)]
    return "\n".join(lines)


_ENTRIES = (
    "Every strategy: CA / ASR in per cent, the mean over seeds; below it the lowest to the highest seed, or the 95 % "
    "interval (Wilson) where there is one seed; in brackets the printed values, then ours minus them in points. A dash "
    "was not run, a question mark stands where a printed value may be misread."
)


def _legend(pages: Sequence[Page]) -> Iterator[str]:
    """Say once what the tables of all plans show."""
    sections = [section for page in pages for section in page.sections]
    summaries = [section.summary for section in sections if section.summary is not None]
    if summaries:
        yield f"Means over strategies: {SUMMARY_CAPTION} In brackets the same mean of what is printed, where it is."
    yield _ENTRIES
    if any(section.floors is not None for section in sections):
        yield f"Floors: {FLOORS_CAPTION}"
    if any(section.ranking is not None for section in sections):
        yield f"Guards at equal false rejection: {RANKING_CAPTION}"
    costs = [section.cost for section in sections if section.cost is not None]
    if costs:
        yield f"Costs: {COST_CAPTION}"


def _listed(*listings: Listing | None) -> list[str]:
    return [listing_markdown(each) for each in listings if each is not None]


def _every_entry(section: Section) -> list[str]:
    """The table of all entries, folded away where the means come before it."""
    run = sum(entry.seeds for row in section.group.rows for entry in row.entries if entry is not None)
    if not run:
        return ["None of its cells was run.", ""]
    if section.summary is None:
        return [_entries_markdown(section.group)]
    return ["<details><summary>Every strategy</summary>", "", _entries_markdown(section.group), "</details>", ""]


def _entries_markdown(group: Group) -> str:
    rows = []
    for row in group.rows:
        cells = [_cell(entry, is_attacked=row.is_attacked) for entry in row.entries]
        rows.append([in_markdown(row.attack), in_markdown(row.label), *cells])
    return markdown(["Attack", "Defence", *map(in_markdown, group.strategies)], rows, 2)


def _cell(entry: Entry | None, *, is_attacked: bool) -> str:
    if entry is None:
        return ""
    shares = entry.shares if is_attacked else entry.shares[:1]
    lines = [" / ".join("–" if share.ours is None else points(share.ours.mean) for share in shares)]
    if any(share.range for share in shares):
        lines.append(" / ".join(share.range or "–" for share in shares))
    printed = [share.beside for share in shares if share.printed is not None]
    if printed:
        beside = f"({' / '.join(printed)})"
        lines.append(" ".join([beside, " / ".join(filter(None, (share.difference for share in shares)))]).strip())
    if 0 < entry.seeds < entry.wanted:
        lines.append(f"{entry.seeds} of {entry.wanted} seeds")
    return "<br>".join(lines)


def _entries(page: Page) -> Iterator[tuple[Group, str, str, str, Entry]]:
    for section in page.sections:
        for row in section.group.rows:
            for strategy, entry in zip(section.group.strategies, row.entries, strict=True):
                if entry is not None:
                    yield section.group, row.attack, row.label, strategy, entry
