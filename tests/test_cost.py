"""What a block takes: forwards and peak memory, of nested blocks, too."""

from __future__ import annotations

import subprocess
import sys

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
