"""The figures of a plan: CA and ASR over what varies, undefended and behind each defence, from the records alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from foretaste.evaluate.spread import Spread
from foretaste.record import Record
from foretaste.report.canvas import CLEAN, HEIGHT, PAPER, POISONED, STYLE, as_svg, new_canvas, per_cent, share_axis
from foretaste.report.page import plain
from foretaste.report.tables import RATES, Sheet, Victims, share_of

__all__ = ["Plot", "line_chart", "plots_of"]

# What may stand on the axis, and what it is called there; a strategy's other numbers go by their names.
TITLES = {
    "virtual_tokens": "virtual tokens",
    "encoder_hidden_size": "hidden size of the prompt encoder",
    "learning_rate": "learning rate",
    "rank": "rank",
    "threshold": "threshold (surer texts are refused)",
    "reset_rate": "share of labels redrawn",
}
_OF_CELL = ("reset_rate", "threshold")
_PLACE = ("model", "data", "knowledge", "attack", "trigger")
_OF_PSIM = ("psim_strategy", *_OF_CELL)
LOG_FROM = 5  # how many times the lowest value the highest is for a log scale
CLOSEST = 0.075  # of the axis, between two labels

Pair = tuple[Spread | None, Spread | None]


@dataclass(frozen=True)
class Plot:
    """CA and ASR at each of `values`, undefended and behind a `defence`; `heading` says what does not vary.

    `seeds` are those that all points have; they rest on no others. None: there are no such, each rests on its own.
    """

    heading: str
    axis: str
    values: Sequence[float]
    undefended: Sequence[Pair]
    defended: Sequence[Pair]
    defence: str
    seeds: Sequence[int] = ()

    @property
    def caption(self) -> str:
        """What the reader sees."""
        numbers = ", ".join(map(str, self.seeds))
        seeds = f"Seed {numbers}" if numbers else "Each point is of other seeds"
        if len(self.seeds) > 1:
            seeds = f"Means over seeds {numbers}, with the lowest and the highest"
        return f"{self.heading}. Filled circles: undefended; squares: behind {self.defence} (w/D). {seeds}."


def plots_of(sheet: Sheet, records: Mapping[str, Record]) -> list[Plot]:
    """Return a plot per defence and per number that varies while all others stay; nothing is drawn that was not run.

    The undefended victim is the one that a cell stands before (see `Victims`), where none was run that of the cells
    without a defence.
    """
    cells = [{**_numbers(sheet, cell), **cell} for cell in sheet.cells]
    varying = dict.fromkeys(name for cell in cells for name in _candidates(cell))
    plots, victims = list[Plot](), Victims(sheet, records)
    for axis in varying:
        groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
        for cell in cells:
            if cell.get(axis) is not None or (axis in _OF_CELL and cell["defence"] == "none"):
                groups.setdefault(_fixed(sheet, cell, axis), []).append(cell)
        for group in groups.values():
            plots += _plots(axis, group, records, victims)
    return plots


def _plots(
    axis: str, cells: Sequence[Mapping[str, Any]], records: Mapping[str, Record], victims: Victims
) -> Iterator[Plot]:
    defences: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for cell in cells:
        if cell["defence"] != "none":
            key = (cell["defence"], *(cell[name] for name in _OF_PSIM if name != axis))
            defences.setdefault(key, []).append(cell)
    for (defence, *more), own in defences.items():
        values = sorted({float(cell[axis]) for cell in own})
        if len(values) < 2:
            continue
        run = [cell for cell in own if cell["key"] in records]
        run_seeds = [{cell["seed"] for cell in run if cell[axis] == value} for value in values]
        seeds = common_seeds(run_seeds)
        told = sorted(seeds) if all(seeds <= own for own in run_seeds if own) else []
        undefended, defended = [], []
        for value in values:
            behind = [records[cell["key"]] for cell in run if cell[axis] == value and cell["seed"] in seeds]
            at = (
                [cell for cell in own if cell[axis] == value]
                if behind
                else [cell for cell in cells if cell["defence"] == "none" and cell.get(axis) in (None, value)]
            )
            alone = [bare for cell in at if cell["seed"] in seeds and (bare := victims.alone(cell)) is not None]
            undefended.append(_pair(alone, is_undefended=True))
            defended.append(_pair(behind))
        if any(pair[0] is not None for pair in (*undefended, *defended)):
            name = " ".join([defence, *(str(each) for each in more if each is not None)])
            yield Plot(_heading(own[0], axis), axis, values, undefended, defended, name, told)


def common_seeds(run: Sequence[set[int]]) -> set[int]:
    """Return the seeds that all points have that have any, so that a line is one of the same seeds; all if none is.

    >>> common_seeds([{0}, {0, 1, 2}, set()]), common_seeds([{0}, {1}])
    ({0}, {0, 1})
    """
    there = [seeds for seeds in run if seeds]
    return (set.intersection(*there) or set.union(*there)) if there else set()


def _pair(records: Sequence[Record], *, is_undefended: bool = False) -> Pair:
    shares = [share_of(records, rate, is_undefended=is_undefended).ours for rate in RATES]
    return shares[0], shares[1]


def _numbers(sheet: Sheet, cell: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a cell's strategy, as the plan's sheet has them."""
    return dict(sheet.strategies.get(str(cell["strategy"]), {}))


def _candidates(cell: Mapping[str, Any]) -> Iterator[str]:
    for name, value in cell.items():
        if name != "seed" and isinstance(value, int | float) and not isinstance(value, bool):
            yield name


