"""Print the tables and draw the curves of the dose study (benchmarks/dose_study.py) for docs/psim.md.

python benchmarks/dose_tables.py table --store runs/dose-study
python benchmarks/dose_tables.py plot --store runs/dose-study --out docs/dose.png
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import product
from pathlib import Path

import matplotlib
from dose_study import DOSES, DRAWS, FOLLOWED, VIEWS, WAYS

matplotlib.use("Agg")
from matplotlib import pyplot

COLOURS = ("#0072b2", "#009e73", "#56b4e9", "#d55e00", "#e69f00")  # Okabe and Ito, for all eyes


def table(store: Path) -> None:
    """Print the tables of docs/psim.md."""
    records = {path.parent.name: json.loads(path.read_text()) for path in sorted(store.glob("*/record.json"))}
    _say("FAR in per cent at 1 % FRR (validation split) for each draw: confidence; distance; both.\n")
    _say(row("way", "base", "steps", *(f"dose {dose}" for dose in DOSES)))
    _say(row(*["---"] * (3 + len(DOSES))))
    for way, base in product(WAYS, FOLLOWED):
        found = [records[name] for draw in range(DRAWS) if (name := f"{way}-{base}-{draw}") in records]
        if not found:
            continue
        steps = [str(r["judged"]["0.2"]["step"]) if "0.2" in r["judged"] else "> 200" for r in found]
        cells = []
        for dose in map(str, DOSES):
            views = [[f"{100 * r['judged'][dose][v]['far']:.0f}" for r in found if dose in r["judged"]] for v in VIEWS]
            cells.append("; ".join(" ".join(view) for view in views) if views[0] else "not reached")
        _say(row(way, base, " ".join(steps), *cells))
    _say("\nThe default on the test split, per cent unless AUROC.\n")
    _say(row("base", "draw", "last doses", "AUROC", "FAR at 1 % FRR", "FRR", "FAR", "more texts: FRR", "FAR"))
    _say(row(*["---"] * 9))
    for name, record in records.items():
        if name.startswith("test-"):
            base, draw = name.removeprefix("test-").rsplit("-", maxsplit=1)
            both, more = record["views"]["both"], record["more"].get("both")
            _say(row(
                base, draw, ", ".join(f"{dose:.2f}" for dose in record["doses"][-2:]), f"{both['auroc']:.4f}",
                *(f"{100 * both[key]:.1f}" for key in ("far_at_1", "frr", "far")),
                *([f"{100 * more[key]:.1f}" for key in ("frr", "far")] if more else ["", ""]),
            ))  # fmt: skip


def row(*cells: object) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def plot(store: Path, out: Path) -> None:
    """Draw how the dose falls, step by step, for every way: one line per base and draw."""
    ways = [way for way in WAYS if any(store.glob(f"{way}-*-[0-9]/record.json"))]
    figure, grid = pyplot.subplots(2, 3, figsize=(9.6, 5.4), sharex=True, sharey=True, layout="constrained")
    axes = grid.ravel()[: len(ways)]
    for axis, way in zip(axes, ways, strict=True):
        for base, colour in zip(FOLLOWED, COLOURS, strict=True):
            for number, path in enumerate(sorted(store.glob(f"{way}-{base}-[0-9]/record.json"))):
                steps, doses = zip(*json.loads(path.read_text())["curve"], strict=True)
                axis.plot(steps, doses, color=colour, linewidth=1.1, label=None if number else base)
        axis.axhline(0.2, color="0.3", linewidth=0.8, linestyle="--")
        axis.set(title=way, xlim=(0, 42), ylim=(0, 1))
        axis.spines[["top", "right"]].set_visible(False)
    for axis in grid[-1]:
        axis.set_xlabel("step")
    figure.supylabel("dose (median clean confidence)")
    for empty in grid.ravel()[len(ways) :]:
        empty.set_axis_off()
    handles = {text: line for axis in axes for line, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(out, dpi=130)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["table", "plot"])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/dose.png"), help="picture to write (plot)")
    arguments = parser.parse_args()
    if arguments.action == "table":
        table(arguments.store)
    else:
        plot(arguments.store, arguments.out)


if __name__ == "__main__":
    main()
