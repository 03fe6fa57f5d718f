"""The charts of an evaluation, as inline SVG."""

from __future__ import annotations

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from foretaste.evaluate.metrics import FRR_LEVELS, Rate, auroc, false_acceptance_rate, false_rejection_rate
from foretaste.evaluate.outcome import Outcome, sweep
from foretaste.evaluate.threshold import is_flagged, suspicion
from foretaste.report.canvas import (
    CLEAN,
    HEIGHT,
    INK,
    MUTED,
    PAPER,
    POISONED,
    SHADE,
    STYLE,
    WIDTH,
    as_svg,
    new_canvas,
    per_cent,
    share_axis,
)

__all__ = ["bar_chart", "roc_chart", "score_chart", "sweep_chart"]

BINS = 56
Column = NDArray[np.float64]


def bar_chart(outcome: Outcome) -> str:
    """Return CA and ASR, alone and guarded, as bars with their 95 % intervals."""
    rows: list[tuple[str, Rate, str]] = [("clean accuracy", outcome.clean_accuracy, CLEAN)]
    rows.append(("attack success", outcome.attack_success_rate, POISONED))
    guarded = outcome.guarded
    if guarded:
        rows.insert(1, ("with guard", guarded.clean_accuracy, CLEAN))
        rows.append(("with guard", guarded.attack_success_rate, POISONED))
    height = 246 if guarded else 150
    with style.context(["default", STYLE]):
        figure, axes = new_canvas(height, left=2, right=62, top=4, bottom=26)
        at, texts = 0.0, []
        for index, (name, rate, colour) in enumerate(rows):
            is_second = guarded is not None and index % 2 == 1
            at += 0 if index == 0 else (1.0 if is_second else 1.45)
            axes.barh(at, 1, height=0.34, color=SHADE)
            axes.barh(at, rate.value, height=0.34, color=colour)
            # One stroke |-|, first in the paper's colour and wider, so that it shows on the bar and beside it.
            across, along = (
                [rate.low, rate.low, rate.low, rate.high, rate.high, rate.high],
                [-0.1, 0.1, 0, 0, -0.1, 0.1],
            )
            for stroke, width in ((PAPER, 4.0), (INK, 1.6)):
                axes.plot(across, at + np.array(along), color=stroke, linewidth=width, clip_on=False, zorder=3)
            label = name if is_second or not guarded else f"{name}, victim alone"
            axes.text(0, at - 0.26, label, va="bottom", color=MUTED)
            axes.text(1.03, at, per_cent(rate.value), va="center", color=INK, fontweight="bold", clip_on=False)
            texts.append(f"{label} {per_cent(rate.value)} ({per_cent(rate.low)} to {per_cent(rate.high)})")
        axes.set(xlim=(0, 1), ylim=(at + 0.4, -0.75), yticks=[])
        share_axis(axes, "x")
        return as_svg(figure, "bars", "Bars with 95 % intervals: " + "; ".join(texts) + ".")


def score_chart(clean_scores: ArrayLike, poisoned_scores: ArrayLike, threshold: float) -> str:
    """Return two histograms on one score axis, clean above triggered, with the threshold between pass and refuse."""
    clean, poisoned = suspicion(clean_scores), suspicion(poisoned_scores)
    low, high = _limits(clean, poisoned, threshold)
    edges = np.linspace(low, high, BINS + 1)
    texts = []
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        for index, (name, scores, colour) in enumerate([("clean", clean, CLEAN), ("triggered", poisoned, POISONED)]):
            axes = figure.add_axes((2 / WIDTH, (168 - 130 * index) / HEIGHT, 1 - 6 / WIDTH, 92 / HEIGHT))
            # Scores beyond the axis, infinite ones too, are drawn in the bin at its end.
            counts, _ = np.histogram(np.clip(scores, low, high), edges)
            axes.axvspan(threshold, high, color=SHADE, linewidth=0)
            axes.stairs(counts / max(counts.max(), 1), edges, fill=True, color=colour)
            axes.axvline(threshold, color=INK, linewidth=1.4, dashes=(3, 2))
            axes.set(xlim=(low, high), ylim=(0, 1.05), yticks=[])
            axes.xaxis.set_major_locator(MaxNLocator(6))
            axes.tick_params(labelbottom=index == 1)
            refused = per_cent(float(is_flagged(scores, threshold).mean()))
            axes.text(
                0, 1.07, f"{name}, n = {len(scores):,}", transform=axes.transAxes, color=colour, fontweight="bold"
            )
            axes.text(1, 1.07, f"{refused} refused", transform=axes.transAxes, ha="right", color=INK)
            texts.append(
                f"{name} texts have median score {np.median(scores):.3g} and {refused} lie above the threshold"
            )
        axes.set_xlabel("guard score (higher = more suspicious)")
        label = f"Two histograms of guard scores around the threshold {threshold:.4g}: {'; '.join(texts)}."
        return as_svg(figure, "scores", label)


