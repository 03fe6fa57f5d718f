"""PEFT adapters from strangers: an allow-list of kinds and settings, checked before PEFT reads the directory."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftModel, PeftType
from safetensors import safe_open
from safetensors.torch import load_file

from foretaste.errors import ModelError
from foretaste.victim.checkpoint import refuse_non_finite

__all__ = ["check_adapter", "load_adapter"]

WEIGHTS = "adapter_model.safetensors"
_KINDS = ("LORA", "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
# Settings through which an adapter names Python code to import (PEFT issue 3085, CWE-94).
_CODE_SETTINGS = ("auto_mapping", "megatron_config", "megatron_core")


def check_adapter(path: Path, label_names: Sequence[str]) -> None:
    """Refuse an adapter directory whose settings or tensors are not what we write.

    Raises:
        ModelError: unreadable, unsafe_adapter, unknown_key, missing_head, label_mismatch, non_finite.
    """
    config_path = path / "adapter_config.json"
    try:
        config: Any = json.loads(config_path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{config_path} cannot be read: {error}", code="unreadable") from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind not in _KINDS:
        raise ModelError(f"{config_path}: peft_type {kind!r} is not one of {', '.join(_KINDS)}.", code="unsafe_adapter")
    known = set(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)].__dataclass_fields__)
    for key, value in config.items():
        if key not in known:
            raise ModelError(f"{config_path}: unknown key {key!r}.", code="unknown_key")
        if key in _CODE_SETTINGS and value not in (None, "megatron.core"):
            raise ModelError(f"{config_path}: {key} names code to import; refused.", code="unsafe_adapter")
    _check_tensors(path / WEIGHTS, len(label_names))


def load_adapter(model: Any, path: Path) -> PeftModel:
    """Put a checked adapter and its head on a base model; a tensor that finds no place is an error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wrapped = PeftModel.from_pretrained(model, str(path), is_trainable=False)
    for warning in caught:
        if "missing" in str(warning.message).lower() and "keys" in str(warning.message).lower():
            raise ModelError(f"{path}: {warning.message}", code="missing_weights")
    return wrapped


def _check_tensors(path: Path, label_count: int) -> None:
    try:
        with safe_open(path, framework="pt") as opened:
            names = list(opened.keys())
        tensors = load_file(path)
    except Exception as error:
        # SafetensorError derives from Exception alone; a missing file is an OSError.
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        raise ModelError(f"{path} is not a sound safetensors file: {error}", code="unreadable") from error
    refuse_non_finite(tensors, str(path))
    heads = [name for name in names if ".classifier." in name or ".score." in name]
    outputs = [n for n in heads if n.endswith((".classifier.weight", ".out_proj.weight", ".score.weight"))]
    if not outputs:
        raise ModelError(f"{path} holds no classification head.", code="missing_head")
    for name in outputs:
        if tensors[name].shape[0] != label_count:
            raise ModelError(
                f"{path}: the head has {tensors[name].shape[0]} classes, the manifest names {label_count}.",
                code="label_mismatch",
            )
