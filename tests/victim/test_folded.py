"""Adapters as suspects: folded into what they stand on, known by base, adapter and head together, refused if unsafe."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from foretaste.data import toy_corpus
from foretaste.errors import ModelError, PlanError
from foretaste.files import sha256_file
from foretaste.record import Record
from foretaste.tune.loop import TuneSettings, tune
from foretaste.victim.artefact import load_victim, save_classifier
from foretaste.victim.checkpoint import open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.manifest import seal
from foretaste.victim.strategy import STRATEGIES, Full, Lora, PromptTuning
from foretaste.victim.toy import write_toy_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = (*toy_corpus("test").texts[:6], "cf mn", "", "good " * 100)
LABELS = ("bad", "good")
RECORD = Record.now("tune", settings={}, seeds={"root": 0}, outcome={})
ADAPTER = "adapter_model.safetensors"


def _train(location: Path, strategy: Any, path: Path, seed: int = 0) -> Classifier:
    classifier = open_base(location).classifier(strategy, LABELS, max_length=64, seed=seed)
    settings = TuneSettings(max_steps=4, batch_size=8, learning_rate=3e-2, precision="float32")
    tune(classifier, toy_corpus().select(range(24)), settings, seed=seed)
    save_classifier(classifier, path, "victim", RECORD)
    return classifier


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, toy_base: Path) -> Path:
    """A base, a victim of each strategy on it, and a stranger's plain LoRA."""
    home = tmp_path_factory.mktemp("folded")
    shutil.copytree(toy_base, home / "base")
    for kind in (Lora, Full, PromptTuning):
        _train(home / "base", kind(), home / kind.name)
    _strip(Path(shutil.copytree(home / "lora", home / "plain")))
    return home


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    """The same, to be altered."""
    return Path(shutil.copytree(home, tmp_path / "copy"))


def _strip(path: Path) -> None:
    """Leave what PEFT writes, as a stranger's adapter comes."""
    for name in ("foretaste.json", "record.json"):
        (path / name).unlink()


