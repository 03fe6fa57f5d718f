"""What a block takes: forwards and peak memory, of nested blocks, too."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from foretaste.cost import count_forwards, measured_cost


def test_forwards_count_for_every_block_around_them() -> None:
    count_forwards(100)  # nobody asks
    with measured_cost() as outer:
        count_forwards(2)
        with measured_cost() as inner:
            count_forwards(3)
        count_forwards(4)
    assert (outer.forwards, inner.forwards) == (9, 3)


def test_a_peak_is_that_of_its_own_block_and_of_those_within() -> None:
    # In a process of its own: the peak of this one may be high already.
    code = """
import numpy as np
from foretaste.cost import measured_cost
def fill(megabytes): np.ones(megabytes * 131072)
fill(400)
with measured_cost() as small: fill(50)
with measured_cost() as outer:
    fill(200)
    with measured_cost() as inner: fill(50)
with measured_cost() as around:
    with measured_cost() as within: fill(200)
print(*(meter.cost.peak_memory_bytes // 2**20 for meter in (small, outer, inner, around, within)))
"""
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    small, outer, inner, around, within = map(int, printed.split())
    assert small < 200 <= outer
    assert inner < 200 <= within <= around


class _Gpus:
    """Two GPUs as torch.cuda tells of them: what is held now, and the most since that was forgotten."""

    def __init__(self) -> None:
        self.held, self.most = [0, 0], [0, 0]

    def hold(self, gpu: int, size: int) -> None:
        self.held[gpu] = size
        self.most[gpu] = max(self.most[gpu], size)

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 2

    def max_memory_allocated(self, gpu: int) -> int:
        return self.most[gpu]

    def reset_peak_memory_stats(self, gpu: int) -> None:
        self.most[gpu] = self.held[gpu]


def test_what_tensors_held_on_gpus_is_added_up_and_belongs_to_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = _Gpus()
    gpus.hold(0, 900)
    gpus.hold(0, 10)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=gpus))
    with measured_cost() as outer:
        gpus.hold(1, 50)
        gpus.hold(1, 0)
        with measured_cost() as inner:
            gpus.hold(0, 20)
            assert inner.cost.peak_gpu_memory_bytes == 20  # so far
    assert (outer.cost.peak_gpu_memory_bytes, inner.cost.peak_gpu_memory_bytes) == (60, 20)


def test_without_gpus_nothing_is_said_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for torch in (None, SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: False))):
        monkeypatch.setitem(sys.modules, "torch", torch)
        with measured_cost() as meter:
            pass
        assert meter.cost.peak_gpu_memory_bytes is None
        assert meter.cost.peak_memory_bytes is not None
