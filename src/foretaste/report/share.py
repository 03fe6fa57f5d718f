"""A rate as reports show it: ours over several runs, what is printed beside it, and the difference in points."""

from __future__ import annotations

from dataclasses import dataclass

from foretaste.evaluate.interval import Interval
from foretaste.evaluate.spread import Spread

__all__ = ["Share", "points"]


@dataclass(frozen=True)
class Share:
    """Ours, None where nothing was run, and the `printed` value, None where there is none.

    `interval` is the 95 % interval of the count (Wilson) where ours is of a single run, which has no spread. Ours minus
    the printed value says something only where both are of the same cells (`is_comparable`); a printed one that may be
    misread `is_doubtful`.

    >>> Share(Spread(0.9, 0.88, 0.92), printed=0.925).difference
    '-2.5'
    """

    ours: Spread | None
    printed: float | None = None
    interval: Interval | None = None
    is_comparable: bool = True
    is_doubtful: bool = False

    @property
    def difference(self) -> str:
        """Ours minus the printed value in points, with its sign; empty where it cannot be told."""
        if self.ours is None or self.printed is None or not self.is_comparable:
            return ""
        return f"{round(100 * (self.ours.mean - self.printed), 1) or 0.0:+.1f}"  # never -0.0

    @property
    def beside(self) -> str:
        """The printed value in per cent, with a question mark if it is doubtful; empty where there is none."""
        return "" if self.printed is None else f"{points(self.printed, 2)}{'?' if self.is_doubtful else ''}"

    @property
    def range(self) -> str:
        """The lowest and the highest run in per cent, or the interval of a single one; empty where there is none."""
        if self.ours is None:
            return ""
        if self.ours.low != self.ours.high:
            return _between(self.ours.low, self.ours.high)
        return "" if self.interval is None else f"95\u202f%: {_between(*self.interval)}"


def points(share: float, digits: int = 1) -> str:
    """Print a share in per cent, without the sign.

    >>> points(0.9204), points(-0.00001)
    ('92.0', '0.0')
    """
    return f"{100 * share:.{digits}f}" if round(100 * share, digits) else f"{0:.{digits}f}"


def _between(low: float, high: float) -> str:
    return f"{points(low)}{' to ' if low < 0 else '–'}{points(high)}"