def _fixed(sheet: Sheet, cell: Mapping[str, Any], axis: str) -> tuple[Any, ...]:
    """All that is the same within a plot: place, method and every other field of the strategy."""
    fields = sorted((name, str(value)) for name, value in _numbers(sheet, cell).items() if name != axis)
    named = () if fields else (str(cell["strategy"]),)  # without fields a name is all there is
    return (*(cell.get(name) for name in _PLACE), *fields, *named)


def _heading(cell: Mapping[str, Any], axis: str) -> str:
    title = _title(axis)
    place = f"{cell.get('method', cell['strategy'])}, {cell['attack']} on {cell['data']}, {cell['model']}"
    return f"{title[0].upper()}{title[1:]}: {place}"


def _title(axis: str) -> str:
    return TITLES.get(axis, axis.replace("_", " "))


def line_chart(plot: Plot, name: str) -> str:
    """Return four lines over what varies, each point with its lowest and highest seed: CA and ASR, alone and "w/D"."""
    values = np.array(plot.values)
    is_log = bool(values.min() > 0 and values.max() / values.min() >= LOG_FROM)
    places = np.log(values) if is_log else values
    step = 0.012 * float(places.max() - places.min())  # so that intervals do not hide each other
    title = _title(plot.axis) + (" (log scale)" if is_log else "")
    lines = [
        ("CA", plot.undefended, 0, CLEAN, False),
        ("CA w/D", plot.defended, 0, CLEAN, True),
        ("ASR", plot.undefended, 1, POISONED, False),
        ("ASR w/D", plot.defended, 1, POISONED, True),
    ]
    ends: list[tuple[float, str, str]] = []
    said = []
    with style.context(["default", STYLE]):
        figure, axes = new_canvas(HEIGHT, left=46, right=62, top=12, bottom=42)
        for number, (label, pairs, which, colour, is_defended) in enumerate(lines):
            spreads = [pair[which] for pair in pairs]
            known = [(place + step * (number - 1.5), each) for place, each in zip(places, spreads, strict=True) if each]
            if not known:
                continue
            _line(axes, known, colour, is_defended)
            ends.append((known[-1][1].mean, label, colour))
            at = zip(plot.values, spreads, strict=True)
            said.append(f"{label} " + ", ".join(f"{per_cent(s.mean)} at {v:g}" for v, s in at if s is not None))
        for height, (_, label, colour) in zip(_apart([end[0] for end in ends]), ends, strict=True):
            axes.text(1.03, height, label, transform=axes.get_yaxis_transform(), va="center", color=colour,
                      fontweight="normal" if "w/D" in label else "bold")  # fmt: skip
        pad = 4 * step
        axes.set(xlim=(places.min() - pad, places.max() + pad), ylim=(-0.03, 1.03), xlabel=plain(title))
        axes.xaxis.set_major_locator(FixedLocator(places.tolist()))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FixedFormatter(_ticks(plot.values)))
        share_axis(axes, "y")
        label = f"CA and ASR against {title}, alone and behind {plot.defence} (w/D): {'; '.join(said)}."
        return as_svg(figure, name, label)


def _line(axes: Axes, known: Sequence[tuple[float, Spread]], colour: str, is_defended: bool) -> None:
    where = [place for place, _ in known]
    for place, spread in known:
        axes.plot([place, place], [spread.low, spread.high], color=colour, linewidth=1.4, clip_on=False)
    marks: dict[str, Any] = {"marker": "s", "markersize": 6, "markerfacecolor": PAPER, "markeredgewidth": 1.6}
    if not is_defended:
        marks = {"marker": "o", "markersize": 6}
    axes.plot(where, [spread.mean for _, spread in known], color=colour, clip_on=False, zorder=3,
              linestyle=(0, (4, 2)) if is_defended else "solid", **marks)  # fmt: skip


def _ticks(values: Sequence[float]) -> list[str]:
    """Print what stands at the axis, all of it in the same manner.

    >>> _ticks([2e-5, 0.002]), _ticks([5, 40])
    (['2e-5', '2e-3'], ['5', '40'])
    """
    if min(values) >= 0.001:
        return [f"{value:g}" for value in values]
    parts = [f"{value:e}".split("e") for value in values]
    return [f"{float(number):g}e{int(power)}" for number, power in parts]


def _apart(heights: Sequence[float]) -> list[float]:
    """Move heights on an axis from 0 to 1 until no two are closer than labels may be, in the same order.

    >>> [round(height, 4) for height in _apart([0.5, 0.5, 0.0])]
    [0.5375, 0.4625, 0.0]
    """
    order = sorted(range(len(heights)), key=lambda index: (heights[index], -index))
    blocks: list[list[int]] = []
    for index in order:
        blocks.append([index])
        while len(blocks) > 1 and _low(blocks[-1], heights) - _high(blocks[-2], heights) < CLOSEST:
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    found = list(heights)
    for block in blocks:
        low = _low(block, heights)
        for place, index in enumerate(block):
            found[index] = low + CLOSEST * place if len(block) > 1 else heights[index]
    return found


def _low(block: Sequence[int], heights: Sequence[float]) -> float:
    """Where a block of labels begins: around its mean, but on the axis."""
    middle = math.fsum(heights[index] for index in block) / len(block)
    half = CLOSEST * (len(block) - 1) / 2
    return min(max(middle - half, 0.0), 1.0 - 2 * half)


def _high(block: Sequence[int], heights: Sequence[float]) -> float:
    return _low(block, heights) + CLOSEST * (len(block) - 1)
