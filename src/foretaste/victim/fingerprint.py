"""Which weights are these? Hashes over tensors, whatever file they lie in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

__all__ = ["HEAD_NAMES", "fingerprint", "mark_of"]

HEAD_NAMES = ("classifier.", "score.")


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return the hex SHA-256 over names, types, shapes and bytes of all tensors but the classification head.

    It depends on the weights alone: not on the path, the file layout or the head, which adapters bring along.
    """
    state = hashlib.sha256()
    for name in sorted(tensors):
        if name.startswith(HEAD_NAMES):
            continue
        tensor = tensors[name].detach().cpu().contiguous()
        state.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def mark_of(model: Any, base_fingerprint: str) -> str:
    """Return the hex SHA-256 of a fine-tuned model: base, adapter and head; a folded LoRA counts as it was."""
    is_adapted = isinstance(model, PeftModel)
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False) if is_adapted else model.state_dict()
    return fingerprint({f"{base_fingerprint} {name}": tensor for name, tensor in tensors.items()})
