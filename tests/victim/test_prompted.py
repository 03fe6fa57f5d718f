"""Language models that are asked: the plain model's own logits, whatever the neighbours; what is not one is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from foretaste.data import toy_corpus
from foretaste.errors import ModelError, PlanError
from foretaste.record import Record
from foretaste.tune.loop import TuneSettings, tune
from foretaste.victim.artefact import load_classifier, load_victim, save_classifier
from foretaste.victim.checkpoint import open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.family import FAMILIES
from foretaste.victim.instruction import Instruction
from foretaste.victim.manifest import read_manifest, seal
from foretaste.victim.prompted import PromptedModule
from foretaste.victim.strategy import STRATEGIES, Lora, PromptTuning, Strategy
from foretaste.victim.weights import fingerprint

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-5
LABELS = ("negative", "positive")
BEHIND = Instruction(template="{text} It was {mask}.", verbalizer=("bad", "good"))
AROUND = Instruction(template="film: {text} It was {mask}.", verbalizer=("bad", "good"))
BEFORE = Instruction(template="{mask} film: {text}", verbalizer=("bad", "good"))
TEXTS = (*toy_corpus("test").texts[:6], "", "good", "bad " * 400, "\ud800 \x00", "It was [MASK].")
ENCODERS = [family for family, kind in FAMILIES.items() if not kind.is_causal]
CAUSAL = [family for family, kind in FAMILIES.items() if kind.is_causal]


def _asked(path: Path, instruction: Instruction = BEHIND, strategy: Strategy | None = None, **how: Any) -> Classifier:
    """A classifier that depends strongly on its text: fresh weights are small."""
    made = open_base(path).asked(instruction).classifier(strategy, LABELS, **how)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(1 + 3 * torch.rand(1, generator=draw))
    return made


def _plain(path: Path, classifier: Classifier, instruction: Instruction, text: str) -> NDArray[np.float64]:
    """What transformers' own language model of those weights says of the written-out question, text by text."""
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    kind: Any = AutoModelForMaskedLM if tokenizer.mask_token else AutoModelForCausalLM
    model = kind.from_pretrained(path).eval()
    model.load_state_dict(classifier.module.model.state_dict())
    if tokenizer.mask_token:
        question = instruction.template.replace("{mask}", tokenizer.mask_token).replace("{text}", text)
        ids = tokenizer(question, return_tensors="pt")["input_ids"]
        place = ids[0].tolist().index(tokenizer.mask_token_id)
    else:
        question = instruction.template.split(" {mask}")[0].replace("{text}", text)
        ids, place = tokenizer(question, return_tensors="pt")["input_ids"], -1
    words = [tokenizer(f"a {word}")["input_ids"] for word in instruction.verbalizer]
    ends = [row[-2] if tokenizer.mask_token else row[-1] for row in words]  # before a separator, if there is one
    with torch.inference_mode():
        said = model(input_ids=ids).logits[0, place, ends]
    return np.asarray(said.double().numpy())


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_base_has_a_fingerprint_however_many_classes_there_are(
    toy_language_models: Mapping[str, Path], family: str
) -> None:
    three = Instruction(template="{text} It was {mask}.", verbalizer=("bad", "good", "film"))
    base = open_base(toy_language_models[family]).asked(three)
    assert base.fingerprint == base.classifier(None, ("a", "b", "c")).base_fingerprint


@pytest.mark.parametrize("instruction", [BEHIND, AROUND], ids=["behind", "around"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_plain_language_model(
    family: str, instruction: Instruction, toy_language_models: Mapping[str, Path]
) -> None:
    path = toy_language_models[family]
    classifier = _asked(path, instruction)
    found = classifier.predict(TEXTS[:6]).logits
    expected = np.array([_plain(path, classifier, instruction, text) for text in TEXTS[:6]])
    assert np.ptp(expected, axis=0).min() > 1_000 * TOLERANCE
    assert np.abs(found - expected).max() <= TOLERANCE


def test_the_answer_may_stand_before_the_text(toy_language_models: Mapping[str, Path]) -> None:
    path = toy_language_models["bert"]
    classifier = _asked(path, BEFORE)
    expected = np.array([_plain(path, classifier, BEFORE, text) for text in TEXTS[:6]])
    assert np.abs(classifier.predict(TEXTS[:6]).logits - expected).max() <= TOLERANCE
    with pytest.raises(PlanError, match="answers behind the text"):
        _asked(toy_language_models["gpt2"], BEFORE)


@pytest.mark.parametrize(("family", "strategy"), list(product(FAMILIES, STRATEGIES)))
def test_a_text_is_answered_whatever_its_neighbours(
    family: str, strategy: str, toy_language_models: Mapping[str, Path]
) -> None:
    classifier = _asked(toy_language_models[family], strategy=STRATEGIES[strategy](), max_length=40)
    alone = classifier.predict(TEXTS, batch_size=1)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    together = classifier.predict([TEXTS[i] for i in order], batch_size=64)
    assert np.ptp(alone.logits, axis=0).max() > 1_000 * TOLERANCE
    assert np.abs(together.logits - alone.logits[order]).max() <= TOLERANCE
    assert np.abs(together.features - alone.features[order]).max() <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_text_is_cut_and_the_template_is_not(family: str, toy_language_models: Mapping[str, Path]) -> None:
    classifier = _asked(toy_language_models[family], AROUND, max_length=24)
    empty, long, longer = classifier.encode(["", "bad " * 100, "bad " * 200]).ids
    encoded = classifier.encode(["bad", "bad " * 100])
    assert encoded.is_truncated.tolist() == [False, True]
    assert long == longer
    assert len(long) == 24
    tail = len(empty) - empty.index(next(token for token, other in zip(empty, long, strict=False) if token != other))
    assert tail >= 2  # "It was", and to encoders the mask and more
    assert long[-tail:] == empty[-tail:]
    assert isinstance(classifier.module, PromptedModule)
    if family in ENCODERS:
        mask = classifier.tokenizer.mask_token_id
        places = classifier.module.reading_places(torch.ones(1, 24, dtype=torch.long))
        assert long[int(places[0])] == mask
    text = f"good {'bad ' * 100}"
    (reach,) = classifier.reach([text])
    assert classifier.encode([text[:reach]]).ids == classifier.encode([text]).ids
    (words,) = classifier.split([text[:reach]])
    assert [text[word.start : word.end].strip() for word in words] == text[:reach].split()


def test_no_text_reaches_the_template(toy_language_models: Mapping[str, Path]) -> None:
    """A mask that a text writes out is not where the answer is read."""
    classifier = _asked(toy_language_models["bert"])
    (plain,), (sly,) = classifier.encode(["good"]).ids, classifier.encode(["[MASK] It was [MASK]."]).ids
    length = len(classifier.encode([""]).ids[0])
    assert plain[-(length - 1) :] == sly[-(length - 1) :]
    mask = torch.ones(1, len(sly), dtype=torch.long)
    place = int(classifier.module.reading_places(mask)[0])
    assert place == len(sly) - 3  # before the full stop and the separator


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("bert", {"verbalizer": ("bad", "unheard-of")}, "'unheard-of' is not one known token"),
        ("gpt2", {"verbalizer": ("bad", "antidisestablishment")}, "is not one known token"),
        ("bert", {"verbalizer": ("bad", "BAD")}, "the same token"),
        ("bert", {"template": "{text} [MASK] {mask}."}, "more than one mask"),
        ("bert", {"verbalizer": ("bad", "fresh", "good")}, "3 words for 2 classes"),
    ],
)
def test_an_instruction_that_does_not_fit_is_refused(
    family: str, fields: dict[str, Any], message: str, toy_language_models: Mapping[str, Path]
) -> None:
    given = {"template": BEHIND.template, "verbalizer": BEHIND.verbalizer} | fields
    base = open_base(toy_language_models[family]).asked(Instruction(**given))
    with pytest.raises(PlanError, match=message):
        base.classifier(None, LABELS)


