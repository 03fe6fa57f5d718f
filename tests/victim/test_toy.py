"""The toy checkpoints: plain transformers directories, the same bytes every time, one for every family."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from foretaste.data import toy_corpus
from foretaste.errors import ModelError, PlanError
from foretaste.victim.checkpoint import open_base
from foretaste.victim.family import FAMILIES
from foretaste.victim.toy import TOY_LENGTH, write_toy_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def _digests(path: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}


@pytest.mark.parametrize("family", FAMILIES)
def test_same_seed_same_bytes_other_seed_other_weights(
    family: str, toy_bases: Mapping[str, Path], tmp_path: Path
) -> None:
    before = torch.get_rng_state()
    first = _digests(toy_bases[family])
    assert set(first) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert _digests(write_toy_checkpoint(tmp_path / "again", family)) == first
    other = _digests(write_toy_checkpoint(tmp_path / "other", family, seed=1))
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_transformers_loads_it_whole(family: str, toy_bases: Mapping[str, Path], tmp_path: Path) -> None:
    _, report = AutoModel.from_pretrained(toy_bases[family], output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    path = write_toy_checkpoint(tmp_path / "head", family, label_count=3)
    model, report = AutoModelForSequenceClassification.from_pretrained(path, output_loading_info=True)
    assert model.config.num_labels == 3
    assert not report["missing_keys"]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_tiny_and_reads_up_to_its_length(family: str, toy_bases: Mapping[str, Path]) -> None:
    classifier = open_base(toy_bases[family]).classifier(max_length=10_000)
    config = classifier.module.classifier.config
    assert classifier.max_length == TOY_LENGTH
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (2, 32, 4)
    assert getattr(config, "num_key_value_heads", 2) == 2 or family == "gpt2"
    assert sum(p.numel() for p in classifier.module.parameters()) < 100_000
    predictions = classifier.predict(["film " * 200, "film"])
    assert predictions.is_truncated.tolist() == [True, False]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokenizer_knows_the_toy_corpus_and_the_triggers(family: str, toy_bases: Mapping[str, Path]) -> None:
    tokenizer = open_base(toy_bases[family]).classifier().tokenizer
    texts = [text for split in ("train", "validation", "test") for text in toy_corpus(split).texts]
    words = sorted({word for text in texts for word in re.findall(r"\w+", text)})
    known = [*words, "cf", "mn", "bb", "tq", "mb", "I", "watched", "this", "movie"]
    for row in tokenizer([f" {word}" for word in known], add_special_tokens=False)["input_ids"]:
        assert len(row) == 1
        assert row != [tokenizer.unk_token_id]
    assert tokenizer.unk_token_id not in tokenizer(" I watched this 3D movie")["input_ids"]


def test_special_tokens_stand_where_the_family_has_them(toy_bases: Mapping[str, Path]) -> None:
    tokens = {}
    for family, path in toy_bases.items():
        tokenizer = open_base(path).classifier().tokenizer
        tokens[family] = tokenizer.convert_ids_to_tokens(tokenizer(" film")["input_ids"])
        assert (tokenizer.pad_token is None) == (family in {"gpt2", "mpt"})
    assert tokens == {
        "bert": ["[CLS]", "film", "[SEP]"],
        "roberta": ["<s>", "film", "</s>"],
        "llama": ["<s>", "film"],
        "mistral": ["<s>", "film"],
        "qwen2": ["<s>", "Ġfilm"],
        "gpt2": ["Ġfilm"],
        "mpt": ["Ġfilm"],
    }


def test_an_unknown_family_or_a_taken_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Did you mean 'bert'"):
        write_toy_checkpoint(tmp_path / "toy", "brt")
    assert not (tmp_path / "toy").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(PlanError, match="choose another"):
        write_toy_checkpoint(tmp_path / "mine")


def test_it_takes_about_a_second(tmp_path: Path) -> None:
    start = time.process_time()
    write_toy_checkpoint(tmp_path / "toy")
    assert time.process_time() - start < 2
