"""Every strategy on every family: the head is trained, saved and loaded again; plain PEFT reads what we write."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from foretaste.data import toy_corpus
from foretaste.errors import PlanError
from foretaste.record import Record
from foretaste.spec import build
from foretaste.tune.loop import TuneSettings, tune
from foretaste.victim.artefact import load_victim, save_classifier
from foretaste.victim.checkpoint import open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.family import FAMILIES
from foretaste.victim.strategy import STRATEGIES, Full, Lora, PromptTuning, PTuningV1, PTuningV2

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = (*toy_corpus("test").texts[:5], "cf", "", "bad " * 300)
RECORD = Record.now("tune", settings={}, seeds={"root": 0}, outcome={})
ALL = [pytest.param((family, name), id=f"{family}-{name}") for family, name in product(FAMILIES, STRATEGIES)]
# What a strategy trains beside the head; the rest of the weights must not move.
MARKS = {"lora": "lora_", "prompt_tuning": "prompt_encoder", "p_tuning_v1": "prompt_encoder"}
MARKS["p_tuning_v2"] = "prompt_encoder"


class Trained:
    """A classifier after two steps, with its weights before, and where it was saved."""

    def __init__(self, base: Path, home: Path, strategy: str) -> None:
        self.strategy = strategy
        self.base = base
        self.classifier = open_base(base).classifier(STRATEGIES[strategy](), ("a", "b"), seed=3)
        self.before = {name: p.detach().clone() for name, p in self.classifier.module.named_parameters()}
        settings = TuneSettings(max_steps=2, batch_size=8, learning_rate=1e-2, precision="float32")
        tune(self.classifier, toy_corpus().select(range(16)), settings, seed=0)
        self.logits = self.classifier.predict(TEXTS).logits
        self.path = home / "victim"
        save_classifier(self.classifier, self.path, "victim", RECORD)

    @property
    def head(self) -> set[str]:
        """Names of the head's trained parameters."""
        return {name for name in self.classifier.trainable if ".classifier." in name or ".score." in name}


@pytest.fixture(scope="module", params=ALL)
def trained(
    request: pytest.FixtureRequest, toy_bases: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    family, strategy = request.param
    return Trained(toy_bases[family], tmp_path_factory.mktemp("strategies"), strategy)


def test_exactly_the_adapter_and_the_head_are_trained(trained: Trained) -> None:
    names = set(trained.classifier.trainable)
    assert trained.head
    if trained.strategy == "full":
        assert names == set(trained.before)
    else:
        assert {name for name in names - trained.head if MARKS[trained.strategy] not in name} == set()
        assert names - trained.head


def test_head_and_adapter_change_in_training_and_the_rest_does_not(trained: Trained) -> None:
    after = dict(trained.classifier.module.named_parameters())
    moved = {name for name, before in trained.before.items() if not torch.equal(before, after[name])}
    assert trained.head <= moved
    assert moved - trained.head
    assert moved <= set(trained.classifier.trainable)


def test_the_trained_head_is_in_the_saved_file(trained: Trained) -> None:
    file = "model.safetensors" if trained.strategy == "full" else "adapter_model.safetensors"
    saved = load_file(trained.path / file)
    for name in trained.head:
        parameter = trained.classifier.trainable[name]
        tail = name.replace("modules_to_save.default.", "").rpartition("model.")[2]
        same = [key for key in saved if key.endswith(tail)]
        assert same, f"{tail} is not in {file}"
        assert torch.equal(saved[same[0]], parameter)


def test_logits_survive_saving_and_loading(trained: Trained) -> None:
    again = load_victim(trained.path)
    assert np.abs(again.predict(TEXTS).logits - trained.logits).max() <= 1e-5
    assert again.strategy == trained.classifier.strategy
    assert again.label_names == ("a", "b")
    assert again.max_length == trained.classifier.max_length
    assert again.base_fingerprint == trained.classifier.base_fingerprint
    assert not again.module.training


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT 0.21 on transformers 5
def test_plain_peft_loads_the_directory(trained: Trained) -> None:
    if trained.strategy == "full":
        model: Any = AutoModelForSequenceClassification.from_pretrained(trained.path)
    else:
        base = AutoModelForSequenceClassification.from_pretrained(trained.base, num_labels=2)
        model = PeftModel.from_pretrained(base, str(trained.path))
    assert np.abs(_alone(model.eval(), trained.classifier) - trained.logits).max() <= 1e-5


def _alone(model: Any, classifier: Classifier) -> NDArray[np.float32]:
    with torch.inference_mode():
        rows = [
            model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].numpy()
            for ids in (torch.tensor([row]) for row in classifier.encode(TEXTS).ids)
        ]
    return np.stack(rows)


def test_merging_changes_neither_logits_nor_what_is_saved(trained: Trained, tmp_path: Path) -> None:
    merged = load_victim(trained.path).merge().merge()
    assert merged.is_merged == (trained.strategy == "lora")
    if not merged.is_merged:
        return
    assert np.abs(merged.predict(TEXTS).logits - trained.logits).max() <= 1e-5
    save_classifier(merged, tmp_path / "again", "victim", RECORD)
    for file in trained.path.glob("*.safetensors"):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_a_prompt_from_the_vocabulary_starts_as_words_of_the_base_drawn_by_the_seed(toy_base: Path) -> None:
    base = open_base(toy_base)
    prompts = []
    for seed in (0, 0, 1):
        model: Any = base.classifier(PromptTuning(start="vocabulary"), seed=seed).module.model
        prompts.append(model.get_prompt_embedding_to_save("default").numpy())
        words = model.get_input_embeddings().weight.detach().numpy()
        assert all((row == words).all(axis=1).any() for row in prompts[-1])
    assert (prompts[0] == prompts[1]).all()
    assert (prompts[0] != prompts[2]).any()


