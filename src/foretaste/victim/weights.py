"""Weights and tokenizers of checked directories: loaded as plain float32 classifiers, compared, fingerprinted."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from foretaste.errors import ModelError
from foretaste.victim.family import Family

__all__ = [
    "HEAD_NAMES",
    "default_device",
    "fingerprint",
    "load_language_model",
    "load_tokenizer",
    "load_weights",
    "load_whole",
    "refuse_non_finite",
    "relabelled",
    "text_room",
]

HEAD_NAMES = ("classifier.", "score.")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model")


def load_weights(path: Path, location: str, label_count: int, layers: int | None = None) -> tuple[Any, bool]:
    """Load a checked directory, or its first `layers`, as a float32 classifier; say whether its own head was kept.

    Raises:
        ModelError: files broken (`unreadable`), tensors absent (`missing_weights`) or not finite (`non_finite`).
    """
    more = {"num_labels": label_count} | ({} if layers is None else {"num_hidden_layers": layers})
    model, absent = load_whole(AutoModelForSequenceClassification, path, location, may_lack=HEAD_NAMES, **more)
    return model, not absent


def load_language_model(path: Path, location: str, family: Family, layers: int | None = None) -> tuple[Any, bool]:
    """Load a checked directory as a float32 language model; say whether its own head was kept.

    An encoder without one gets a new one, which answers with its word embeddings and has to be trained.

    Raises:
        ModelError: as `load_weights`; a causal model without a head (code `missing_head`).
    """
    auto = AutoModelForCausalLM if family.is_causal else AutoModelForMaskedLM
    more = {} if layers is None else {"num_hidden_layers": layers}
    model, absent = load_whole(auto, path, location, may_lack=(f"{family.language_head}.",), **more)
    if absent and family.is_causal:
        raise ModelError(f"{location} has no language model's head, so that it cannot be asked.", code="missing_head")
    return model, not absent


def load_whole(
    auto: Any, path: Path, location: str, *, may_lack: tuple[str, ...] = (), **options: Any
) -> tuple[Any, set[str]]:
    """Load a checked directory as a float32 model of the kind `auto`, with the names of the tensors it had to make up.

    `may_lack` are the beginnings of those that need not be there.

    Raises:
        ModelError: as `load_weights`.
    """
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    cast(Any, transformers_logging).disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, report = auto.from_pretrained(
                path,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                **options,
            )
    except Exception as error:  # a stranger's sizes and tensors can break any assumption in there
        raise ModelError(f"{location}: the weights cannot be loaded: {error}", code="unreadable") from error
    finally:
        transformers_logging.set_verbosity(level)
    absent = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    lost = sorted(name for name in absent if not name.startswith(may_lack))
    if lost:
        raise ModelError(
            f"{location}: {len(lost)} tensors are missing or misshapen, the first is {lost[0]!r}; "
            "this is not a complete checkpoint of its family.",
            code="missing_weights",
        )
    refuse_non_finite(model.state_dict(), location)
    return model, absent


def load_tokenizer(path: Path, location: str, model: Any) -> Any:
    """Load the tokenizer of a checked directory for the transformers model it belongs to.

    Raises:
        ModelError: no tokenizer there, a broken one, or one with more tokens than the model has embeddings
            (code `tokenizer`): a text that holds such a token would bring the model down.
    """
    # Without its files transformers builds an empty tokenizer, to which every word is unknown.
    if not any((path / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(f"{location} holds no tokenizer ({', '.join(_TOKENIZER_FILES)}).", code="tokenizer")
    try:
        tokenizer: Any = cast(Any, AutoTokenizer).from_pretrained(path, trust_remote_code=False)
        largest = max(tokenizer.get_vocab().values(), default=-1)
    except Exception as error:  # as above: a stranger's file
        raise ModelError(f"{location}: the tokenizer cannot be loaded: {error}", code="tokenizer") from error
    rows = model.get_input_embeddings().weight.shape[0]
    if not 0 <= largest < rows:
        raise ModelError(
            f"{location}: the tokenizer's ids go up to {largest}, the model embeds {rows} tokens; they do not belong "
            "together.",
            code="tokenizer",
        )
    return tokenizer


def relabelled(model: Any, label_count: int) -> Any:
    """Return a plain classifier with the same weights and a new, random head for so many classes."""
    config = copy.deepcopy(model.config)
    config.num_labels = label_count
    other = type(model)(config)
    body = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(HEAD_NAMES)}
    other.load_state_dict(body, strict=False)
    return other.eval()


def fingerprint(tensors: Mapping[str, Tensor], *, is_head_covered: bool = False) -> str:
    """Return the hex SHA-256 over names, types, shapes and bytes of all tensors but, mostly, the classification head.

    It depends on the weights alone: not on the path or the file layout. What is fine-tuned from a checkpoint brings a
    head of its own, so a checkpoint's is left out; a victim that runs as it is has none but its own.
    """
    state = hashlib.sha256()
    for name in sorted(tensors):
        if name.startswith(HEAD_NAMES) and not is_head_covered:
            continue
        tensor = tensors[name].detach().cpu().contiguous()
        state.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def refuse_non_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise ModelError (`non_finite`) naming the first tensor that holds NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{where}: tensor {name!r} holds NaN or infinity.", code="non_finite")


def default_device() -> torch.device:
    """Return this process's GPU if there is one, else the CPU."""
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
    )


def text_room(config: Any, prompt_length: int) -> int:
    """Return how many text tokens a model reads beside `prompt_length` virtual ones."""
    limit = getattr(config, "max_position_embeddings", None) or config.max_seq_len
    if config.model_type == "roberta":
        limit -= config.pad_token_id + 1
    return int(limit) - prompt_length
