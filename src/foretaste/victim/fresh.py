"""A small classifier that nobody had a hand in: random weights, and a tokenizer made from the texts it is to learn.

It knows nothing of language but what a few thousand texts of one task teach, so it is weak; what it has instead is no
past. BERT's shape, a tenth of MiniLM's parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from foretaste.seeds import child_seed
from foretaste.victim.batch import readable
from foretaste.victim.classifier import Classifier
from foretaste.victim.module import TextModule
from foretaste.victim.strategy import Full
from foretaste.victim.weights import default_device, fingerprint

__all__ = ["FRESH", "fresh_classifier"]

FRESH = "train"
"""What stands for it where a checkpoint is asked for."""

_SPECIALS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def fresh_classifier(
    texts: Sequence[str],
    label_names: tuple[str, ...],
    *,
    max_length: int,
    seed: int,
    width: int = 128,
    layers: int = 2,
    vocabulary: int = 8000,
) -> Classifier:
    """Return an untrained classifier of `layers` layers, `width` wide, with at most `vocabulary` words and pieces.

    It reads `max_length` tokens of each text; a function of its arguments alone.
    """
    tokenizer = _word_pieces(texts, vocabulary, max_length)
    config = AutoConfig.for_model(
        "bert",
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32),
        intermediate_size=4 * width,
        max_position_embeddings=max_length,
        num_labels=len(label_names),
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(child_seed(seed, "fresh"))
        model = cast(Any, AutoModelForSequenceClassification).from_config(config)
    mark = fingerprint(model.state_dict())
    module = TextModule(model).eval().to(default_device())
    return Classifier(module, tokenizer, tuple(label_names), max_length, Full(), FRESH, mark)


def _word_pieces(texts: Sequence[str], vocabulary: int, max_length: int) -> Any:
    """A tokenizer of the commonest words, and of letters for all others: trained pieces would depend on chance."""
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = Counter(
        word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(readable([text])[0]))
    )
    letters = sorted({letter for word in words for letter in word})
    common = sorted(words, key=lambda word: (-words[word], word))
    entries = [*_SPECIALS.values(), *letters, *(f"##{letter}" for letter in letters), *common]
    ids = {entry: number for number, entry in enumerate(dict.fromkeys(entries[:vocabulary]))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=_SPECIALS["unk_token"]))
    made: Any = tokenizer  # its attributes are set in Rust, unknown to type checkers
    made.normalizer, made.pre_tokenizer = normalizer, splitter
    around = [(token, ids[token]) for token in (_SPECIALS["cls_token"], _SPECIALS["sep_token"])]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    return cast(Any, PreTrainedTokenizerFast)(tokenizer_object=tokenizer, model_max_length=max_length, **_SPECIALS)