def test_settings_are_the_papers() -> None:
    """Zhao et al. (2024), appendix B: rank 8, dropout 0.1, 5 virtual tokens, hidden size 128; alpha from the code."""
    lora, prompt, first, second = Lora(), PromptTuning(), PTuningV1(), PTuningV2()
    assert (lora.rank, lora.alpha, lora.dropout) == (8, 16, 0.1)
    assert (prompt.virtual_tokens, first.virtual_tokens, second.virtual_tokens) == (5, 5, 5)
    assert (first.encoder_hidden_size, second.encoder_hidden_size) == (128, 128)
    assert Full().learning_rate == 2e-5
    assert {s.learning_rate for s in (lora, prompt, first, second)} == {2e-3}


@pytest.mark.parametrize(
    ("strategy", "fields", "in_peft"),
    [
        ("full", {"learning_rate": 0.5}, {}),
        (
            "lora",
            {
                "learning_rate": 0.5,
                "rank": 2,
                "alpha": 3,
                "dropout": 0.3,
                "layers": "feed_forward",
                "target_modules": "key",
            },
            {"r": 2, "lora_alpha": 3, "lora_dropout": 0.3, "target_modules": {"key"}},
        ),
        (
            "prompt_tuning",
            {"learning_rate": 0.5, "virtual_tokens": 3, "start": "vocabulary"},
            {"num_virtual_tokens": 3, "prompt_tuning_init": "SAMPLE_VOCAB"},
        ),
        (
            "p_tuning_v1",
            {"learning_rate": 0.5, "virtual_tokens": 3, "encoder_hidden_size": 7},
            {"num_virtual_tokens": 3, "encoder_hidden_size": 7},
        ),
        (
            "p_tuning_v2",
            {"learning_rate": 0.5, "virtual_tokens": 3, "encoder_hidden_size": 7, "projection": True},
            {"num_virtual_tokens": 3, "encoder_hidden_size": 7, "prefix_projection": True},
        ),
    ],
)
def test_every_field_can_be_set_and_reaches_peft(
    strategy: str, fields: dict[str, Any], in_peft: dict[str, Any], toy_base: Path, tmp_path: Path
) -> None:
    kind = STRATEGIES[strategy]
    assert set(fields) == {field.name for field in dataclasses.fields(cast(Any, kind))}
    classifier = open_base(toy_base).classifier(build(kind, fields))
    model: Any = classifier.module.model
    for name, value in in_peft.items():
        assert getattr(model.active_peft_config, name) == value
    assert classifier.module.prompt_length == fields.get("virtual_tokens", 0)
    assert classifier.max_length == 128 - fields.get("virtual_tokens", 0)
    save_classifier(classifier, tmp_path / "victim", "victim", RECORD)
    assert load_victim(tmp_path / "victim").strategy == build(kind, fields)


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_sits_where_it_is_told(family: str, toy_bases: Mapping[str, Path]) -> None:
    """Queries and values (MPT and GPT-2 fuse them with the keys), or all linear layers but queries, keys and values."""
    base = open_base(toy_bases[family])
    plain = base.classifier(Full()).module.classifier.base_model
    linear = {n for n, part in plain.named_modules() if isinstance(part, nn.Linear | Conv1D) and "pooler" not in n}
    read = {n for n in linear if n.endswith(("query", "key", "value", "q_proj", "k_proj", "v_proj", "Wqkv", "c_attn"))}
    for layers, expected in (("attention", {n for n in read if not n.endswith(("key", "k_proj"))}),
                             ("feed_forward", linear - read), ("all", linear)):  # fmt: skip
        wrapped = base.classifier(build(Lora, {"layers": layers})).module.classifier.base_model
        assert {n for n, part in wrapped.named_modules() if isinstance(part, BaseTunerLayer)} == expected


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_unknown_field_suggests_the_nearest(name: str) -> None:
    with pytest.raises(PlanError, match="Did you mean 'learning_rate'"):
        build(STRATEGIES[name], {"learningrate": 1.0})


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Lora, {"rank": 0}),
        (Lora, {"dropout": 1.0}),
        (Lora, {"alpha": -1}),
        (Lora, {"learning_rate": 0.0}),
        (Full, {"learning_rate": float("nan")}),
        (PromptTuning, {"virtual_tokens": 0}),
        (PTuningV1, {"encoder_hidden_size": 0}),
    ],
)
def test_a_value_that_cannot_be_is_refused(kind: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=next(iter(fields))):
        build(kind, fields)
    with pytest.raises(ValidationError):
        kind(**fields)


def test_a_strategy_that_does_not_fit_the_model_is_refused(toy_base: Path) -> None:
    base = open_base(toy_base)
    with pytest.raises(PlanError, match="lora does not fit"):
        base.classifier(Lora(target_modules=("c_attn",)))
    for tokens in (126, 127, 500):
        with pytest.raises(PlanError, match="fewer virtual tokens"):
            base.classifier(PromptTuning(virtual_tokens=tokens))
    assert base.classifier(PromptTuning(virtual_tokens=125)).predict(["a film"]).is_truncated.tolist() == [True]


def test_the_hidden_size_of_p_tuning_v2_counts_only_with_projection(toy_base: Path) -> None:
    """What the docstring says of the paper's "encoder hidden size"."""
    base = open_base(toy_base)
    sizes = {
        (hidden, projection): sum(
            p.numel()
            for p in base.classifier(PTuningV2(encoder_hidden_size=hidden, projection=projection)).trainable.values()
        )
        for hidden, projection in product((64, 128), (False, True))
    }
    assert sizes[64, False] == sizes[128, False]
    assert sizes[64, True] < sizes[128, True]
