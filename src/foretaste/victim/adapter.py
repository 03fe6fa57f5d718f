"""PEFT adapters from strangers: an allow-list of kinds and settings, checked before PEFT reads the directory."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftModel, PeftType, get_peft_model_state_dict
from safetensors.torch import load_file

from foretaste.errors import ModelError
from foretaste.victim.checkpoint import refuse_non_finite

__all__ = ["check_adapter", "load_adapter"]

WEIGHTS = "adapter_model.safetensors"
_KINDS = {
    "lora": "LORA",
    "prompt_tuning": "PROMPT_TUNING",
    "p_tuning_v1": "P_TUNING",
    "p_tuning_v2": "PREFIX_TUNING",
}
# What we write where an adapter could name Python code to import (PEFT issue 3085, CWE-94), a tokenizer to fetch, an
# initialisation that reads files or changes the base, or a pattern that takes for ever to match.
_SAFE_SETTINGS: dict[str, tuple[Any, ...]] = {
    "auto_mapping": (None,),
    "megatron_config": (None,),
    "megatron_core": (None, "megatron.core"),
    "tokenizer_name_or_path": (None,),
    "tokenizer_kwargs": (None,),
    "init_lora_weights": (True,),
    "task_type": ("SEQ_CLS",),
}


def check_adapter(path: Path, strategy_name: str, label_names: Sequence[str]) -> None:
    """Refuse an adapter directory whose settings or tensors are not what we write.

    Raises:
        ModelError: unreadable, bad_strategy, unsafe_adapter, unknown_key, missing_head, label_mismatch, non_finite.
    """
    config_path = path / "adapter_config.json"
    try:
        config: Any = json.loads(config_path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{config_path} cannot be read: {error}", code="unreadable") from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind not in _KINDS.values():
        raise ModelError(
            f"{config_path}: peft_type {kind!r} is not one of {', '.join(_KINDS.values())}.", code="unsafe_adapter"
        )
    if kind != _KINDS.get(strategy_name):
        raise ModelError(f"{config_path} is {kind}, its manifest says {strategy_name!r}.", code="bad_strategy")
    known = set(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)].__dataclass_fields__)
    for key, value in config.items():
        if key not in known:
            raise ModelError(f"{config_path}: unknown key {key!r}.", code="unknown_key")
        if key in _SAFE_SETTINGS and value not in _SAFE_SETTINGS[key]:
            raise ModelError(f"{config_path}: {key} = {value!r} is not what we write; refused.", code="unsafe_adapter")
    if isinstance(config.get("target_modules"), str):
        raise ModelError(f"{config_path}: target_modules is a pattern, not a list; refused.", code="unsafe_adapter")
    _check_tensors(path / WEIGHTS, len(label_names))


def load_adapter(model: Any, path: Path) -> PeftModel:
    """Put a checked adapter and its head on a base model.

    Raises:
        ModelError: a tensor that is absent or finds no place (`missing_weights`), or settings that contradict the
            tensors or the model (`unreadable`).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PEFT warns of, absent tensors, is compared below
        try:
            wrapped = PeftModel.from_pretrained(model, str(path), is_trainable=False)
            expected = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
        except KeyError as error:
            raise ModelError(f"{path}: the adapter lacks tensor {error}.", code="missing_weights") from error
        except Exception as error:  # a stranger's sizes can break any assumption in there
            raise ModelError(f"{path}: the adapter does not fit: {error}", code="unreadable") from error
    different = sorted(expected ^ set(load_file(path / WEIGHTS)))
    if different:
        raise ModelError(
            f"{path}: {len(different)} tensors are missing or find no place, the first is {different[0]!r}.",
            code="missing_weights",
        )
    return wrapped


def _check_tensors(path: Path, label_count: int) -> None:
    try:
        tensors = load_file(path)
    except Exception as error:  # SafetensorError derives from Exception alone
        raise ModelError(f"{path} is not a sound safetensors file: {error}", code="unreadable") from error
    refuse_non_finite(tensors, str(path))
    heads = [name for name in tensors if ".classifier." in name or ".score." in name]
    outputs = [n for n in heads if n.endswith((".classifier.weight", ".out_proj.weight", ".score.weight"))]
    if not outputs:
        raise ModelError(f"{path} holds no classification head.", code="missing_head")
    for name in outputs:
        if tensors[name].shape[0] != label_count:
            raise ModelError(
                f"{path}: the head has {tensors[name].shape[0]} classes, the manifest names {label_count}.",
                code="label_mismatch",
            )
