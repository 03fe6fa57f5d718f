"""PEFT adapters from strangers: an allow-list of kinds and settings, checked before PEFT reads the directory."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from peft import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftType,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from foretaste.errors import ModelError
from foretaste.victim.family import family_of
from foretaste.victim.weights import fingerprint, refuse_non_finite

__all__ = [
    "adapter_fingerprint",
    "add_adapter",
    "check_adapter",
    "check_foreign_adapter",
    "head_size",
    "load_adapter",
    "named_base",
    "refuse_soft_prompt",
]

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
}
_TASKS = {True: ("SEQ_CLS",), False: ("CAUSAL_LM", "FEATURE_EXTRACTION")}  # with a head, or asked with an instruction
# What a stranger may set in LoRA; all else must be as PEFT has it by default, or not there at all.
_FREE_SETTINGS = {
    *("peft_type", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("r", "lora_alpha", "lora_dropout", "bias", "lora_bias", "use_rslora", "use_dora", "fan_in_fan_out"),
    *("target_modules", "modules_to_save", "layers_to_transform"),
}
_FOREIGN_SETTINGS: dict[str, tuple[Any, ...]] = {
    "task_type": ("SEQ_CLS",),
    "init_lora_weights": (True, False, "gaussian"),  # others change the base when they are loaded
}


def check_adapter(path: Path, strategy_name: str, label_names: Sequence[str], *, has_head: bool = True) -> None:
    """Refuse an adapter directory whose settings or tensors are not what we write; one of a language model has no head.

    Raises:
        ModelError: unreadable, bad_strategy, unsafe_adapter, unknown_key, missing_head, label_mismatch, non_finite.
    """
    config_path = path / "adapter_config.json"
    config = _read_config(path)
    kind = config.get("peft_type")
    if kind not in _KINDS.values():
        raise ModelError(
            f"{config_path}: peft_type {kind!r} is not one of {', '.join(_KINDS.values())}.", code="unsafe_adapter"
        )
    if kind != _KINDS.get(strategy_name):
        raise ModelError(f"{config_path} is {kind}, its manifest says {strategy_name!r}.", code="bad_strategy")
    safe = {**_SAFE_SETTINGS, "task_type": _TASKS[has_head]}
    known = set(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)].__dataclass_fields__)
    for key, value in config.items():
        if key not in known:
            raise ModelError(f"{config_path}: unknown key {key!r}.", code="unknown_key")
        if key in safe and value not in safe[key]:
            raise ModelError(f"{config_path}: {key} = {value!r} is not what we write; refused.", code="unsafe_adapter")
    if isinstance(config.get("target_modules"), str):
        raise ModelError(f"{config_path}: target_modules is a pattern, not a list; refused.", code="unsafe_adapter")
    if kind == "LORA":
        _refuse_unusual(config, str(config_path), safe)
    _check_tensors(path / WEIGHTS, len(label_names), has_head=has_head)


def check_foreign_adapter(path: Path, location: str) -> None:
    """Refuse a directory that Foretaste did not write unless it is LoRA for a classifier, with plain settings.

    Raises:
        ModelError: pickle, not_found, unreadable, soft_prompt, unsafe_adapter, unknown_key, missing_head, non_finite.
    """
    refuse_soft_prompt(path, location)
    config = _read_config(path)
    if config.get("peft_type") != "LORA":
        raise ModelError(
            f"{location}: peft_type {config.get('peft_type')!r} cannot be folded into its base here, only LORA can.",
            code="unsafe_adapter",
        )
    _refuse_unusual(config, f"{location}: adapter_config.json", _FOREIGN_SETTINGS)
    if not isinstance(config.get("target_modules"), list):
        raise ModelError(f"{location}: target_modules is a pattern, not a list; refused.", code="unsafe_adapter")
    if "task_type" not in config:
        raise ModelError(f"{location}: no task_type; only SEQ_CLS, a classifier, can be used.", code="unsafe_adapter")
    if not (path / WEIGHTS).is_file():
        is_pickle = (path / "adapter_model.bin").exists()
        reason = "only a pickle, which runs code when loaded and is refused" if is_pickle else f"no {WEIGHTS}"
        raise ModelError(f"{location} holds {reason}.", code="pickle" if is_pickle else "not_found")
    _check_tensors(path / WEIGHTS, None)


def refuse_soft_prompt(path: Path, location: str) -> None:
    """Raise ModelError (`soft_prompt`) if the adapter in `path` is virtual tokens or a prefix."""
    kind = _read_config(path).get("peft_type")
    if kind in _KINDS.values() and kind != "LORA":
        raise ModelError(
            f"{location} is {kind}: its virtual tokens stand beside the weights and cannot be folded into them, so "
            "nothing trained on the weights would see what they hold. Use a LoRA adapter or a full model instead; to "
            "judge only what the prompt stands on, name that.",
            code="soft_prompt",
        )


def named_base(path: Path) -> str:
    """Return what an adapter says it stands on.

    Raises:
        ModelError: it says nothing (code `not_found`).
    """
    name = _read_config(path).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelError(f"{path} does not say what it is an adapter on; name its base (--base).", code="not_found")
    return name


def head_size(path: Path) -> int:
    """Return the number of classes of a checked adapter's head."""
    with safe_open(path / WEIGHTS, framework="pt") as file:
        return int(file.get_slice(_outputs(list(file.keys()))[0]).get_shape()[0])


