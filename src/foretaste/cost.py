"""What a block of work takes: seconds, the texts that models read in it, memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path

from foretaste.spec import spec, values_of

__all__ = ["Cost", "Meter", "count_earlier", "count_forwards", "measured_cost", "sum_of"]


@spec
class Cost:
    """What a run took; None where it does not apply or the system does not tell.

    `peak_memory_bytes` is the largest resident size of the process meanwhile, on the host (not on a GPU).
    The cost of a plan's cell is that of its defence: `seconds` to make it ready, `seconds_per_text` and
    `forwards_per_text` (texts that models read) that it adds to each text a user sends, `stored_bytes` that it keeps.
    """

    seconds: float
    texts: int | None = None
    peak_memory_bytes: int | None = None
    trainable_parameters: int | None = None
    seconds_per_text: float | None = None
    forwards_per_text: float | None = None
    stored_bytes: int | None = None


_FIELDS = tuple(field.name for field in fields(Cost))
_HIGHEST = ("peak_memory_bytes", "texts")  # the same texts go through all


def sum_of(costs: Sequence[Cost]) -> Cost:
    """Return what several blocks took together: memory is the highest, the rest adds up where it is known.

    >>> both = sum_of([Cost(seconds=1.0, stored_bytes=5), Cost(seconds=2.0, peak_memory_bytes=7)])
    >>> both.seconds, both.stored_bytes, both.peak_memory_bytes
    (3.0, 5, 7)
    """
    known = {name: [value for each in costs if (value := values_of(each)[name]) is not None] for name in _FIELDS}
    return Cost(**{name: (max if name in _HIGHEST else sum)(values) for name, values in known.items() if values})


@dataclass
class Meter:
    """Collects the cost of a block; set `texts` and `trainable_parameters` where they are known.

    `forwards` counts the texts that models read in the block; `earlier` are seconds that a process that was stopped put
    into what the block goes on with.
    """

    started: float
    texts: int | None = None
    trainable_parameters: int | None = None
    seconds: float | None = None
    forwards: int = 0
    peak_memory_bytes: int | None = None
    earlier: float = 0.0

    @property
    def cost(self) -> Cost:
        """The cost of the finished block, or of the block so far."""
        return Cost(
            seconds=self.earlier + (time.perf_counter() - self.started if self.seconds is None else self.seconds),
            texts=self.texts,
            peak_memory_bytes=_higher(self.peak_memory_bytes, _peak_memory_bytes() if self.seconds is None else None),
            trainable_parameters=self.trainable_parameters,
        )


_METERS: list[Meter] = []  # of the blocks that are being measured, the innermost last


@contextmanager
def measured_cost() -> Iterator[Meter]:
    """Time a block, count what models read in it, and take its peak memory.

    >>> with measured_cost() as meter:
    ...     meter.texts = 10
    >>> meter.cost.texts
    10
    """
    for outer in _METERS:  # what they have seen so far is about to be forgotten
        outer.peak_memory_bytes = _higher(outer.peak_memory_bytes, _peak_memory_bytes())
    _forget_peak_memory()
    meter = Meter(started=time.perf_counter())
    _METERS.append(meter)
    try:
        yield meter
    finally:
        meter.seconds = time.perf_counter() - meter.started
        meter.peak_memory_bytes = _higher(meter.peak_memory_bytes, _peak_memory_bytes())
        _METERS.remove(meter)


def count_forwards(texts: int) -> None:
    """Tell all blocks that are being measured that a model reads so many texts once."""
    for meter in _METERS:
        meter.forwards += texts


def count_earlier(seconds: float) -> None:
    """Tell all blocks that are being measured what was put into their work before this process took it up."""
    for meter in _METERS:
        meter.earlier += seconds


def _higher(one: int | None, other: int | None) -> int | None:
    return max((each for each in (one, other) if each is not None), default=None)


def _forget_peak_memory() -> None:
    """Let the peak begin anew at what is resident now; where the system does not let us, it stays the process's."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_memory_bytes() -> int | None:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return _peak_memory_from_usage()
    # VmHWM counts this program alone; getrusage on Linux also remembers the process that started it.
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
    return int(line.split()[1]) * 1024 if line else _peak_memory_from_usage()


def _peak_memory_from_usage() -> int | None:
    if sys.platform == "win32":  # has no resource module
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB
