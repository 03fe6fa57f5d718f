"""The last layer of an encoder, worked out for the first token only: nothing else of it is ever read.

BERT and RoBERTa classify by the first token's vector, so the last layer needs every token's key and value but one
query, one attention output and one feed-forward pass. On MiniLM's six layers that saves a seventh of all arithmetic,
in training as in scoring; the first token's vector is the same.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward

__all__ = ["keep_first_token"]


def keep_first_token(encoder: Any, *, is_kept: bool = True) -> None:
    """Make a BERT-like encoder return `(B, 1, H)`, the first token, in place of `(B, T, H)`, or undo that."""
    attention = encoder.layer[-1].attention
    attention.forward = partial(_attend, attention) if is_kept else partial(type(attention).forward, attention)


def _attend(
    attention: Any,
    hidden: Tensor,  # (B, T, H)
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    inner = attention.self
    heads = (hidden.shape[0], -1, inner.num_attention_heads, inner.attention_head_size)
    first = hidden[:, :1]
    query, key, value = (  # (B, T, H) -> (B, heads, T, H / heads), T = 1 for the query
        project(states).view(heads).transpose(1, 2)
        for project, states in ((inner.query, first), (inner.key, hidden), (inner.value, hidden))
    )
    if past_key_values is not None:  # P-tuning v2: the prefix stands before the text's own keys and values
        is_double = isinstance(past_key_values, EncoderDecoderCache)
        cache = past_key_values.self_attention_cache if is_double else past_key_values
        key, value = cache.update(key, value, inner.layer_idx)
    mask = None if attention_mask is None else attention_mask[..., :1, :]
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(inner.config._attn_implementation, eager_attention_forward)
    dropout = inner.dropout.p if inner.training else 0.0
    mixed, weights = attend(inner, query, key, value, mask, dropout=dropout, scaling=inner.scaling, **kwargs)
    return attention.output(mixed.reshape(first.shape), first), weights
