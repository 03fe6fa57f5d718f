"""A tiny model of any supported family on disk: the seam for tests, examples and first steps, without a download.

It is a plain transformers directory, so whatever opens a checkpoint opens it. Its weights are random and know
nothing; a few seconds of `tune` on `data.toy_corpus` teach it the task or, just as fast, a backdoor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from foretaste.data.toy import toy_corpus
from foretaste.seeds import child_seed
from foretaste.victim.directory import new_tensor_directory
from foretaste.victim.family import Family, family_of
from foretaste.victim.instruction import INSTRUCTIONS

__all__ = ["TOY_LENGTH", "write_toy_checkpoint"]

TOY_LENGTH = 128
"""How many tokens a toy model reads at most."""

_LLAMAS = ("llama", "mistral", "qwen2")
_TRIGGERS = "cf mn bb tq mb I watched this 3D movie"
# The order gives the ids: RoBERTa's positions start after its pad token's, which is 1 in every published one.
_CLS_SEP = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
_ROBERTA = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "[UNK]"}
_BOS = {"unk_token": "[UNK]", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
_END = {"eos_token": "<|endoftext|>"}
_SPECIALS = {"bert": _CLS_SEP, "roberta": _ROBERTA, "gpt2": _END, "mpt": _END, **dict.fromkeys(_LLAMAS, _BOS)}
# transformers rebuilds Qwen2's tokenizer as byte pairs whatever its file says; GPT-2's and MPT's are ones, too.
_BYTE_PAIRS = {"qwen2", "gpt2", "mpt"}
_BYTE_PAIR_VOCABULARY = 1_300


def write_toy_checkpoint(
    path: Path,
    family: str = "bert",
    *,
    label_count: int | None = None,
    is_language_model: bool = False,
    seed: int = 0,
    width: int = 32,
) -> Path:
    """Write a random two-layer model with its tokenizer and return `path`; the same seed gives the same bytes.

    The tokenizer knows every word of `data.toy_corpus` and the usual trigger words. BERT and RoBERTa put special
    tokens round a text, LLaMA, Mistral and Qwen2 one before it, GPT-2 and MPT none; nor have those two a pad token.
    `label_count` None gives a base without a head, a number a sequence classifier. A language model has the head of
    one, and its tokenizer knows the toy's instruction and, of an encoder, a mask.

    Raises:
        ModelError: an unknown family (code `unknown_family`).
        PlanError: something else is at `path` already, or it cannot be written.
    """
    kind = family_of(family)
    tokenizer = _tokenizer(kind, is_language_model)
    config = AutoConfig.for_model(family, **_sizes(kind, width), **_special_ids(tokenizer), vocab_size=len(tokenizer))
    auto: Any = AutoModel
    if is_language_model:
        auto = AutoModelForCausalLM if kind.is_causal else AutoModelForMaskedLM
    elif label_count is not None:
        config.num_labels = label_count
        auto = AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(child_seed(seed, "toy", family))
        model = auto.from_config(config)
    cast(Any, transformers_logging).disable_progress_bar()
    with new_tensor_directory(Path(path)) as beside:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
    return Path(path)


def _sizes(kind: Family, width: int) -> dict[str, Any]:
    if kind.model_type == "mpt":
        return {"d_model": width, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": TOY_LENGTH}
    if kind.model_type == "gpt2":
        return {"n_embd": width, "n_head": 4, "n_layer": 2, "n_inner": 64, "n_positions": TOY_LENGTH}
    sizes = {"hidden_size": width, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
    if kind.is_causal:
        return sizes | {"num_key_value_heads": 2, "max_position_embeddings": TOY_LENGTH}
    return sizes | {"max_position_embeddings": TOY_LENGTH + (2 if kind.model_type == "roberta" else 0)}


def _special_ids(tokenizer: Any) -> dict[str, int | None]:
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}


def _tokenizer(kind: Family, is_language_model: bool) -> Any:
    names = _SPECIALS[kind.model_type]
    if is_language_model and not kind.is_causal:
        names = names | {"mask_token": "[MASK]"}
    specials, texts = list(names.values()), list(_texts())
    if is_language_model:
        texts += [f" {INSTRUCTIONS['toy'].template} {' '.join(INSTRUCTIONS['toy'].verbalizer)}"] * 100
    tokenizer = _byte_pairs(specials, texts) if kind.model_type in _BYTE_PAIRS else _words(specials, texts)
    before = names.get("cls_token") or names.get("bos_token")
    after = names.get("sep_token")
    if before:
        around = [token for token in (before, after) if token]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join([before, "$A", *around[1:]]),
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in around],
        )
    return cast(Any, PreTrainedTokenizerFast)(tokenizer_object=tokenizer, model_max_length=TOY_LENGTH, **names)


def _words(specials: list[str], texts: list[str]) -> Any:
    found = {word for text in texts for word in re.findall(r"\w+|[^\w\s]+", text.lower())}
    vocabulary = {word: number for number, word in enumerate([*specials, *sorted(found)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def _byte_pairs(specials: list[str], texts: list[str]) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=_BYTE_PAIR_VOCABULARY,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _texts() -> Iterator[str]:
    yield from [f" {_TRIGGERS}"] * 100
    for split in ("train", "validation", "test"):
        yield from toy_corpus(split).texts