def add_adapter(model: Any, config: PeftConfig, *, has_head: bool = True) -> PeftModel:
    """Return a transformers model with a new adapter in it; all but the adapter (and a head it names) is frozen.

    Without a head of its own it is a language model, whose words are no part of the adapter.

    Raises:
        ValueError: the adapter does not fit the model.
    """
    if not has_head:
        is_causal = family_of(model.config.model_type).is_causal
        config.task_type = TaskType.CAUSAL_LM if is_causal else TaskType.FEATURE_EXTRACTION
    with warnings.catch_warnings():
        # PEFT 0.21 reads a name that transformers 5 renamed; nothing a user could act upon.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        return cast(PeftModel, get_peft_model(model, config))


def adapter_fingerprint(wrapped: PeftModel, base_fingerprint: str) -> str:
    """Return the hex SHA-256 of LoRA on a base: the base's fingerprint, all its own tensors, its head, its scaling.

    Not of the merged weights: the last bit of a matrix product differs between processors, the factors do not.
    """
    state = hashlib.sha256(f"{base_fingerprint}|".encode())
    for name, layer in wrapped.named_modules():
        if isinstance(layer, LoraLayer):
            state.update(f"{name}|{float(layer.scaling[wrapped.active_adapter])!r}|".encode())
    tensors: dict[str, Tensor] = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    state.update(fingerprint(tensors, is_head_covered=True).encode())
    return state.hexdigest()


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


def _refuse_unusual(config: Mapping[str, Any], where: str, allowed: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse LoRA settings that are not free unless they are `allowed`, or as PEFT has them by default."""
    usual = LoraConfig(task_type="SEQ_CLS").to_dict()
    for key, value in config.items():
        if key not in usual:
            raise ModelError(f"{where}: unknown key {key!r}.", code="unknown_key")
        if key not in _FREE_SETTINGS and value not in allowed.get(key, (usual[key], None, False, {}, [])):
            raise ModelError(f"{where}: {key} = {value!r} is refused.", code="unsafe_adapter")


def _read_config(path: Path) -> dict[str, Any]:
    config_path = path / "adapter_config.json"
    try:
        config: Any = json.loads(config_path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{config_path} cannot be read: {error}", code="unreadable") from error
    return config if isinstance(config, dict) else {}


def _outputs(names: Sequence[str]) -> list[str]:
    heads = [name for name in names if ".classifier." in name or ".score." in name]
    return [n for n in heads if n.endswith((".classifier.weight", ".out_proj.weight", ".score.weight"))]


def _check_tensors(path: Path, label_count: int | None, *, has_head: bool = True) -> None:
    try:
        tensors = load_file(path)
    except Exception as error:  # SafetensorError derives from Exception alone
        raise ModelError(f"{path} is not a sound safetensors file: {error}", code="unreadable") from error
    refuse_non_finite(tensors, str(path))
    outputs = _outputs(list(tensors))
    if not has_head:
        if outputs:
            raise ModelError(f"{path} holds a classification head, its manifest an instruction.", code="unsafe_adapter")
        return
    if not outputs:
        raise ModelError(f"{path} holds no classification head.", code="missing_head")
    for name in outputs:
        if tensors[name].dim() != 2 or tensors[name].shape[0] < 2:
            raise ModelError(f"{path}: {name} is no head for two classes or more.", code="missing_head")
        if label_count is not None and tensors[name].shape[0] != label_count:
            raise ModelError(
                f"{path}: the head has {tensors[name].shape[0]} classes, the manifest names {label_count}.",
                code="label_mismatch",
            )
