"""Open a stranger's checkpoint safely: safetensors only, no remote code, every tensor finite, a fingerprint.

A checkpoint may be an adapter, too: a victim that Foretaste wrote, or a plain PEFT directory with LoRA in it. It is
folded into the weights it stands on, and both together are the suspect.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from peft import PeftModel
from transformers import AutoConfig

from foretaste.errors import ModelError, PlanError
from foretaste.seeds import child_seed
from foretaste.victim.adapter import (
    adapter_fingerprint,
    add_adapter,
    check_foreign_adapter,
    head_size,
    load_adapter,
    named_base,
    refuse_soft_prompt,
)
from foretaste.victim.canary import check_saved
from foretaste.victim.classifier import Classifier
from foretaste.victim.directory import check_directory
from foretaste.victim.family import family_of
from foretaste.victim.manifest import BaseReference, Manifest, read_suspect
from foretaste.victim.module import TextModule
from foretaste.victim.source import EMBEDDED, find_directory
from foretaste.victim.strategy import Full, Strategy
from foretaste.victim.weights import (
    default_device,
    fingerprint,
    load_tokenizer,
    load_weights,
    refuse_non_finite,
    relabelled,
    text_room,
)

__all__ = [
    "TEXT_LENGTH",
    "Base",
    "Loaded",
    "default_device",
    "find_base",
    "fingerprint",
    "load_on",
    "load_tokenizer",
    "load_weights",
    "open_base",
    "refuse_non_finite",
    "text_room",
]

# Tokens read of each text, special ones included.
TEXT_LENGTH = 128
# More than anybody stacks, and an end to adapters that name each other.
_DEEPEST = 8


class Loaded(NamedTuple):
    """A plain transformers model, whether its head is the checkpoint's own, and the fingerprint of what was loaded."""

    model: Any
    has_own_head: bool
    fingerprint: str


@dataclass(frozen=True)
class Base:
    """A checkpoint found and checked, not yet loaded; `location` is the name it was asked for by.

    `layers`: only its first so many are used (None: all). `under` is what an adapter at `path` stands on, `manifest`
    that of a victim of ours, `adapter_base` the place of `under` where it was named by hand.
    """

    location: str
    path: Path
    layers: int | None = None
    under: Base | None = None
    manifest: Manifest | None = None
    adapter_base: str | None = None

    @cached_property
    def config(self) -> Any:
        """The transformers configuration.

        Raises:
            ModelError: a value of the wrong kind (code `unreadable`).
        """
        if self.under is not None:
            return self.under.config
        cut = {} if self.layers is None else {"num_hidden_layers": self.layers}
        try:
            return AutoConfig.from_pretrained(self.path, trust_remote_code=False, **cut)
        except Exception as error:  # a stranger's values can break any assumption in there
            raise ModelError(f"{self.location}: config.json cannot be used: {error}", code="unreadable") from error

    @cached_property
    def fingerprint(self) -> str:
        """What a classifier of this base has as its `base_fingerprint`; the weights are loaded for it, once."""
        return self.load(2).fingerprint

    @property
    def plain_path(self) -> Path:
        """The directory of the weights under all adapters, with the tokenizer."""
        return self.path if self.under is None else self.under.plain_path

    @property
    def text_length(self) -> int | None:
        """Tokens that a victim reads of each text; None for any other checkpoint."""
        return None if self.manifest is None else self.manifest.max_length

    def load(self, label_count: int) -> Loaded:
        """Load the weights anew, adapters folded in; the head is the checkpoint's own if it has as many classes.

        The fingerprint of a plain checkpoint leaves its head out; that of a victim or an adapter covers it.

        Raises:
            ModelError: weights missing, NaN or infinite, not those that the adapter was made for (`foreign_base`), or
                not answering as they did (`canary_mismatch`).
        """
        if self.under is None and self.manifest is None:
            model, has_own_head = load_weights(self.path, self.location, label_count, self.layers)
            return Loaded(model, has_own_head, fingerprint(model.state_dict()))
        if self.manifest is not None and self.under is None:
            own_count = len(self.manifest.label_names)
            model, has_own_head = load_weights(self.path, self.location, own_count)
            if not has_own_head:
                raise ModelError(f"{self.path} has no head for {own_count} classes.", code="missing_head")
            mark = fingerprint(model.state_dict(), is_head_covered=True)
        else:
            assert self.under is not None
            own_count = head_size(self.path)
            wrapped, under_mark = load_on(self.under, self.path, own_count, self.manifest)
            mark = adapter_fingerprint(wrapped, under_mark)
            model = cast(Any, wrapped).merge_and_unload().requires_grad_(True)
            refuse_non_finite(model.state_dict(), self.location)
        if self.manifest is not None:
            self._check_answers(model, self.manifest, mark)
        is_own = own_count == label_count
        return Loaded(model if is_own else relabelled(model, label_count), is_own, mark)

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
            model, has_own_head, mark = self.load(len(label_names))
            if not has_own_head:
                torch.manual_seed(child_seed(seed, "head"))
                for module in getattr(model, family_of(model.config.model_type).head).modules():
                    model._init_weights(module)
            adapter = strategy.peft_config(model.config)
            try:
                wrapped = model if adapter is None else add_adapter(model, adapter)
            except ValueError as error:
                raise PlanError(f"{strategy.name} does not fit {self.location}: {error}") from error
        tokenizer = load_tokenizer(self.plain_path, self.location, model)
        text_module = TextModule(wrapped).eval().to(device or default_device())
        return Classifier(
            module=text_module,
            tokenizer=tokenizer,
            label_names=tuple(label_names),
            max_length=_fitting_length(model.config, tokenizer, max_length, text_module.prompt_length),
            strategy=strategy,
            base_location=self.location,
            base_fingerprint=mark,
            adapter_base=self.adapter_base,
        )

    def _check_answers(self, model: Any, manifest: Manifest, mark: str) -> None:
        tokenizer = load_tokenizer(self.plain_path, self.location, model)
        labels, length = tuple(manifest.label_names), manifest.max_length
        plain = Classifier(TextModule(model).eval(), tokenizer, labels, length, Full(), self.location, mark)
        check_saved(plain, manifest, self.path)


