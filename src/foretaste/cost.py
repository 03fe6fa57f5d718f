"""What a block of work takes: seconds, the texts that models read in it, memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from foretaste.spec import spec, values_of

__all__ = ["Cost", "Meter", "count_earlier", "count_forwards", "measured_cost", "sum_of"]


@spec
class Cost:
    """What a run took; None where it does not apply or the system does not tell.

    `peak_memory_bytes` is the largest resident size of the process meanwhile, on the host; `peak_gpu_memory_bytes` the
    most that its tensors held at once on its GPUs, None where it uses none.
    The cost of a plan's cell is that of its defence: `seconds` to make it ready, `seconds_per_text` and
    `forwards_per_text` (texts that models read) that it takes by itself for each text a user sends, `stored_bytes` that
    it keeps beside the victim and the weights that it was tuned from.
    """

    seconds: float
    texts: int | None = None
    peak_memory_bytes: int | None = None
    peak_gpu_memory_bytes: int | None = None
    trainable_parameters: int | None = None
    seconds_per_text: float | None = None
    forwards_per_text: float | None = None
    stored_bytes: int | None = None


_FIELDS = tuple(each.name for each in fields(Cost))
_HIGHEST = ("peak_memory_bytes", "peak_gpu_memory_bytes", "texts")  # the same texts go through all


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
    peaks: dict[str, int] = field(default_factory=dict)
    earlier: float = 0.0

    @property
    def cost(self) -> Cost:
        """The cost of the finished block, or of the block so far."""
        if self.seconds is None:
            self.note_peaks()
        return Cost(
            seconds=self.earlier + (time.perf_counter() - self.started if self.seconds is None else self.seconds),
            texts=self.texts,
            trainable_parameters=self.trainable_parameters,
            **self.peaks,
        )

    def note_peaks(self) -> None:
        """Take what is now the highest use of memory for the block's, if it had no higher one."""
        for name, value in _peaks().items():
            self.peaks[name] = max(value, self.peaks.get(name, 0))


_METERS: list[Meter] = []  # of the blocks that are being measured, the innermost last


@contextmanager
def measured_cost() -> Iterator[Meter]:
    """Time a block, count what models read in it, and take its peaks of memory.

    >>> with measured_cost() as meter:
    ...     meter.texts = 10
    >>> meter.cost.texts
    10
    """
    for outer in _METERS:  # what they have seen so far is about to be forgotten
        outer.note_peaks()
    _forget_peaks()
    meter = Meter(started=time.perf_counter())
    _METERS.append(meter)
    try:
        yield meter
    finally:
        meter.seconds = time.perf_counter() - meter.started
        meter.note_peaks()
        _METERS.remove(meter)


def count_forwards(texts: int) -> None:
    """Tell all blocks that are being measured that a model reads so many texts once."""
    for meter in _METERS:
        meter.forwards += texts


def count_earlier(seconds: float) -> None:
    """Tell all blocks that are being measured what was put into their work before this process took it up."""
    for meter in _METERS:
        meter.earlier += seconds


def _forget_peaks() -> None:
    """Let peaks begin anew at what is in use now; where the system does not let us, they stay the process's."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    if (cuda := _cuda()) is not None:
        for gpu in range(cuda.device_count()):
            cuda.reset_peak_memory_stats(gpu)


def _peaks() -> dict[str, int]:
    """The highest use of each kind of memory since it was last forgotten, by the names of `Cost`."""
    found = {"peak_memory_bytes": _peak_memory_bytes()}
    if (cuda := _cuda()) is not None:
        found["peak_gpu_memory_bytes"] = sum(map(cuda.max_memory_allocated, range(cuda.device_count())))
    return {name: value for name, value in found.items() if value is not None}


def _cuda() -> Any:
    """torch's CUDA if this process uses it, else None; torch is not loaded for that."""
    torch: Any = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


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
