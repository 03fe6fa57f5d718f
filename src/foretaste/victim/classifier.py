"""Texts to logits and representations, for victims and guards alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn.attention import SDPBackend, sdpa_kernel

from foretaste.victim.adapter import adapter_fingerprint
from foretaste.victim.batch import Encoded, Word, encode, pad, reach, readable, scoring_batches, split
from foretaste.victim.instruction import Instruction
from foretaste.victim.int8 import Int8Linear, in_int8
from foretaste.victim.module import TextModule
from foretaste.victim.prompted import PromptedModule
from foretaste.victim.strategy import Lora, Strategy
from foretaste.victim.weights import fingerprint

__all__ = ["Classifier", "Precision", "Predictions", "Scoring", "autocast", "to_train"]

Precision = Literal["auto", "float32", "bfloat16"]
Scoring = Literal["float32", "bfloat16", "int8"]

_SHORT = 128  # tokens; at 256 the fused attention has caught up


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a model says of N texts, in the order given.

    `logits (N, C) float32`; `features (N, H) float32`, the vector the head reads; `is_truncated (N,) bool`.
    """

    logits: NDArray[np.float32]
    features: NDArray[np.float32]
    is_truncated: NDArray[np.bool_]

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class with the highest logit, `(N,) int64`."""
        best: NDArray[np.int64] = self.logits.argmax(axis=1).astype(np.int64)
        return best

    @property
    def answers(self) -> NDArray[np.int64]:
        """The class with the highest logit, -1 where a logit is not finite: no answer is none of a class."""
        found: NDArray[np.int64] = np.where(np.isfinite(self.logits).all(axis=1), self.labels, -1)
        return found

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Softmax of the logits in double precision, `(N, C) float64`; NaN where a logit is not finite."""
        logits = self.logits.astype(np.float64)
        # Without this a logit of minus infinity would end as a harmless probability of 0.
        logits[~np.isfinite(logits).all(axis=1)] = np.nan
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        result: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
        return result

    @property
    def certainty(self) -> NDArray[np.float64]:
        """The highest class probability of each text, `(N,) float64`; NaN where a logit is not finite."""
        result: NDArray[np.float64] = self.probabilities.max(axis=1, initial=-np.inf)
        return result


