"""Directories of tensors: a stranger's is checked before transformers reads it, ours appears whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from foretaste.errors import ModelError
from foretaste.files import new_directory
from foretaste.victim.family import family_of

__all__ = ["check_directory", "new_tensor_directory"]


@contextmanager
def new_tensor_directory(path: Path) -> Iterator[Path]:
    """Do what `files.new_directory` does, also where safetensors meets a full disk, which is no OSError to it.

    Raises:
        PlanError: `path` exists and is not ours, or the disk refuses.
    """
    with new_directory(path) as beside:
        try:
            yield beside
        except SafetensorError as error:
            raise OSError(str(error)) from error


def check_directory(path: Path, location: str, *, is_suspect: bool = True) -> None:
    """Refuse a directory unless it is a model in safetensors without code of its own; a suspect's family is known, too.

    Raises:
        ModelError: not_found, unreadable, adapter, remote_code, quantized, unknown_family, pickle, outside.
    """
    config_path = path / "config.json"
    if (path / "adapter_config.json").exists():
        raise ModelError(f"{location} holds an adapter beside a model; keep one of them.", code="adapter")
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{location} holds no config.json; not a model directory.", code="not_found") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{config_path} is not readable JSON: {error}", code="unreadable") from error
    if not isinstance(config, dict):
        raise ModelError(f"{config_path} does not hold a JSON object.", code="unreadable")
    if is_suspect:
        family_of(str(config.get("model_type")))
    _check_config(config, location)
    if not any(path.glob("*.safetensors")):
        pickles = sorted(p.name for p in path.glob("*") if p.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt"})
        raise ModelError(
            f"{location} holds no .safetensors file"
            + (f", only {', '.join(pickles)}: pickles run code when loaded and are refused." if pickles else "."),
            code="pickle" if pickles else "not_found",
        )
    _check_index(path / "model.safetensors.index.json")


def _check_config(config: dict[str, Any], location: str) -> None:
    if "auto_map" in config:
        raise ModelError(f"{location} asks for its own Python code (auto_map); refused.", code="remote_code")
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation"):
        if config.get(key) not in (None, "eager", "sdpa"):  # other names may be kernels fetched from the hub
            raise ModelError(f"{location}: config.json asks for code by {key} = {config[key]!r}.", code="remote_code")
    if config.get("transformers_weights") is not None:  # transformers would load it whatever its format
        raise ModelError(f"{location}: config.json names a weights file of its own; refused.", code="outside")
    if config.get("quantization_config") is not None:
        raise ModelError(f"{location} is quantized; give the weights it was made from.", code="quantized")


def _check_index(path: Path) -> None:
    if not path.exists():
        return
    try:
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}", code="unreadable") from error
    for name in sorted(map(str, names)):
        if not name.endswith(".safetensors"):
            raise ModelError(f"{path} names {name!r}; only safetensors are accepted.", code="pickle")
        if Path(name).name != name:
            raise ModelError(f"{path} names {name!r}, which is not a file beside it.", code="outside")
