"""Weights that were found and checked: loaded anew for each use, as a classifier or a language model to be asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from peft import PeftModel
from transformers import AutoConfig

from foretaste.errors import ModelError, PlanError
from foretaste.seeds import child_seed
from foretaste.victim.adapter import adapter_fingerprint, add_adapter, head_size, load_adapter
from foretaste.victim.canary import check_saved
from foretaste.victim.classifier import Classifier
from foretaste.victim.family import family_of
from foretaste.victim.instruction import Instruction
from foretaste.victim.manifest import Manifest, instruction_of
from foretaste.victim.prompted import read_by
from foretaste.victim.strategy import Full, Strategy
from foretaste.victim.weights import (
    default_device,
    fingerprint,
    load_language_model,
    load_weights,
    refuse_non_finite,
    relabelled,
    text_room,
)

__all__ = ["TEXT_LENGTH", "Base", "Loaded", "load_on"]

# Tokens read of each text, special ones included.
TEXT_LENGTH = 128


class Loaded(NamedTuple):
    """A plain transformers model, whether its head is the checkpoint's own, and the fingerprint of what was loaded."""

    model: Any
    has_own_head: bool
    fingerprint: str


@dataclass(frozen=True)
class Base:
    """A checkpoint found and checked, not yet loaded; `location` is the name it was asked for by.

    `layers`: only its first so many are used (None: all). `under` is what an adapter at `path` stands on, `manifest`
    that of a victim of ours, `adapter_base` the place of `under` where it was named by hand. With an `instruction` its
    language model is asked; without, it becomes a classifier with a head.
    """

    location: str
    path: Path
    layers: int | None = None
    under: Base | None = None
    manifest: Manifest | None = None
    adapter_base: str | None = None
    instruction: Instruction | None = None

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
        return self.load(2 if self.instruction is None else len(self.instruction.verbalizer)).fingerprint

    @property
    def plain_path(self) -> Path:
        """The directory of the weights under all adapters, with the tokenizer."""
        return self.path if self.under is None else self.under.plain_path

    @property
    def text_length(self) -> int | None:
        """Tokens that a victim reads of each text; None for any other checkpoint."""
        return None if self.manifest is None else self.manifest.max_length

    def asked(self, instruction: Instruction | None) -> Base:
        """Return the same weights as a language model that is asked with an instruction; None: as a classifier.

        A language model that Foretaste tuned is asked with the instruction of its manifest unless with another one.

        Raises:
            ModelError: the checkpoint was trained to be the other (code `wrong_kind`).
        """
        is_ours = self.manifest is not None
        if instruction is None:
            if is_ours and self.instruction is not None:
                raise ModelError(
                    f"{self.location} is a language model that answers in the words {self.instruction.verbalizer}; "
                    "expected a classifier, or weights for one.",
                    code="wrong_kind",
                )
            return self if self.instruction is None else replace(self, instruction=None)
        names = " ".join(self.config.architectures or ())
        has_head = self.instruction is None and (is_ours or self.under is not None)
        if has_head or "SequenceClassification" in names:
            raise ModelError(
                f"{self.location} is a classifier; expected a language model, to be asked {instruction.template!r}.",
                code="wrong_kind",
            )
        return replace(self, instruction=instruction, under=self.under and self.under.asked(instruction))

    def weights(self, label_count: int) -> tuple[Any, bool]:
        """Load the weights as they lie here; say whether the head is the checkpoint's own.

        Raises:
            ModelError: as `load`.
            PlanError: an instruction for another number of classes.
        """
        if self.instruction is None:
            return load_weights(self.path, self.location, label_count, self.layers)
        self.instruction.refuse_others(label_count)
        return load_language_model(self.path, self.location, family_of(self.config.model_type), self.layers)

    def load(self, label_count: int) -> Loaded:
        """Load the weights anew, adapters folded in; the head is the checkpoint's own if it has as many classes.

        The fingerprint of a plain checkpoint leaves a classification head and whatever is new out; that of a victim or
        an adapter covers its head.

        Raises:
            ModelError: weights missing, NaN or infinite, not those that the adapter was made for (`foreign_base`), or
                not answering as they did (`canary_mismatch`).
            PlanError: an instruction for another number of classes.
        """
        if self.instruction is not None:
            self.instruction.refuse_others(label_count)
        if self.under is None and self.manifest is None:
            model, has_own_head = self.weights(label_count)
            new = () if has_own_head else (f"{family_of(self.config.model_type).language_head}.",)
            found = {name: part for name, part in model.state_dict().items() if not name.startswith(new)}
            return Loaded(model, has_own_head, fingerprint(found))
        if self.manifest is not None and self.under is None:
            own_count = len(self.manifest.label_names)
            model, has_own_head = self.weights(own_count)
            if not has_own_head:
                raise ModelError(f"{self.path} has no head for {own_count} classes.", code="missing_head")
            mark = fingerprint(model.state_dict(), is_head_covered=True)
        else:
            assert self.under is not None
            own_count = head_size(self.path) if self.manifest is None else len(self.manifest.label_names)
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
            PlanError: a strategy or an instruction that does not fit the model, or that leaves no room for a text.
        """
        strategy = strategy or Full()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(child_seed(seed, "head"))
            model, has_own_head, mark = self.load(len(label_names))
            if not has_own_head:
                torch.manual_seed(child_seed(seed, "head"))
                self._draw_head(model)
            adapter = strategy.peft_config(model.config)
            has_head = self.instruction is None
            if adapter is not None and not (has_head or has_own_head):
                raise PlanError(
                    f"{self.location} has no language model's head; tune all its weights with the instruction first."
                )
            try:
                wrapped = model if adapter is None else add_adapter(model, adapter, has_head=has_head)
            except ValueError as error:
                raise PlanError(f"{strategy.name} does not fit {self.location}: {error}") from error
        text_module, tokenizer = read_by(self.instruction, wrapped, model, self.plain_path, self.location)
        return Classifier(
            module=text_module.to(device or default_device()),
            tokenizer=tokenizer,
            label_names=tuple(label_names),
            max_length=_fitting_length(model.config, tokenizer, max_length, text_module.prompt_length),
            strategy=strategy,
            base_location=self.location,
            base_fingerprint=mark,
            adapter_base=self.adapter_base,
        )

    def _draw_head(self, model: Any) -> None:
        family = family_of(model.config.model_type)
        words = None if self.instruction is None else model.get_output_embeddings()  # those of the input, which stay
        for module in getattr(model, family.head if words is None else family.language_head).modules():
            if module is not words:
                model._init_weights(module)

    def _check_answers(self, model: Any, manifest: Manifest, mark: str) -> None:
        own = instruction_of(self.path, manifest)  # not another one that it is to be asked with
        module, tokenizer = read_by(own, model, model, self.plain_path, self.location)
        labels, length = tuple(manifest.label_names), manifest.max_length
        plain = Classifier(module, tokenizer, labels, length, Full(), self.location, mark)
        check_saved(plain, manifest, self.path)


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


def _fitting_length(config: Any, tokenizer: Any, wanted: int, prompt_length: int) -> int:
    length = min(wanted, text_room(config, prompt_length))
    if length <= tokenizer.num_special_tokens_to_add():
        raise PlanError(
            f"A maximum length of {wanted} and {prompt_length} virtual tokens leave room for {length} tokens, special "
            f"ones included; ask for fewer virtual tokens or longer texts."
        )
    return length
