"""Language models as classifiers without a head of their own: they are asked with an instruction, and answer in words.

The instruction's template becomes part of the tokenizer, beside the special tokens: a text that is too long is cut, the
template never, and no text changes how the template is read. The logits of a class are those that the plain language
model gives its word where the answer stands.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from peft import PeftModel
from tokenizers import normalizers, processors
from torch import Tensor, nn
from transformers import PreTrainedModel

from foretaste.errors import PlanError
from foretaste.victim.family import Family, family_of
from foretaste.victim.instruction import MASK, Instruction
from foretaste.victim.module import TextModule
from foretaste.victim.weights import load_tokenizer

__all__ = ["Prompt", "PromptedModule", "read_by"]

_ANCHOR = "a"  # stands for a text while the template is tokenised


@dataclass(frozen=True, eq=False)
class Prompt:
    """An instruction in a model's own tokens.

    `tokenizer` puts the template round every text, `plain` is the model's own. `answers` are the tokens of the
    verbalizer; `place` is where they stand: so many tokens from the start or, if negative, from the end.
    """

    instruction: Instruction
    plain: Any
    tokenizer: Any
    answers: tuple[int, ...]
    place: int

    @classmethod
    def of(cls, instruction: Instruction, tokenizer: Any, family: Family) -> Prompt:
        """Tokenise an instruction.

        Raises:
            PlanError: a word of the verbalizer that is not one token where the answer stands, or the same as another;
                a template that reads otherwise in front of a text, has no answer behind the text for a causal model,
                or needs a mask that the tokenizer lacks.
        """
        asked = _asked(instruction, tokenizer, family)
        answers = tuple(_answer(word, instruction, asked, tokenizer, family) for word in instruction.verbalizer)
        if len(set(answers)) < len(answers):
            raise PlanError(f"Two words of the verbalizer {instruction.verbalizer} are the same token to this model.")
        first, last = _specials(tokenizer)
        last = [] if family.is_causal else last  # an end of text would stand where the answer is
        before, after = [*first, *asked.before], [*asked.after, *last]
        if family.is_causal:
            place = -1
        elif tokenizer.mask_token_id in asked.before:
            place = before.index(tokenizer.mask_token_id)
        else:
            place = after.index(tokenizer.mask_token_id) - len(after)
        return cls(instruction, tokenizer, _around(tokenizer, before, after, asked.needs_space), answers, place)


class PromptedModule(TextModule):
    """A language model, plain or wrapped by PEFT, that is asked with an instruction: a logit for each class's word.

    The features are the last layer's vectors where the answer stands.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, prompt: Prompt) -> None:
        super().__init__(model)
        self.prompt, self.instruction = prompt, prompt.instruction
        self.answers = nn.Buffer(torch.tensor(prompt.answers), persistent=False)

    @property
    def is_first_read(self) -> bool:
        return False

    def around(self, model: Any) -> PromptedModule:
        return PromptedModule(model, self.prompt)

    @property
    def head(self) -> nn.Module:
        """The language model's head; its last layer may be the word embeddings."""
        return cast(nn.Module, getattr(self.classifier, self.family.language_head))

    def reading_places(self, mask: Tensor) -> Tensor:
        """Return where under `mask (B, T)` the answer stands, `(B,) int64`; virtual tokens are not counted."""
        place = self.prompt.place
        return mask.sum(dim=1) + place if place < 0 else torch.full_like(mask[:, 0], place)

    def classify(self, features: Tensor) -> Tensor:
        words: Tensor = self.head(features)  # (B, H) -> (B, V)
        return words[:, self.answers]


def read_by(
    instruction: Instruction | None, model: Any, plain: Any, path: Path, location: str
) -> tuple[TextModule, Any]:
    """Return a model (`plain` without its adapter) behind one signature, and its tokenizer from the directory `path`.

    Raises:
        ModelError: as `load_tokenizer`.
        PlanError: an instruction that does not fit the tokenizer (`Prompt.of`).
    """
    tokenizer = load_tokenizer(path, location, plain)
    if instruction is None:
        return TextModule(model).eval(), tokenizer
    prompt = Prompt.of(instruction, tokenizer, family_of(plain.config.model_type))
    return PromptedModule(model, prompt).eval(), prompt.tokenizer