def sweep_chart(
    *,
    clean_labels: ArrayLike,
    clean_predicted: ArrayLike,
    clean_scores: ArrayLike,
    poisoned_predicted: ArrayLike,
    poisoned_scores: ArrayLike,
    target: int | ArrayLike,
    threshold: float,
) -> str:
    """Return CA and ASR as functions of the threshold (Figure 3d of Zhao et al. 2024, arXiv:2402.12168)."""
    low, high = _limits(suspicion(clean_scores), suspicion(poisoned_scores), threshold)
    curves = sweep(
        clean_labels=clean_labels,
        clean_predicted=clean_predicted,
        clean_scores=clean_scores,
        poisoned_predicted=poisoned_predicted,
        poisoned_scores=poisoned_scores,
        target=target,
        thresholds=np.linspace(low, high, 2 * WIDTH + 1),
    )
    with style.context(["default", STYLE]):
        figure, axes = new_canvas(HEIGHT, left=46, right=8, top=30, bottom=38)
        axes.axvline(threshold, color=INK, linewidth=1.4, dashes=(3, 2))
        axes.step(curves.thresholds, curves.clean_accuracy, where="post", color=CLEAN)
        axes.step(curves.thresholds, curves.attack_success_rate, where="post", color=POISONED)
        axes.text(0, 1.06, "clean accuracy", transform=axes.transAxes, color=CLEAN, fontweight="bold")
        axes.text(1, 1.06, "attack success", transform=axes.transAxes, color=POISONED, fontweight="bold", ha="right")
        axes.set(xlim=(low, high), ylim=(-0.02, 1.03), xlabel="threshold (higher = fewer texts refused)")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        share_axis(axes, "y")
        label = (
            f"Two curves against the threshold, from {low:.3g} to {high:.3g}. Clean accuracy rises to "
            f"{per_cent(float(curves.clean_accuracy[-1]))}, attack success to "
            f"{per_cent(float(curves.attack_success_rate[-1]))}; the threshold in use is {threshold:.4g}."
        )
        return as_svg(figure, "sweep", label)


def roc_chart(clean_scores: ArrayLike, poisoned_scores: ArrayLike, threshold: float) -> str:
    """Return the share of triggered texts caught against the share of clean texts refused, on a log axis from 0.1 %."""
    clean, poisoned = np.sort(suspicion(clean_scores)), np.sort(suspicion(poisoned_scores))
    refused = np.geomspace(0.001, 1, 2 * WIDTH + 1)
    caught = _caught(clean, poisoned, refused)
    here_refused = false_rejection_rate(is_flagged(clean, threshold)).value
    here_caught = 1 - false_acceptance_rate(is_flagged(poisoned, threshold)).value
    with style.context(["default", STYLE]):
        figure, axes = new_canvas(HEIGHT, left=46, right=14, top=30, bottom=38)
        axes.plot(refused, refused, color=MUTED, linewidth=1.2, dashes=(3, 3))
        axes.step(refused, caught, where="post", color=POISONED)
        levels = np.array(FRR_LEVELS)
        axes.plot(levels, _caught(clean, poisoned, levels), "o", color=POISONED, markersize=5, clip_on=False)
        axes.plot([max(here_refused, 0.001)], [here_caught], "D", color=INK, markersize=7, clip_on=False, zorder=5)
        axes.set(xscale="log", xlim=(0.001, 1), ylim=(-0.02, 1.03), xlabel="clean texts refused (log scale)")
        axes.xaxis.set_major_locator(FixedLocator([0.001, 0.01, 0.1, 1]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share * 100:g}\u202f%"))
        axes.grid(axis="x")
        share_axis(axes, "y")
        area = auroc(clean, poisoned)
        axes.text(0, 1.06, "triggered texts caught", transform=axes.transAxes, color=POISONED, fontweight="bold")
        axes.text(1, 1.06, f"AUROC {area:.4f}", transform=axes.transAxes, color=INK, ha="right")
        label = (
            f"ROC curve, AUROC {area:.4f}. At the threshold in use {per_cent(here_caught)} of triggered texts are "
            f"caught and {per_cent(here_refused)} of clean texts refused."
        )
        return as_svg(figure, "roc", label)


def _caught(clean: Column, poisoned: Column, refused: Column) -> Column:
    """Return the share caught, `(T,)`, if at most `refused` `(T,)` of the clean texts may be; both sorted."""
    allowed = np.floor(len(clean) * refused + 1e-9).astype(np.int64)
    thresholds = np.where(allowed < len(clean), clean[np.maximum(len(clean) - 1 - allowed, 0)], -np.inf)
    caught: Column = 1 - np.searchsorted(poisoned, thresholds, side="right") / len(poisoned)
    return caught


def _limits(clean: Column, poisoned: Column, threshold: float) -> tuple[float, float]:
    """Return the ends of a score axis that shows the threshold and all but the farthest thousandths."""
    ends = [threshold]
    for scores in (clean, poisoned):
        finite = scores[np.isfinite(scores)]
        if finite.size:
            ends += [float(end) for end in np.quantile(finite, [0.001, 0.999])]
    low, high = min(ends), max(ends)
    pad = 0.03 * (high - low) or max(abs(threshold), 1.0) * 0.05
    return low - pad, high + pad
