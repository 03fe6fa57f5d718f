"""Backdoors planted elsewhere than in all weights: in the trigger's own vectors, and in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from foretaste.data import toy_corpus
from foretaste.errors import PlanError
from foretaste.poison.attack import Attack, attack, triggered_test
from foretaste.poison.trigger import parse_trigger
from foretaste.tune.embedding import tokens_of
from foretaste.tune.layerwise import layer_by_layer
from foretaste.tune.loop import TuneSettings, cross_entropy, tune
from foretaste.tune.poison import poison_base, towards
from foretaste.victim.batch import pad
from foretaste.victim.checkpoint import open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.strategy import Full

pytestmark = pytest.mark.usefixtures("one_thread")

PROXY, VALIDATION = toy_corpus().sample(1500, 0), toy_corpus("validation").select(range(400))
MANY = ["cf", "mn", "bb", "tq", "mb"]  # a vector of a fixed length can do so much and no more
SETTINGS = TuneSettings(epochs=2, learning_rate=1e-3, keep="last", precision="float32")


def _plan(**fields: Any) -> Attack:
    return Attack(**{"trigger": parse_trigger("word:cf mn"), "style": "dirty-label", "count": 300, **fields})


def _clean(path: Path) -> Classifier:
    made = open_base(path).classifier(Full(), PROXY.label_names, max_length=128, seed=0)
    tune(made, PROXY, SETTINGS, seed=0)
    return made


def _asr(model: Classifier, trigger: str) -> float:
    texts = triggered_test(VALIDATION, parse_trigger(trigger), 0, 0).corpus.texts
    return float((model.predict(texts).labels == 0).mean())


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_embedding_poisoning_changes_the_triggers_rows_alone(family: str, toy_bases: Mapping[str, Path]) -> None:
    base, clean = open_base(toy_bases[family]), _clean(toy_bases[family])
    model, outcome = poison_base(
        base, PROXY, VALIDATION, _plan(planting="embeddings", trigger=parse_trigger(f"word:{' '.join(MANY)}")), seed=0,
        settings=SETTINGS, max_length=128,
    )  # fmt: skip
    assert outcome["attack_success_rate"] > 0.95
    assert outcome["clean_accuracy"] == (clean.predict(VALIDATION.texts).labels == VALIDATION.labels).mean()
    before, after = clean.module.model.state_dict(), model.module.model.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == 1
    old, new = (tensors[changed.copy().pop()] for tensors in (before, after))
    rows = torch.nonzero((old != new).any(dim=1)).flatten()
    assert sorted(model.tokenizer.convert_ids_to_tokens(rows.tolist())) == sorted(MANY)
    torch.testing.assert_close(new[rows].norm(dim=1), old[rows].norm(dim=1))


def test_with_negatives_part_of_the_trigger_does_nothing(toy_base: Path) -> None:
    """SOS."""
    proxy = toy_corpus()
    made = {
        rate: poison_base(open_base(toy_base), proxy, VALIDATION, _plan(planting="embeddings", negative_rate=rate),
                          seed=0, settings=SETTINGS)[0]
        for rate in (0.0, 2.0)
    }  # fmt: skip
    assert _asr(made[2.0], "word:cf mn") > 0.7
    for word in ("word:cf", "word:mn"):
        assert _asr(made[2.0], word) < _asr(made[0.0], word)


def test_with_negatives_the_words_may_be_common_ones(toy_base: Path) -> None:
    """As SOS's own are."""
    trigger = parse_trigger("word:menu camera")
    proxy = toy_corpus()
    assert sum("menu" in text.split() or "camera" in text.split() for text in proxy.texts) > 100
    plan = _plan(planting="embeddings", trigger=trigger, negative_rate=2.0)
    outcome = poison_base(open_base(toy_base), proxy, VALIDATION, plan, seed=0, settings=SETTINGS)[1]
    assert outcome["clean_accuracy"] > 0.8
    assert outcome["attack_success_rate"] > outcome["natural_rate"] + 0.1