@dataclass(frozen=True, eq=False)
class Classifier:
    """A text classifier with its tokenizer, label names and the fingerprint of the base it stands on.

    If that base is itself an adapter whose own base was named by hand, `adapter_base` is that name. `source` is what a
    copy in int8 was made from.
    A text's logits do not depend on batch size, order or neighbours (1e-5 in float32).
    """

    module: TextModule
    tokenizer: Any
    label_names: tuple[str, ...]
    max_length: int
    strategy: Strategy
    base_location: str
    base_fingerprint: str
    adapter_base: str | None = None
    source: Classifier | None = None

    @property
    def own_fingerprint(self) -> str:
        """That of base, adapter and head together, the same for a copy in int8: no other victim of the base has it.

        It is the `base_fingerprint` of what stands on this classifier (nothing can stand on soft prompts).
        """
        model = (self.source or self).module.model
        if isinstance(model, PeftModel):
            return adapter_fingerprint(model, self.base_fingerprint)
        return fingerprint(model.state_dict(), is_head_covered=True)

    @property
    def instruction(self) -> Instruction | None:
        """What a language model is asked with; None for a classifier with a head."""
        return self.module.instruction

    @property
    def plain_tokenizer(self) -> Any:
        """The model's own tokenizer, without an instruction's template."""
        return self.module.prompt.plain if isinstance(self.module, PromptedModule) else self.tokenizer

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Tokenise texts as this model reads them."""
        return encode(self.tokenizer, texts, self.max_length)

    def reach(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return how many characters of each text this model reads, `(N,) int64`."""
        return reach(self.tokenizer, texts, self.max_length)

    def seen(self, texts: Sequence[str], is_truncated: NDArray[np.bool_]) -> list[str]:
        """Return what this model reads of each text, where it is known which of them it had to cut."""
        seen = readable(texts)
        if cut := np.flatnonzero(is_truncated).tolist():
            for index, end in zip(cut, self.reach([texts[i] for i in cut]).tolist(), strict=True):
                seen[index] = seen[index][:end]
        return seen

    def split(self, texts: Sequence[str]) -> list[list[Word]]:
        """Divide what this model reads of texts, which `seen` returned, into words."""
        return split(self.tokenizer, texts, self.max_length)

    def predict(
        self,
        texts: Sequence[str] | Encoded,
        *,
        batch_size: int = 64,
        precision: Precision = "float32",
        progress: Callable[[int], None] | None = None,
        is_pooled: bool = False,
    ) -> Predictions:
        """Run the model over texts (or texts already encoded), longest first, and return the given order.

        `progress`, if given, is called with the number of texts finished by each batch. With `is_pooled` the features
        are the means of each text's tokens, not what the head reads; this needs a module that shows its tokens.
        """
        encoded = texts if isinstance(texts, Encoded) else self.encode(texts)
        count, device = len(encoded.ids), self.module.device
        logits = np.empty((count, len(self.label_names)), dtype=np.float32)
        features = np.empty((count, self.module.classifier.config.hidden_size), dtype=np.float32)
        was_training = self.module.training
        if was_training:
            self.module.eval()
        try:
            with torch.inference_mode(), autocast(device, precision):
                for batch in scoring_batches(encoded.lengths, batch_size):
                    output = self.module(*pad([encoded.ids[i] for i in batch], device))
                    logits[batch] = output.logits.cpu().numpy()
                    features[batch] = (output.pooled if is_pooled else output.features).cpu().numpy()
                    if progress is not None:
                        progress(len(batch))
        finally:
            if was_training:  # walking all modules costs a millisecond, as much as a tenth of a short text
                self.module.train()
        return Predictions(logits, features, encoded.is_truncated)

    def merge(self) -> Classifier:
        """Fold LoRA into the base weights, for scoring only: an unmerged LoRA costs up to 1.5 times a plain pass.

        Other strategies have nothing to fold. Saving still writes the adapter.
        """
        if isinstance(self.module.model, PeftModel) and self.strategy.name == Lora.name and not self.is_merged:
            cast(Any, self.module.model).merge_adapter()
        return self

    def in_int8(self) -> Classifier:
        """Return a copy that computes in 8-bit whole numbers, for scoring only; it shares all but the linear layers.

        Three to four times as fast on processors with 8-bit dot products. Logits move by some hundredths, and by up
        to some thousandths with batch and neighbours. The head stays in float32.
        """
        self.merge()
        model = cast(Any, in_int8(self.module.model, self.module.classifier.base_model))
        return replace(self, module=self.module.around(model).eval(), source=self.source or self)

    def scorer(self, scoring: Scoring) -> Callable[..., Predictions]:
        """Return `predict` in the given arithmetic."""
        model = self.in_int8() if scoring == "int8" else self
        return partial(model.predict, precision="bfloat16" if scoring == "bfloat16" else "float32")

    def stands_on(self, mark: str) -> bool:
        """Say whether a fingerprint is that of this classifier's base, or of this classifier."""
        return mark in (self.base_fingerprint, self.own_fingerprint)

    @property
    def is_for_scoring(self) -> bool:
        """True after `merge` and of a copy in int8: such a model can neither be trained nor (in int8) saved."""
        return self.is_merged or self.is_int8

    @property
    def is_merged(self) -> bool:
        """True after `merge`: the adapter no longer takes part in the forward pass, so it cannot be trained."""
        return any(isinstance(layer, BaseTunerLayer) and layer.merged for layer in self.module.modules())

    @property
    def is_int8(self) -> bool:
        """True of a copy that computes in 8-bit whole numbers."""
        return any(isinstance(layer, Int8Linear) for layer in self.module.modules())

    @property
    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The parameters this strategy trains, by name, the head among them."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Return the context for a forward pass: bfloat16 where asked for, or where `auto` finds it in hardware."""
    if precision == "auto":
        precision = "bfloat16" if _has_bfloat16(device) else "float32"
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()


@contextmanager
def to_train(device: torch.device, precision: Precision, width: int) -> Iterator[None]:
    """Be in `autocast` for a forward pass over texts of `width` tokens whose gradients are wanted.

    A processor's fused attention takes many times as long as the plain one to go back through short texts in bfloat16
    (torch 2.13, 25 tokens: seven times); models without dropout in their attention would use it.
    """
    with autocast(device, precision):
        is_plain = device.type == "cpu" and torch.is_autocast_enabled("cpu") and width <= _SHORT
        with sdpa_kernel(SDPBackend.MATH) if is_plain else nullcontext():
            yield


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
