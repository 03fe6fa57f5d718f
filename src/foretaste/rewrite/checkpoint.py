"""Checkpoints that rewriters use, opened as carefully as a suspect: safetensors, no code of their own, all finite."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from foretaste.errors import ModelError
from foretaste.files import sha256_file
from foretaste.victim.directory import check_directory
from foretaste.victim.source import find_directory
from foretaste.victim.weights import default_device, load_tokenizer, load_whole

__all__ = ["is_at_hand", "mark_of", "open_tool", "room_of", "size_of"]

_FILES = (".safetensors", ".json", ".txt", ".model", ".spm")


def open_tool(auto: Any, location: str) -> tuple[Any, Any]:
    """Open a directory or hub id as a model of the kind `auto` (a class of transformers) and its tokenizer.

    Raises:
        ModelError: nothing there, or something that cannot be used or is not safe to open.
    """
    path = find_directory(location)
    check_directory(path, location, is_suspect=False)
    model, _ = load_whole(auto, path, location)
    model.to(default_device())
    return model.eval(), load_tokenizer(path, location, model)


def is_at_hand(location: str) -> bool:
    """Say whether a checkpoint lies on this machine."""
    try:
        find_directory(location, may_download=False)
    except ModelError:
        return False
    return True


def mark_of(location: str) -> str:
    """Return a digest of a checkpoint's files, blank where it is not on this machine."""
    if not is_at_hand(location):
        return ""
    path: Path = find_directory(location, may_download=False)
    files = sorted(each for each in path.iterdir() if each.suffix in _FILES and each.name != "record.json")
    return hashlib.sha256(" ".join(f"{each.name} {sha256_file(each)}" for each in files).encode()).hexdigest()[:16]


def size_of(location: str) -> int:
    """Return how many bytes the files of a checkpoint on this machine take."""
    path = find_directory(location, may_download=False)
    return sum(each.stat().st_size for each in path.iterdir() if each.suffix in _FILES)


def room_of(model: Any, wished: int) -> int:
    """Return how many tokens a model can read at once, at most `wished`."""
    limits = (getattr(model.config, name, None) for name in ("max_position_embeddings", "max_seq_len", "n_positions"))
    return min([wished, *(limit for limit in limits if isinstance(limit, int))])
