"""What each defence takes: the mean over a table's cells, and what the paper's Table 14 says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from foretaste.record import Record
from foretaste.report.listing import Amount, Listing, Value, mean_amount
from foretaste.report.printed import RESOURCES
from foretaste.report.tables import Group

__all__ = ["COSTS", "costs_of"]

CAPTION = (
    "What a defence takes, the mean over the cells of this table: making it ready (training, calibrating, washing, "
    "fitting), then what it takes per text beside the victim's own answer, each guard by itself (RAP's first pass and "
    "the one of DAN and BadActs are the victim's own once more, which a server could spare); what is kept beside the "
    "victim and the weights that it was tuned from (which PSIM reads, too: behind full fine-tuning or a washed base "
    "the suspect's own are kept besides); the largest resident size of the process that made it, and the most that its "
    "tensors held on GPUs, where it used any. What no cell says has no column."
)
# A field of a cell's cost, its column, and how many of the column's units one of the field's is.
COSTS = {
    "seconds": ("Making ready, s", 1.0),
    "seconds_per_text": ("Per text, ms", 1e3),
    "forwards_per_text": ("Model passes per text", 1.0),
    "stored_bytes": ("Stored, MB", 1e-6),
    "peak_memory_bytes": ("Peak memory, MB", 1e-6),
    "peak_gpu_memory_bytes": ("Peak GPU memory, MB", 1e-6),
    "trainable_parameters": ("Trained parameters", 1.0),
}
PRINTED = ("Extra module", "Graphics memory", "Storage")


def costs_of(group: Group, records: Mapping[str, Record], name: str, *, is_printed: bool = False) -> Listing | None:
    """Return a line per defence, beside it what is printed (`is_printed`); None where no cell says what it took.

    Printed defences that the table lacks have a line, too.
    """
    cells: dict[tuple[str, str], list[Record]] = {}
    for row in group.rows:
        own = cells.setdefault((row.defence, row.label), [])
        own += row.run(records)
    costs = {place: [record.cost for record in own if record.cost is not None] for place, own in cells.items()}
    if not any(costs.values()) and not is_printed:
        return None
    every = [cost for each in costs.values() for cost in each]
    known = {name: each for name, each in COSTS.items() if any(getattr(cost, name) is not None for cost in every)}
    rows: list[Sequence[Value]] = []
    for (defence, label), own in cells.items():
        if defence != "none":
            means = [
                mean_amount([getattr(cost, name) for cost in costs[defence, label]], _shown, scale)
                for name, (_, scale) in known.items()
            ]
            rows.append((label, *means, *(_said(defence) if is_printed else ()), Amount(len(own), str(len(own)))))
    if is_printed:
        ours = {_plain(defence) for defence, _ in cells}
        rows += [(each, *(None,) * len(known), *_said(each), None) for each in RESOURCES if each not in ours]
    caption = CAPTION + (" In words what the paper says of it." if is_printed else "")
    columns = ("Defence", *(column for column, _ in known.values()), *(PRINTED if is_printed else ()), "Cells")
    return Listing(name, "Cost", caption, columns, rows)


def _shown(value: float) -> str:
    """Print three digits, and all of them before the point; what is next to nothing as such.

    >>> [_shown(value) for value in (0.0, 2e-5, 0.01614, 3.14159, 1234.5)]
    ['0', '<0.001', '0.0161', '3.14', '1,234']
    """
    if 0 < value < 0.001:
        return "<0.001"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _said(defence: str) -> list[str | None]:
    said = RESOURCES.get(_plain(defence))
    return [None] * len(PRINTED) if said is None else ["yes" if each else "no" for each in said]


def _plain(defence: str) -> str:
    return "psim" if defence in ("psim", "psim_paper") else defence