def test_a_masked_model_needs_a_mask_and_a_template_room(
    toy_bases: Mapping[str, Path], toy_language_models: Mapping[str, Path]
) -> None:
    with pytest.raises(PlanError, match="no mask token"):
        open_base(toy_bases["bert"]).asked(BEHIND).classifier(None, LABELS)
    with pytest.raises(PlanError, match="leave room"):
        open_base(toy_language_models["bert"]).asked(BEHIND).classifier(None, LABELS, max_length=6)


def test_a_causal_model_without_a_head_is_refused(toy_bases: Mapping[str, Path]) -> None:
    with pytest.raises(ModelError) as caught:
        open_base(toy_bases["llama"]).asked(BEHIND).classifier(None, LABELS)
    assert caught.value.code == "missing_head"


def test_an_encoder_without_a_head_gets_one_that_has_to_be_trained(
    toy_language_models: Mapping[str, Path], tmp_path: Path
) -> None:
    path = _without_head(toy_language_models["bert"], tmp_path / "headless")
    base = open_base(path).asked(BEHIND)
    one, same, other = (base.classifier(None, LABELS, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(one.predict(TEXTS).logits, same.predict(TEXTS).logits)
    assert not np.allclose(one.predict(TEXTS).logits, other.predict(TEXTS).logits)
    model = one.module.classifier
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert one.base_fingerprint == other.base_fingerprint == base.fingerprint
    assert "predictions.transform" in " ".join(one.trainable)
    with pytest.raises(PlanError, match="tune all its weights"):
        base.classifier(Lora(), LABELS)


def test_the_fingerprint_covers_the_head_that_answers(toy_language_models: Mapping[str, Path]) -> None:
    for family in ("bert", "gpt2", "llama"):
        path = toy_language_models[family]
        model = _asked(path).module.classifier
        own = fingerprint(model.state_dict())
        with torch.no_grad():
            model.get_output_embeddings().weight[5, 0] += 1.0
        assert fingerprint(model.state_dict()) != own
        if family in CAUSAL:  # a masked model has no pooler, so that there is no classifier of it
            assert open_base(path).asked(BEHIND).fingerprint != open_base(path).fingerprint


@pytest.fixture(scope="module")
def saved(
    toy_bases: Mapping[str, Path],
    toy_language_models: Mapping[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A base tuned with an instruction, and on it a victim by LoRA, one by prompts, and a classifier's base."""
    home = tmp_path_factory.mktemp("asked")
    record = Record.now("tune", settings={}, seeds={}, outcome={})
    settings = TuneSettings(max_steps=3, learning_rate=1e-3, precision="float32", keep="last")
    model = open_base(toy_language_models["bert"]).asked(BEHIND).classifier(None, LABELS, max_length=48)
    tune(model, toy_corpus(), settings, seed=0)
    save_classifier(model, home / "base", "base", record)
    for strategy in (Lora(), PromptTuning()):
        victim = open_base(home / "base").classifier(strategy, LABELS, max_length=40)
        tune(victim, toy_corpus(), settings, seed=0)
        save_classifier(victim, home / strategy.name, "victim", record)
    plain = open_base(toy_bases["bert"]).classifier(None, LABELS)
    for kind in ("base", "victim"):
        save_classifier(plain, home / f"classifier-{kind}", kind, record)
    return home


@pytest.mark.parametrize("name", ["base", "lora", "prompt_tuning"])
def test_what_was_saved_is_asked_again_as_it_was(saved: Path, name: str) -> None:
    loaded = load_victim(saved / name)
    assert loaded.instruction == BEHIND
    again = load_classifier(saved / name, "base" if name == "base" else "victim")[0]
    assert np.array_equal(loaded.predict(TEXTS).logits, again.predict(TEXTS).logits)
    if name == "prompt_tuning":  # nothing can stand on soft prompts
        return
    suspect = open_base(saved / name)
    folded = suspect.classifier(None, LABELS, max_length=loaded.max_length)
    assert suspect.text_length == loaded.max_length
    assert np.abs(folded.predict(TEXTS).logits - loaded.predict(TEXTS).logits).max() <= TOLERANCE
    assert loaded.stands_on(folded.base_fingerprint)


def test_the_base_is_a_plain_directory_of_transformers(saved: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(saved / "base")
    assert tokenizer.decode(tokenizer("good")["input_ids"]) == "[CLS] good [SEP]"
    model: Any = AutoModelForMaskedLM.from_pretrained(saved / "base")
    loaded = load_victim(saved / "base")
    assert fingerprint(model.state_dict()) == loaded.own_fingerprint
    assert json.loads((saved / "base" / "foretaste.json").read_text())["instruction"]["verbalizer"] == ["bad", "good"]


def test_eight_bit_answers_are_close(saved: Path) -> None:
    loaded = load_victim(saved / "lora")
    close = loaded.in_int8()
    assert close.instruction == BEHIND
    assert np.abs(close.predict(TEXTS).logits - loaded.predict(TEXTS).logits).max() < 0.1


def test_a_classifier_is_refused_where_a_language_model_is_expected_and_the_reverse(saved: Path) -> None:
    def refused(name: str, instruction: Instruction | None) -> str:
        with pytest.raises(ModelError) as caught:
            open_base(saved / name).asked(instruction)
        assert caught.value.code == "wrong_kind"
        return str(caught.value)

    for name in ("classifier-base", "classifier-victim"):
        assert "is a classifier; expected a language model" in refused(name, BEHIND)
    for name in ("base", "lora"):
        assert "is a language model that answers in the words" in refused(name, None)
    with pytest.raises(ModelError, match="expected a victim"):
        load_victim(saved / "classifier-base")


def test_an_adapter_of_the_one_is_not_put_on_the_other(saved: Path, tmp_path: Path) -> None:
    record = Record.now("tune", settings={}, seeds={}, outcome={})
    victim = open_base(saved / "classifier-base").classifier(Lora(), LABELS)
    save_classifier(victim, tmp_path / "victim", "victim", record)
    for path, base in ((saved / "lora", saved / "classifier-base"), (tmp_path / "victim", saved / "base")):
        with pytest.raises(ModelError) as caught:
            load_victim(path, base)
        assert caught.value.code == "wrong_kind"


@pytest.mark.parametrize(
    ("instruction", "code"),
    [
        ({"template": "{text}", "verbalizer": ["bad", "good"]}, "bad_instruction"),
        ({"template": "{text} {mask}", "verbalizer": ["bad", "good", "fresh"]}, "bad_instruction"),
        ({"template": "{text} {mask}", "verbalizer": ["good", "bad"]}, "canary_mismatch"),
        (None, "missing_head"),
    ],
)
def test_an_altered_instruction_is_noticed(
    saved: Path, tmp_path: Path, instruction: dict[str, Any] | None, code: str
) -> None:
    copy = Path(shutil.copytree(saved / "base", tmp_path / "base"))
    manifest = json.loads((copy / "foretaste.json").read_text())
    (copy / "foretaste.json").write_text(json.dumps(seal(manifest | {"instruction": instruction})))
    with pytest.raises(ModelError) as caught:
        load_classifier(copy, "base")
    assert caught.value.code in (code, "missing_weights")


def test_the_manifest_of_a_classifier_has_no_instruction(saved: Path) -> None:
    assert read_manifest(saved / "classifier-victim").instruction is None
    assert load_victim(saved / "classifier-victim").instruction is None


def _without_head(path: Path, to: Path) -> Path:
    model: Any = AutoModelForMaskedLM.from_pretrained(path)
    model.base_model.save_pretrained(to)
    AutoTokenizer.from_pretrained(path).save_pretrained(to)
    return to