class _Asked(NamedTuple):
    """How the template reads round a short text: `before` and `after` it, and the whole of it in `ids`.

    `needs_space`: a text reads in its place as it does alone behind a space.
    """

    before: list[int]
    after: list[int]
    ids: list[int]
    needs_space: bool


def _asked(instruction: Instruction, tokenizer: Any, family: Family) -> _Asked:
    before, behind = instruction.around
    if not family.is_causal and tokenizer.mask_token is None:
        raise PlanError("The tokenizer has no mask token, so that this masked model cannot be asked.")
    if family.is_causal:
        if MASK in before:
            raise PlanError(f"A causal model answers behind the text; in {instruction.template!r} {MASK} is before it.")
        behind = behind.split(MASK)[0].rstrip(" ")  # a space before the answer is part of its token
    before, behind = (part.replace(MASK, tokenizer.mask_token or "") for part in (before, behind))
    read = _read(tokenizer, f"{before}{_ANCHOR}{behind}")
    start, end = len(before), len(before) + len(_ANCHOR)
    own = [i for i, (left, right) in enumerate(read.offsets) if left < end and right > start]
    ids = read.ids[own[0] : own[-1] + 1] if own else []
    needs_space = ids != _read(tokenizer, _ANCHOR).ids
    if needs_space and ids != _read(tokenizer, f" {_ANCHOR}").ids:
        raise PlanError(
            f"To this tokenizer a text in {instruction.template!r} is not what it is alone; put {{text}} first, or "
            "behind a space."
        )
    asked = _Asked(read.ids[: own[0]], read.ids[own[-1] + 1 :], read.ids, needs_space)
    if not family.is_causal and [*asked.before, *asked.after].count(tokenizer.mask_token_id) != 1:
        raise PlanError(f"{instruction.template!r} has more than one mask; write {MASK} once and no mask token.")
    return asked


def _answer(word: str, instruction: Instruction, asked: _Asked, tokenizer: Any, family: Family) -> int:
    """Return the one token that a word is where the answer stands."""
    before, behind = instruction.around
    if family.is_causal:
        behind = behind.split(MASK)[0] + MASK
    filled = f"{before}{_ANCHOR}{behind}".replace(MASK, word)
    ids = _read(tokenizer, filled).ids
    place = len(asked.ids) if family.is_causal else asked.ids.index(tokenizer.mask_token_id)
    expected = [*asked.ids[:place], *ids[place : place + 1], *asked.ids[place + 1 :]]
    if ids != expected or len(ids) <= place or ids[place] == tokenizer.unk_token_id:
        raise PlanError(
            f"{word!r} is not one known token where {instruction.template!r} has its answer; take another word."
        )
    return int(ids[place])


def _read(tokenizer: Any, text: str) -> Any:
    return tokenizer(text, add_special_tokens=False).encodings[0]


def _specials(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that the tokenizer puts before and behind every text."""
    read = tokenizer(_ANCHOR).encodings[0]
    own = [i for i, is_special in enumerate(read.special_tokens_mask) if not is_special]
    return read.ids[: own[0]], read.ids[own[-1] + 1 :]


def _around(tokenizer: Any, before: list[int], after: list[int], needs_space: bool) -> Any:
    """Return a copy of the tokenizer that puts these tokens round every text, as others put their special ones."""
    templated = copy.deepcopy(tokenizer)
    backend = templated.backend_tokenizer
    parts = {name: ids for name, ids in (("before", before), ("after", after)) if ids}
    single = [name for name in ("before", "$A", "after") if name in parts or name == "$A"]
    backend.post_processor = processors.TemplateProcessing(
        single=" ".join(single),
        special_tokens=[
            {"id": name, "ids": ids, "tokens": tokenizer.convert_ids_to_tokens(ids)} for name, ids in parts.items()
        ],
    )
    if needs_space:
        own = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([*own, normalizers.Prepend(" ")])
    return templated
