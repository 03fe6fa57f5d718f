"""What a plan says in few lines: each defence against each attack, the mean over strategies, as a table and drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from foretaste.evaluate.spread import Spread
from foretaste.report.comparison import Panel, comparison_chart
from foretaste.report.comparison import Row as Drawn
from foretaste.report.listing import Listing, Value, mean_share
from foretaste.report.share import Share
from foretaste.report.tables import RATES, Group, Row

__all__ = ["charts_of", "summary_of"]

CAPTION = (
    "CA and ASR in per cent: the mean over the strategies that were run, of each the mean over its seeds; below it the "
    "lowest and the highest strategy. Beside them the same means of the victims without the defence, over the same "
    "strategies and seeds, where records tell them of the same weights (those behind a guard; those that were read "
    "rewritten texts; before a washed base those of the base as it came): rows are to be compared through these."
)


def summary_of(group: Group, name: str) -> Listing:
    """Return a line per attack and defence; the printed value is the mean over the same strategies."""
    rows: list[Sequence[Value]] = []
    for row in group.rows:
        shares = _means(row)
        asked = [entry for entry in row.entries if entry is not None]
        run = [entry.seeds for entry in asked if entry.seeds]
        seeds = "" if not run else str(run[0]) if min(run) == max(run) else f"{min(run)} to {max(run)}"
        alone = ["", ""] if row.label == "none" else _alone(row)
        ratio = f"{len(run)} of {len(asked)}"
        own = (shares[0], shares[1] if row.is_attacked else "")
        rows.append((row.attack, row.label, *own, *alone, ratio, seeds))
    beside = f" In brackets the same mean of what is printed for {group.beside}." if group.beside else ""
    columns = ("Attack", "Defence", "CA", "ASR", "CA alone", "ASR alone", "Strategies", "Seeds")
    return Listing(name, group.heading, CAPTION + beside, columns, rows, labels=2)


def charts_of(group: Group, name: str, *, is_by_strategy: bool = False) -> Mapping[str, str]:
    """Return a chart per attack: what each defence keeps of CA and leaves of ASR, over strategies or of each."""
    panels: dict[str, list[Drawn]] = {}
    for row in group.rows:
        if not row.is_attacked:
            continue
        drawn = [(row.label, _means(row))]
        if is_by_strategy:
            pairs = zip(group.strategies, row.entries, strict=True)
            drawn = [(f"{strategy}, {row.label}", list(entry.shares)) for strategy, entry in pairs if entry is not None]
        for label, (clean, attack) in drawn:
            if clean.ours is None:
                continue
            printed = [share.printed if share.is_comparable else None for share in (clean, attack)]
            one = Drawn(label, clean.ours, attack.ours, (), (printed[0], printed[1]))
            panels.setdefault(row.attack, []).append(one)
    return {
        attack: comparison_chart(Panel(heading=attack, caption="", rows=rows), f"{name}-{number}")
        for number, (attack, rows) in enumerate(panels.items())
    }


def _alone(row: Row) -> list[Value]:
    """CA and ASR of the undefended victims of the same strategies and seeds; empty if no record tells some of them."""
    run = [entry for entry in row.entries if entry and entry.rates]
    found: list[Value] = []
    for number in range(len(RATES)):
        means = []
        for entry in run:
            values = [entry.alone.get(seed, [None, None])[number] for seed in entry.rates]
            known = [value for value in values if value is not None]
            means += [float(np.mean(known))] if len(known) == len(values) else []
        found.append(mean_share(means) if run and len(means) == len(run) else "")
    return found


def _means(row: Row) -> list[Share]:
    """CA and ASR over the strategies of a line that were run; the printed mean is over those of them that are printed.

    Of a single strategy the seeds are shown.
    """
    found = []
    for rate in RATES:
        shares: list[Share] = [getattr(entry, rate) for entry in row.entries if entry is not None]
        run = [share for share in shares if share.ours is not None] or shares
        printed = [share.printed for share in run if share.printed is not None]
        ours = [share.ours for share in run if share.ours is not None]
        spread = ours[0] if len(ours) == 1 else Spread.of([each.mean for each in ours])
        mean = float(np.mean(printed)) if printed else None
        interval = run[0].interval if len(run) == 1 else None
        found.append(Share(spread, mean, interval, is_comparable=len(printed) == len(ours)))
    return found
