"""Several processes, one result: under `accelerate launch` or `torchrun` only the first one prints and writes."""

from __future__ import annotations

import os
from collections.abc import Callable

__all__ = ["is_main_process", "process_count", "write_once"]


def is_main_process() -> bool:
    """True in a process on its own, and in the first of several that were launched together."""
    return process_count() <= 1 or os.environ.get("RANK", "0") == "0"


def write_once(write: Callable[[], object]) -> None:
    """Call `write` in the main process alone; all return when it is done, so that all may read what it wrote."""
    if is_main_process():
        write()
    if process_count() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def process_count() -> int:
    """Return how many processes were launched together."""
    # The launchers' variables, not accelerate's state: asking that one would start the process group too early.
    size = os.environ.get("WORLD_SIZE", "")
    return int(size) if size.isdigit() else 1
