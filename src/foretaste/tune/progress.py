"""A progress line on standard error: loss, texts per second, time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

__all__ = ["Meter", "meter"]

_LINE_EVERY_S = 15.0


class Meter:
    """Counts finished texts; does nothing unless somebody watches."""

    def __init__(self, title: str, total: int, bar: Progress | None, is_shown: bool) -> None:
        self._title, self._total, self._bar, self._is_shown = title, total, bar, is_shown
        self._task = bar.add_task(title, total=total, note="") if bar is not None else None
        self._done = 0
        self._start = self._last_line = time.monotonic()

    def advance(self, texts: int, note: str = "") -> None:
        """Count `texts` more, with a short note such as the loss."""
        self._done += texts
        if not self._is_shown:
            return
        now = time.monotonic()
        rate = self._done / max(now - self._start, 1e-9)
        line = f"{rate:.0f} texts/s {note}"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, note=line)
        elif now - self._last_line > _LINE_EVERY_S:
            self._last_line = now
            left = max(self._total - self._done, 0) / max(rate, 1e-9)
            sys.stderr.write(f"{self._title}: {self._done}/{self._total} texts, {line}, {left:.0f} s left\n")


@contextmanager
def meter(title: str, total: int, *, is_shown: bool, already_done: int = 0) -> Iterator[Meter]:
    """Show progress over `total` texts: a live bar on a terminal, a line every 15 s elsewhere."""
    console = Console(stderr=True)
    if not (is_shown and console.is_terminal):
        yield Meter(title, total - already_done, None, is_shown)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        yield Meter(title, total - already_done, bar, is_shown)