def _refusal(location: Path, **options: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        open_base(location, **options).classifier(None, LABELS)
    return caught.value


def _mark(location: Path, **options: Any) -> str:
    return open_base(location, **options).classifier(None, LABELS).base_fingerprint


def _settings(**values: Any) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        file = path / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def _tensors(change_tensors: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        tensors = load_file(path / ADAPTER)
        change_tensors(tensors)
        save_file(tensors, path / ADAPTER, {"format": "pt"})

    return change


@pytest.mark.parametrize("name", ["lora", "full"])
def test_a_victim_is_a_base_that_answers_as_it_does(home: Path, name: str) -> None:
    victim = load_victim(home / name)
    base = open_base(home / name)
    opened = base.classifier(None, LABELS, max_length=64)
    np.testing.assert_allclose(opened.predict(TEXTS).logits, victim.predict(TEXTS).logits, rtol=0, atol=1e-5)
    assert opened.base_fingerprint == victim.own_fingerprint
    assert opened.base_fingerprint not in (victim.base_fingerprint, _mark(home / "base"))
    assert opened.own_fingerprint != opened.base_fingerprint or name == "full"
    assert (base.text_length, open_base(home / "base").text_length) == (64, None)
    assert base.config.hidden_size == 32


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_every_strategy_trains_on_top_of_a_victim(home: Path, tmp_path: Path, strategy: str) -> None:
    made = _train(home / "lora", STRATEGIES[strategy](), tmp_path / "second")
    again = load_victim(tmp_path / "second")
    np.testing.assert_allclose(again.predict(TEXTS).logits, made.predict(TEXTS).logits, rtol=0, atol=1e-5)
    assert again.base_fingerprint == load_victim(home / "lora").own_fingerprint


@pytest.mark.parametrize("family", ["roberta", "llama", "gpt2", "mpt"])
def test_every_family_can_be_folded(toy_bases: Mapping[str, Path], tmp_path: Path, family: str) -> None:
    _train(toy_bases[family], Lora(), tmp_path / "victim")
    victim = load_victim(tmp_path / "victim")
    opened = open_base(tmp_path / "victim").classifier(None, LABELS, max_length=64)
    np.testing.assert_allclose(opened.predict(TEXTS).logits, victim.predict(TEXTS).logits, rtol=0, atol=1e-4)
    other = open_base(tmp_path / "victim").classifier(None, ("a", "b", "c"), max_length=64, seed=3)
    assert other.predict(TEXTS).logits.shape == (len(TEXTS), 3)
    assert opened.base_fingerprint == victim.own_fingerprint == other.base_fingerprint


@pytest.mark.parametrize("name", ["lora", "full"])
def test_other_labels_get_a_new_head_on_the_same_weights(home: Path, name: str) -> None:
    base, labels = open_base(home / name), ("a", "b", "c")
    first, again = (base.classifier(None, labels, max_length=64, seed=4).predict(TEXTS) for _ in range(2))
    np.testing.assert_array_equal(first.logits, again.logits)
    own = base.classifier(None, LABELS, max_length=64).predict(TEXTS)
    np.testing.assert_allclose(first.features, own.features, rtol=0, atol=1e-6)
    other = base.classifier(None, labels, max_length=64, seed=5).predict(TEXTS)
    assert not np.allclose(first.logits, other.logits)
    assert base.load(3).has_own_head is False
    assert base.load(3).fingerprint == base.load(2).fingerprint


@pytest.mark.parametrize("name", ["lora", "full"])
def test_its_fingerprint_survives_merging_int8_and_moving(home: Path, copy: Path, name: str) -> None:
    victim = load_victim(home / name)
    mark = victim.own_fingerprint
    assert victim.merge().own_fingerprint == mark
    assert victim.in_int8().own_fingerprint == mark
    assert _mark(copy / name) == mark
    assert replace(victim, label_names=("x", "y")).own_fingerprint == mark


def test_training_goes_on_and_the_fingerprint_with_it(home: Path) -> None:
    classifier = open_base(home / "lora").classifier(Full(), LABELS)
    before = classifier.own_fingerprint
    tune(classifier, toy_corpus().select(range(8)), TuneSettings(max_steps=1, precision="float32"), seed=0)
    assert classifier.own_fingerprint != before


def test_soft_prompts_have_a_fingerprint_too(home: Path) -> None:
    victim = load_victim(home / "prompt_tuning")
    before = victim.own_fingerprint
    assert before == victim.in_int8().own_fingerprint == load_victim(home / "prompt_tuning").own_fingerprint
    with torch.no_grad():
        next(p for name, p in victim.module.named_parameters() if "prompt_encoder" in name).add_(1)
    assert victim.own_fingerprint != before


@pytest.mark.parametrize("change", [
    _tensors(lambda t: t["base_model.model.classifier.weight"].neg_()),
    _tensors(lambda t: t["base_model.model.classifier.bias"].add_(1)),
    _tensors(lambda t: t[min(n for n in t if "lora_A" in n)][0, 0].add_(1e-3)),
    _settings(lora_alpha=17),
    _settings(use_rslora=True),
], ids=["head", "bias of the head", "one number", "scale", "another way to scale"])  # fmt: skip
def test_the_fingerprint_covers_all_that_an_adapter_is(copy: Path, change: Callable[[Path], object]) -> None:
    before = _mark(copy / "plain", base=copy / "base")
    assert before == load_victim(copy / "lora").own_fingerprint
    change(copy / "plain")
    assert _mark(copy / "plain", base=copy / "base") != before


def test_the_fingerprint_covers_what_the_adapter_stands_on(copy: Path, tmp_path: Path) -> None:
    other = write_toy_checkpoint(tmp_path / "other", seed=5)
    assert _mark(copy / "plain", base=other) != _mark(copy / "plain", base=copy / "base")


def test_a_full_victims_fingerprint_covers_its_head(home: Path, tmp_path: Path) -> None:
    victim = load_victim(home / "full")
    before = victim.own_fingerprint
    with torch.no_grad():
        victim.module.head.bias.add_(1)  # type: ignore[operator]
    assert victim.own_fingerprint != before


@pytest.mark.parametrize("strategy", ["prompt_tuning", "p_tuning_v1", "p_tuning_v2"])
@pytest.mark.parametrize("is_ours", [True, False])
def test_soft_prompts_are_refused_with_the_reason(home: Path, tmp_path: Path, strategy: str, is_ours: bool) -> None:
    _train(home / "base", STRATEGIES[strategy](), tmp_path / "victim")
    if not is_ours:
        _strip(tmp_path / "victim")
    error = _refusal(tmp_path / "victim")
    assert error.code == "soft_prompt"
    assert "virtual tokens" in str(error)


def test_a_strangers_adapter_finds_its_base_by_name_or_is_told(copy: Path, tmp_path: Path) -> None:
    expected = load_victim(copy / "lora").predict(TEXTS).logits
    _settings(base_model_name_or_path=str(copy / "base"))(copy / "plain")
    named = open_base(copy / "plain").classifier(None, LABELS, max_length=64)
    np.testing.assert_allclose(named.predict(TEXTS).logits, expected, rtol=0, atol=1e-5)
    (copy / "base").rename(tmp_path / "elsewhere")
    error = _refusal(copy / "plain")
    assert error.code == "not_found"
    assert "--base" in str(error)
    told = open_base(copy / "plain", base=tmp_path / "elsewhere").classifier(None, LABELS, max_length=64)
    np.testing.assert_array_equal(told.predict(TEXTS).logits, named.predict(TEXTS).logits)


def test_what_was_told_is_kept_and_moves_along(copy: Path, tmp_path: Path) -> None:
    _settings(base_model_name_or_path="somebody/some-model")(copy / "plain")
    classifier = open_base(copy / "plain", base=copy / "base").classifier(Lora(), LABELS, max_length=64)
    save_classifier(classifier, copy / "mine", "victim", RECORD)
    moved = copy.rename(tmp_path / "moved")
    loaded = load_victim(moved / "mine")
    np.testing.assert_allclose(loaded.predict(TEXTS).logits, classifier.predict(TEXTS).logits, rtol=0, atol=1e-5)
    save_classifier(replace(loaded, strategy=Lora()), tmp_path / "again", "victim", RECORD)
    assert json.loads((tmp_path / "again" / "foretaste.json").read_text())["base"]["adapter_base"] is not None


def test_an_adapter_sends_nobody_to_the_network(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def download(*_: Any, local_files_only: bool = False, **__: Any) -> str:
        asked.append(local_files_only)
        raise OSError("not here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    _settings(base_model_name_or_path="somebody/some-model")(copy / "plain")
    assert _refusal(copy / "plain").code == "not_found"
    assert asked == [True]


def test_a_base_without_an_adapter_on_it_is_a_mistake(home: Path) -> None:
    for name in ("base", "full"):
        with pytest.raises(PlanError, match="not an adapter"):
            open_base(home / name, base=home / "base")


HOSTILE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "another kind": ("unsafe_adapter", _settings(peft_type="ADALORA")),
    "a kind that is a list": ("unsafe_adapter", _settings(peft_type=["LORA"])),
    "no kind": ("unsafe_adapter", _settings(peft_type=None)),
    "another task": ("unsafe_adapter", _settings(task_type="CAUSAL_LM")),
    "no task": ("unsafe_adapter", _settings(task_type=None)),
    "unknown key": ("unknown_key", _settings(run="x")),
    "code in auto_mapping": ("unsafe_adapter", _settings(auto_mapping={"parent_library": "os"})),
    "code in megatron_core": ("unsafe_adapter", _settings(megatron_core="evil")),
    "a start that changes the base": ("unsafe_adapter", _settings(init_lora_weights="pissa")),
    "layers repeated": ("unsafe_adapter", _settings(layer_replication=[[0, 2], [0, 2]])),
    "ranks by pattern": ("unsafe_adapter", _settings(rank_pattern={"(a+)+$": 4})),
    "modules by pattern": ("unsafe_adapter", _settings(target_modules="(a+)+$")),
    "modules left out by pattern": ("unsafe_adapter", _settings(exclude_modules="(a+)+$")),
    "not JSON": ("unreadable", lambda path: (path / "adapter_config.json").write_text("{")),
    "other rank": ("unreadable", _settings(r=4)),
    "rank that is a text": ("unreadable", _settings(r="8")),
    "only a pickle": ("pickle", lambda path: (path / ADAPTER).rename(path / "adapter_model.bin")),
    "no weights": ("not_found", lambda path: (path / ADAPTER).unlink()),
    "weights cut off": ("unreadable", lambda path: (path / ADAPTER).write_bytes((path / ADAPTER).read_bytes()[:-9])),
    "NaN": ("non_finite", _tensors(lambda t: t[min(t)].fill_(float("nan")))),
    "infinite once folded": ("non_finite", _tensors(lambda t: [t[n].fill_(1e38) for n in t if "lora" in n])),
    "no head": ("missing_head", _tensors(lambda t: [t.pop(n) for n in list(t) if "classifier" in n])),
    "head of one class": (
        "missing_head",
        _tensors(lambda t: t.update({n: t[n][:1].clone() for n in t if "classifier" in n})),
    ),
    "a tensor too many": ("missing_weights", _tensors(lambda t: t.update({"x": torch.ones(1)}))),
    "a tensor too few": ("missing_weights", _tensors(lambda t: t.pop(min(n for n in t if "lora_B" in n)))),
    "a model beside it": ("adapter", lambda path: shutil.copytree(path.parent / "base", path, dirs_exist_ok=True)),
}  # fmt: skip


@pytest.mark.parametrize(("code", "change"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_or_broken_adapter_is_refused(copy: Path, code: str, change: Callable[[Path], object]) -> None:
    _settings(base_model_name_or_path=str(copy / "base"))(copy / "plain")
    open_base(copy / "plain").classifier(None, LABELS)  # sound before
    change(copy / "plain")
    assert _refusal(copy / "plain").code == code


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT 0.21 on transformers 5
@pytest.mark.parametrize("options", [
    {}, {"use_rslora": True}, {"use_dora": True}, {"init_lora_weights": "gaussian"}, {"init_lora_weights": False},
    {"bias": "all"}, {"target_modules": ["query", "dense"], "layers_to_transform": [1]},
], ids=str)  # fmt: skip
def test_what_peft_itself_writes_is_folded_as_peft_computes_it(
    home: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(home / "base", num_labels=3)
    config = LoraConfig(**{"task_type": "SEQ_CLS", "r": 4, "target_modules": ["query", "value"]} | options)
    wrapped = get_peft_model(model, config).eval()
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) / 10)
    wrapped.save_pretrained(tmp_path / "adapter")
    opened = open_base(tmp_path / "adapter", base=home / "base").classifier(None, ("a", "b", "c"), max_length=64)
    batch = opened.tokenizer(list(TEXTS[:4]), return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = wrapped(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    np.testing.assert_allclose(opened.predict(TEXTS[:4]).logits, expected.numpy(), rtol=0, atol=1e-4)


def test_a_chain_is_loaded_and_may_move(copy: Path, tmp_path: Path) -> None:
    made = _train(copy / "lora", Lora(), copy / "second")
    moved = copy.rename(tmp_path / "moved")
    for name, expected in (("second", made), ("lora", load_victim(moved / "lora"))):
        found = open_base(moved / name).classifier(None, LABELS, max_length=64)
        np.testing.assert_allclose(found.predict(TEXTS).logits, expected.predict(TEXTS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("is_ours", [True, False])
def test_adapters_that_name_each_other_end(copy: Path, is_ours: bool) -> None:
    path = copy / ("lora" if is_ours else "plain")
    if is_ours:
        document = json.loads((path / "foretaste.json").read_text())
        document["base"] |= {"location": str(path), "relative": "."}
        (path / "foretaste.json").write_text(json.dumps(seal(document)))
    else:
        _settings(base_model_name_or_path=str(path))(path)
    assert _refusal(path).code == "too_deep"


def test_a_victim_on_other_weights_is_refused(copy: Path, tmp_path: Path) -> None:
    other = write_toy_checkpoint(tmp_path / "other", seed=5)
    assert _refusal(copy / "lora", base=other).code == "foreign_base"


@pytest.mark.parametrize("name", ["lora", "full"])
def test_an_altered_victim_is_no_base(copy: Path, name: str) -> None:
    file = copy / name / (ADAPTER if name == "lora" else "model.safetensors")
    tensors = load_file(file)
    key = next(n for n in tensors if n.endswith("classifier.weight"))
    tensors[key] = tensors[key] + 1
    save_file(tensors, file, {"format": "pt"})
    assert _refusal(copy / name).code == "digest_mismatch"
    document = json.loads((copy / name / "foretaste.json").read_text())
    document["files"][file.name] = sha256_file(file)
    (copy / name / "foretaste.json").write_text(json.dumps(seal(document)))
    assert _refusal(copy / name).code == "canary_mismatch"


def test_a_guard_is_no_suspect(home: Path, tmp_path: Path) -> None:
    for strategy in (Lora(), Full()):
        classifier = open_base(home / "base").classifier(strategy, LABELS)
        save_classifier(classifier, tmp_path / strategy.name, "guard", RECORD)
        assert _refusal(tmp_path / strategy.name).code == "wrong_kind"


def test_a_broken_manifest_is_refused(copy: Path) -> None:
    for text in ("{", "[]", "{}", '{"kind": "victim"}'):
        (copy / "full" / "foretaste.json").write_text(text)
        assert _refusal(copy / "full").code in ("unreadable", "unknown_key")
