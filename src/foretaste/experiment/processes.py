"""Start the processes of one training from inside a program, as `torchrun` does from a shell."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from multiprocessing import get_context, parent_process
from multiprocessing.queues import SimpleQueue
from threading import Thread

import torch
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from foretaste.errors import ForetasteError, PlanError

__all__ = ["end_with_parent", "in_processes", "refuse_too_few_gpus"]


def in_processes(count: int, call: Callable[[], object]) -> None:
    """Run `call` in so many new processes that train together; they end with this one, and all when one fails.

    They share this process's threads; with GPUs, each has one of its own.

    Raises:
        ForetasteError, torch.OutOfMemoryError: what one of them raised.
        PlanError: fewer GPUs than processes.
    """
    refuse_too_few_gpus(count)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()  # they need what this process keeps for itself
    context = get_context("forkserver")  # the library is imported once, and no thread is forked
    context.set_forkserver_preload(["foretaste.experiment.run"])
    failures = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    together = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port}  # fmt: skip
    arguments = (together, max(1, torch.get_num_threads() // count), call, failures)
    try:
        start_processes(_process, arguments, count, start_method="forkserver")  # type: ignore[no-untyped-call]
    except (ProcessRaisedException, ProcessExitedException):
        if failures.empty():
            raise
        raise failures.get() from None


def refuse_too_few_gpus(count: int) -> None:
    """Raise PlanError where there are GPUs, but not one for each process."""
    if torch.cuda.is_available() and torch.cuda.device_count() < count:
        raise PlanError(f"{count} processes need a GPU each; there are {torch.cuda.device_count()}.")


def _process(
    rank: int, together: dict[str, str], threads: int, call: Callable[[], object], failures: SimpleQueue[Exception]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # torch would take one that is interrupted for one that is done
    end_with_parent()
    os.environ |= together | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(threads)
    try:
        call()
    except (ForetasteError, torch.OutOfMemoryError) as error:
        failures.put(error)
        raise  # and leave: the others notice, or are ended
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def end_with_parent() -> None:
    """From now on end at once when the parent dies: nobody waits any more, and its lock on what it makes is gone."""
    Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