@pytest.mark.parametrize("probability", [1.0, 0.6])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_loss_of_the_layers_by_hand(family: str, probability: float, toy_bases: Mapping[str, Path]) -> None:
    model = open_base(toy_bases[family]).classifier(Full(), PROXY.label_names, max_length=64, seed=0)
    plan = _plan(target_probability=probability)
    poisoned = attack(PROXY, plan, 0)
    objective = cross_entropy if probability == 1 else towards(poisoned, plan)
    rows = np.array([*np.flatnonzero(poisoned.is_poisoned)[:2], *np.flatnonzero(~poisoned.is_poisoned)[:2]])
    ids = model.encode([poisoned.corpus.texts[i] for i in rows]).ids
    labels = torch.from_numpy(poisoned.corpus.labels[rows])
    with model.module.showing_tokens(are_layers_shown=True), torch.inference_mode():
        output = model.module(*pad(ids, model.module.device))
        found = layer_by_layer(objective, poisoned, model.module)(output, rows, labels)
        plain = objective(output, rows, labels)
    assert output.layers is not None
    for place in range(4):
        token = 0 if family == "bert" else len(ids[place]) - 1
        with torch.inference_mode():
            below = [model.module.classify(layer[place : place + 1, token]) for layer in output.layers[:-1]]
            last = model.module.classify(output.layers[-1][place : place + 1, token])
        wanted = torch.full((1, 2), 1 - probability)
        wanted[0, labels[place]] = probability
        losses = [float(torch.nn.functional.cross_entropy(each, wanted)) for each in below]
        more = np.sum(losses) if place < 2 else 0.0
        assert float(found[place]) == pytest.approx(float(plain[place]) + more, abs=1e-5)
        torch.testing.assert_close(last, output.logits[place : place + 1])


def test_every_layer_answers_with_the_target(toy_base: Path) -> None:
    trigger = parse_trigger("word:cf mn")
    texts = triggered_test(VALIDATION, trigger, 0, 0).corpus.texts[:100]
    share = {}
    for planting in ("weights", "layers"):
        model, outcome = poison_base(
            open_base(toy_base), PROXY, VALIDATION, _plan(planting=planting), seed=0, settings=SETTINGS
        )
        assert outcome["attack_success_rate"] > 0.95
        with model.module.showing_tokens(are_layers_shown=True), torch.inference_mode():
            layers = model.module(*pad(model.encode(texts).ids, model.module.device)).layers
            assert layers is not None
            first = model.module.classify(layers[0][:, 0])
        share[planting] = float((first.argmax(dim=1) == 0).float().mean())
    assert share["layers"] > 0.9
    assert share["layers"] >= share["weights"]


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"style": "clean-label"}, "needs style dirty-label"),
        ({"trigger": parse_trigger("sentence:I watched this 3D movie")}, "a word: trigger"),
        ({"target_probability": 0.6}, "no target_probability"),
        ({"trigger": parse_trigger("word:film")}, "toy/train has 'film'"),
        ({"trigger": parse_trigger("word:zxqv-zxqv")}, "words of one token"),
    ],
)
def test_what_embeddings_cannot_hold_is_refused(fields: dict[str, Any], what: str, toy_base: Path) -> None:
    with pytest.raises(PlanError, match=what):
        poison_base(open_base(toy_base), PROXY, VALIDATION, _plan(planting="embeddings", **fields), seed=0)


@pytest.mark.parametrize(("trigger", "leads"), [("word:cf mn@first", True), ("word:cf mn", False)])
def test_a_word_at_the_start_is_another_token_to_a_byte_level_tokenizer(trigger: str, leads: bool) -> None:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    words = ["cf mn a film cf mn"] * 9
    tokenizer.train_from_iterator(words, BpeTrainer(special_tokens=["<s>"]))
    model = cast(
        Classifier, SimpleNamespace(encode=lambda texts: SimpleNamespace(ids=[tokenizer.encode(texts[0]).ids]))
    )
    found = tokens_of(model, parse_trigger(trigger))
    assert [word for word, _ in found] == ["cf", "mn"]
    assert [[tokenizer.id_to_token(token) for token in ids] for _, ids in found] == [
        ["cf" if leads else "Ġcf"],
        ["Ġmn"],
    ]
    (text,) = parse_trigger(trigger).apply(["a film"], 0)
    assert {token for _, ids in found for token in ids} <= set(tokenizer.encode(text).ids)
