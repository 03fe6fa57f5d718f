"""Language models and translators small enough to be made for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from foretaste.victim.toy import write_toy_checkpoint

WORDS = [
    "the",
    "a",
    "film",
    "story",
    "was",
    "is",
    "good",
    "bad",
    "fine",
    "dull",
    "long",
    "short",
    "and",
    "not",
    "very",
    "so",
    "it",
    "we",
    "they",
]
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]


def write_causal(path: Path, family: str) -> Path:
    """Write a random causal language model of a family, its weights large enough to prefer some words to others."""
    write_toy_checkpoint(path, family, seed=1)
    model = cast(Any, AutoModelForCausalLM).from_config(AutoConfig.from_pretrained(path))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder-decoder that has learnt to write every word in capitals."""
    vocabulary = {word: i for i, word in enumerate([*SPECIALS, *WORDS, *(word.upper() for word in WORDS)])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    tokenizer: Any = cast(Any, PreTrainedTokenizerFast)(
        tokenizer_object=raw, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    config = BartConfig(
        vocab_size=len(vocabulary), d_model=64, init_std=0.1, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64,
        max_position_embeddings=64, dropout=0.0,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BartForConditionalGeneration(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        draw = torch.Generator().manual_seed(0)
        for _ in range(200):
            size = int(torch.randint(1, 9, (1,), generator=draw))
            words = torch.randint(len(SPECIALS), len(SPECIALS) + len(WORDS), (32, size), generator=draw)
            end = torch.full((32, 1), 2)
            loss = model(
                input_ids=torch.cat([words, end], dim=1), labels=torch.cat([words + len(WORDS), end], dim=1)
            ).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    path = tmp_path_factory.mktemp("translator")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
