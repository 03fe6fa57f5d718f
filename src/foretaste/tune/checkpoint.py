"""Progress of a training on disk: written beside and renamed, without pickles, continued bit for bit."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from foretaste.errors import PlanError
from foretaste.files import write_json
from foretaste.victim.directory import new_tensor_directory

__all__ = ["TuneCheckpoint", "TuneState", "stage_of"]

SAVE_EVERY_S, SHORT_EPOCH_S = 60.0, 5.0
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class TuneState:
    """Where a training stands; `best` holds the trainable tensors of the best validation epoch so far.

    `seconds` are those of all processes that worked on it, up to the state that was saved.
    """

    step: int = 0
    texts: int = 0
    texts_before: int = 0
    loss_sum: float = 0.0
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    best_epoch: int = 0
    is_stopped: bool = False
    seconds: float = 0.0
    best: dict[str, Tensor] | None = None


class TuneCheckpoint:
    """A directory that holds the latest state of one training, known by its `identity`."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self._path, self._identity = path, identity
        self._saved = time.monotonic()
        self._is_new = True

    def save_epoch(self, state: TuneState, trainable: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
        """Save at the end of an epoch, unless epochs are so short that the last save was a moment ago."""
        if self._is_new or time.monotonic() - self._saved >= SHORT_EPOCH_S:
            self.save(state, trainable, optimizer)

    def save_if_due(self, state: TuneState, trainable: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
        """Save if the last save is long enough ago."""
        if time.monotonic() - self._saved >= SAVE_EVERY_S:
            self.save(state, trainable, optimizer)

    def save(self, state: TuneState, trainable: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
        """Replace what is on disk by the given state, all or nothing.

        Raises:
            PlanError: the directory is somebody else's, or the disk refuses.
        """
        tensors = {f"weight/{name}": p.detach().contiguous() for name, p in trainable.items()}
        for name, parameter in trainable.items():
            for moment in _MOMENTS:
                if moment in optimizer.state[parameter]:
                    tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment].contiguous()
        tensors |= {f"best/{name}": tensor.contiguous() for name, tensor in (state.best or {}).items()}
        plain = {key: value for key, value in vars(state).items() if key != "best"}
        with new_tensor_directory(self._path) as beside:
            save_file(tensors, beside / "state.safetensors")
            write_json(beside / "foretaste.json", {"kind": "progress", "identity": self._identity, "state": plain})
        self._saved, self._is_new = time.monotonic(), False

    def load(self, trainable: dict[str, Any], optimizer: torch.optim.Optimizer) -> TuneState | None:
        """Put saved weights and moments back in place and return the state, or None if nothing was saved.

        Raises:
            PlanError: the directory holds the progress of a different run, or cannot be read.
        """
        manifest = self._path / "foretaste.json"
        if not manifest.exists():
            return None
        try:
            document = json.loads(manifest.read_text(encoding="utf-8"))
            identity, state = document["identity"], TuneState(**document["state"])
            tensors = load_file(self._path / "state.safetensors")
        except Exception as error:  # SafetensorError derives from Exception alone
            raise PlanError(f"{self._path} cannot be read ({error}); delete it to start over.") from error
        if identity != self._identity:
            raise PlanError(
                f"{self._path} holds the progress of a run with other settings, data or model; delete it to start over."
            )
        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(tensors[f"weight/{name}"])
                moments = {m: tensors[f"{m}/{name}"] for m in _MOMENTS if f"{m}/{name}" in tensors}
                if moments:
                    optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in moments.items()}
        best = {name.removeprefix("best/"): t for name, t in tensors.items() if name.startswith("best/")}
        state.best = best or None
        return state


def stage_of(checkpoint: Path, stage: str) -> Path:
    """Where one stage of an interrupted run waits to be continued; the one without a name at `checkpoint` itself."""
    return checkpoint.with_name(f"{checkpoint.name}-{stage}") if stage else checkpoint