def open_base(location: str | Path, *, base: str | Path | None = None, may_download: bool = True) -> Base:
    """Find a checkpoint: `minilm`, a local directory, or a Hugging Face hub id (from the cache alone, if so wished).

    `minilm-l3` is the first three of MiniLM's six layers: half the price, a few points of accuracy less.

    A directory with a LoRA adapter stands for the adapter folded into its base; `base` says where that is, otherwise
    the adapter's own word is taken, as long as nothing has to be downloaded for it.

    Raises:
        ModelError: not found (`not_found`), weights only as pickles (`pickle`), code of its own (`remote_code`),
            an altered MiniLM or victim (`digest_mismatch`), soft prompts (`soft_prompt`), other kinds of adapter or
            unusual settings (`unsafe_adapter`), a guard (`wrong_kind`), and what `read_manifest` refuses.
        PlanError: `base` was given for a model that is no adapter.
    """
    return _open(str(location), None if base is None else str(base), may_download, 0)


def find_base(reference: BaseReference, path: Path, override: Base | str | Path | None = None, depth: int = 0) -> Base:
    """Find what the artefact in `path` stands on, in `override` or where the manifest says; nothing is downloaded.

    Raises:
        ModelError: as `open_base`.
    """
    if isinstance(override, Base):
        return override
    under = None if reference.adapter_base is None else reference.adapter_base.seen_from(path)
    if override is not None:
        is_adapter = (Path(override) / "adapter_config.json").exists()
        return _open(str(override), under if is_adapter else None, True, depth)
    return _open(reference.seen_from(path), under, False, depth)


def load_on(under: Base, path: Path, label_count: int, manifest: Manifest | None = None) -> tuple[PeftModel, str]:
    """Load what is under a checked adapter, put the adapter on it, and return it with the fingerprint of the former.

    Raises:
        ModelError: not the weights that the manifest names (`foreign_base`), or those that do not fit.
    """
    model, _, mark = under.load(label_count)
    if manifest is not None and mark != manifest.base.fingerprint:
        raise ModelError(
            f"{path} was made for other weights: {under.location} has fingerprint {mark[:12]}, "
            f"expected {manifest.base.fingerprint[:12]}.",
            code="foreign_base",
        )
    return load_adapter(model, path), mark


def _open(location: str, base: str | None, may_download: bool, depth: int) -> Base:
    path = find_directory(location, may_download=may_download)
    manifest = read_suspect(path)
    is_adapter = (path / "adapter_config.json").exists() and not (path / "config.json").exists()
    if not is_adapter and base is not None:
        raise PlanError(f"{location} is a model, not an adapter; leave out the base {base}.")
    if depth == _DEEPEST:
        raise ModelError(f"{location}: more than {_DEEPEST} adapters stand on each other.", code="too_deep")
    if not is_adapter:
        check_directory(path, location)
        return Base(location, path, EMBEDDED.get(location), manifest=manifest)
    if manifest is not None:
        refuse_soft_prompt(path, location)
    else:
        check_foreign_adapter(path, location)
    if base is not None:
        return Base(location, path, None, _open(base, None, may_download, depth + 1), manifest, base)
    if manifest is not None:
        return Base(location, path, None, find_base(manifest.base, path, depth=depth + 1), manifest)
    named = named_base(path)
    try:
        return Base(location, path, None, _open(named, None, False, depth + 1))
    except ModelError as error:
        if error.code != "not_found":
            raise
        raise ModelError(
            f"{location} is an adapter on {named!r}, which is neither a directory here nor in the hub's local cache; "
            "name its base (--base).",
            code="not_found",
        ) from error


def _fitting_length(config: Any, tokenizer: Any, wanted: int, prompt_length: int) -> int:
    length = min(wanted, text_room(config, prompt_length))
    if length <= tokenizer.num_special_tokens_to_add():
        raise PlanError(
            f"A maximum length of {wanted} and {prompt_length} virtual tokens leave room for {length} tokens, special "
            f"ones included; ask for fewer virtual tokens or longer texts."
        )
    return length
