"""What differs between model families: where the head reads, how it is called, how positions count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from foretaste.errors import ModelError
from foretaste.spec import nearest

__all__ = ["FAMILIES", "Family", "family_of"]


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture.

    `reads` says which token's vector the classification head sees: the first of an encoder (with soft prompts,
    that is the first virtual token, as in PEFT), the last real one of a causal model. `head` is the attribute
    that holds the head, `language_head` the one of the family's language model. `projections` names the linear layers
    that make attention's queries, keys and values, `feed_forward` those behind the values: the projection that leaves
    attention and both sides of the feed-forward block. `attention` is what a layer calls its attention, `narrows` the
    way back from its feed-forward block's neurons. `has_pooler` and `head_sees_sequence` describe how the head is fed.
    """

    model_type: str
    reads: Literal["first", "last"]
    head: Literal["classifier", "score"]
    projections: tuple[str, ...]
    feed_forward: tuple[str, ...]
    attention: str
    narrows: str
    has_pooler: bool = False
    head_sees_sequence: bool = False
    takes_positions: bool = True
    language_head: Literal["cls", "lm_head"] = "lm_head"

    @property
    def is_causal(self) -> bool:
        """True if a token sees only what stands before it."""
        return self.reads == "last"


_BERT = (("query", "key", "value"), ("intermediate.dense", "output.dense"), "attention", "output.dense")
_LLAMA = (
    ("q_proj", "k_proj", "v_proj"),
    ("o_proj", "gate_proj", "up_proj", "down_proj"),
    "self_attn",
    "mlp.down_proj",
)

FAMILIES = {
    family.model_type: family
    for family in (
        Family("bert", "first", "classifier", *_BERT, has_pooler=True, language_head="cls"),
        Family("roberta", "first", "classifier", *_BERT, head_sees_sequence=True),
        Family("llama", "last", "score", *_LLAMA),
        Family("mistral", "last", "score", *_LLAMA),
        Family("qwen2", "last", "score", *_LLAMA),
        Family("gpt2", "last", "score", ("c_attn",), ("c_fc", "c_proj"), "attn", "mlp.c_proj"),
        Family(
            "mpt",
            "last",
            "score",
            ("Wqkv",),
            ("out_proj", "up_proj", "down_proj"),
            "attn",
            "ffn.down_proj",
            takes_positions=False,
        ),
    )
}


def family_of(model_type: str) -> Family:
    """Return the family of a configuration's `model_type`.

    Raises:
        ModelError: a family whose head and positions we do not know (code `unknown_family`).
    """
    if model_type not in FAMILIES:
        raise ModelError(
            f"Models of type {model_type!r} are not supported.{nearest(model_type, FAMILIES)}",
            code="unknown_family",
        )
    return FAMILIES[model_type]
