"""The forward pass: token ids in, the head's input vector and logits out, whatever the family and strategy.

PEFT and transformers pool the wrong token, or count positions wrongly, when a causal classifier gets soft prompts
and padding (transformers issues 34218 and 35909; with `inputs_embeds` the last position is read, pad or not).
Here padding is always on the right, positions are explicit, and the head's token is found in the mask, so a
text's logits do not depend on its neighbours. For encoders the result equals PEFT's own forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from foretaste.cost import count_forwards
from foretaste.victim.family import Family, family_of
from foretaste.victim.first_token import keep_first_token
from foretaste.victim.instruction import Instruction

__all__ = ["Output", "TextModule"]


class Output(NamedTuple):
    """`features (B, H)`: the vector the head reads, last layer; `logits (B, C)`.

    `tokens (B, T, H)`: the last layer's vectors of all tokens of the text, pads included, and their `mask (B, T)`, from
    a module that is `showing_tokens`; `layers` the same of every layer, if they are shown, too, and `readings (B, H)`
    of each the vector at the place that the head reads, which may be a virtual token's.
    """

    features: Tensor
    logits: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None
    layers: tuple[Tensor, ...] | None = None
    readings: tuple[Tensor, ...] | None = None

    @property
    def pooled(self) -> Tensor:
        """The mean of the text's tokens, `(B, H)`, where tokens are shown."""
        assert self.tokens is not None, "only while showing_tokens"
        assert self.mask is not None
        weights = self.mask.unsqueeze(2).to(self.tokens.dtype)  # (B, T) -> (B, T, 1)
        return (self.tokens * weights).sum(dim=1) / weights.sum(dim=1)


class TextModule(nn.Module):
    """A sequence classifier, plain or wrapped by PEFT, behind one forward signature.

    `instruction` is None: a classifier has a head instead of words (`victim.prompted`).
    """

    instruction: Instruction | None = None

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        super().__init__()
        self.model = model
        self.family: Family = family_of(self.classifier.config.model_type)
        self._show_tokens(False)
        self._are_layers_shown = False

    @contextmanager
    def showing_tokens(self, are_shown: bool = True, *, are_layers_shown: bool = False) -> Iterator[None]:
        """Return every token's vector in here (or not), of all layers if so wished.

        Encoders then work their last layer out in full.
        """
        self._show_tokens(are_shown)
        self._are_layers_shown = are_layers_shown
        try:
            yield
        finally:
            self._show_tokens(False)
            self._are_layers_shown = False

    def _show_tokens(self, are_shown: bool) -> None:
        self._are_tokens_shown = are_shown
        if self.is_first_read:
            keep_first_token(self.classifier.base_model.encoder, is_kept=not are_shown)

    def around(self, model: Any) -> TextModule:
        """Return another model, such as this one's with its adapter folded in, read as this one is."""
        return TextModule(model)

    @property
    def is_first_read(self) -> bool:
        """True if the head reads the first token's vector, virtual tokens counted."""
        return self.family.reads == "first"

    @property
    def classifier(self) -> Any:
        """The transformers model inside, with the adapter's layers in place if it is LoRA."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def head(self) -> nn.Module:
        """The classification head, of BERT without the pooler."""
        return cast(nn.Module, getattr(self.classifier, self.family.head))

    @property
    def prompt_length(self) -> int:
        """Number of virtual tokens in front of every text; 0 without a soft prompt."""
        if isinstance(self.model, PeftModel) and self.model.active_peft_config.is_prompt_learning:
            return int(self.model.active_peft_config.num_virtual_tokens)
        return 0

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Output:
        """Classify right-padded token ids `(B, T) int64` under their mask `(B, T) int64`, 1 = real token."""
        count_forwards(len(input_ids))
        hidden, layers = self._encode(
            input_ids, attention_mask
        )  # (B, [P +] T, H), of an encoder (B, 1, H) if no tokens shown
        features = self._read(hidden, attention_mask)
        logits = self.classify(features).float()
        if not self._are_tokens_shown:
            return Output(features.float(), logits)
        own = slice(-input_ids.shape[1], None)  # without virtual tokens
        output = Output(features.float(), logits, hidden[:, own].float(), attention_mask)
        if layers is None:
            return output
        readings = tuple(self._read(layer, attention_mask).float() for layer in layers)
        return output._replace(layers=tuple(layer[:, own].float() for layer in layers), readings=readings)

    def _read(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return the vectors that the head reads, `(B, H)`, of a layer's `(B, [P +] T, H)`."""
        if self.is_first_read:
            return hidden[:, 0]
        places = self.reading_places(mask) + (hidden.shape[1] - mask.shape[1])
        return hidden[torch.arange(len(places), device=places.device), places]

    def _encode(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        backbone = self.classifier.base_model
        prompt_length = self.prompt_length
        batch_size, length = input_ids.shape
        inputs: dict[str, Any] = {"input_ids": input_ids}
        mask, first_position = attention_mask, 0
        if prompt_length:
            mask = torch.cat([mask.new_ones(batch_size, prompt_length), mask], dim=1)  # (B, T) -> (B, P + T)
            prompt = cast(Any, self.model).get_prompt(batch_size)
            if isinstance(prompt, Tensor):
                words = backbone.get_input_embeddings()(input_ids)
                inputs = {"inputs_embeds": torch.cat([prompt.to(words.dtype), words], dim=1)}
                length += prompt_length
            else:  # P-tuning v2: keys and values for every layer, the text's positions follow the prefix
                inputs["past_key_values"] = prompt
                first_position = prompt_length
        if self.family.takes_positions:
            offset = first_position + _position_offset(backbone.config)
            positions = torch.arange(offset, offset + length, device=input_ids.device)
            inputs["position_ids"] = positions.expand(batch_size, length)
        if self.family.is_causal and "past_key_values" not in inputs:
            inputs["use_cache"] = False
        if not self._are_layers_shown:
            hidden: Tensor = backbone(attention_mask=mask, **inputs).last_hidden_state
            return hidden, None
        output = backbone(attention_mask=mask, output_hidden_states=True, **inputs)
        return output.last_hidden_state, output.hidden_states[1:]  # the first are the embeddings

    def reading_places(self, mask: Tensor) -> Tensor:
        """Return where under `mask (B, T)` the head reads, unless that is first: the last token, `(B,) int64`.

        Virtual tokens are not counted.
        """
        return mask.sum(dim=1) - 1

    def classify(self, features: Tensor) -> Tensor:
        """Return the head's logits `(B, C)` for vectors `(B, H)` such as it reads."""
        model, head = self.classifier, self.head
        logits: Tensor
        if self.family.head_sees_sequence:
            logits = head(features.unsqueeze(1))  # (B, H) -> (B, 1, H)
        elif self.family.has_pooler:
            logits = head(model.dropout(model.base_model.pooler(features.unsqueeze(1))))
        else:
            logits = head(features)
        return logits


def _position_offset(config: Any) -> int:
    # RoBERTa's first real position is padding_idx + 1; every other family starts at 0.
    return int(config.pad_token_id) + 1 if config.model_type == "roberta" else 0
