"""What each method does to the weights, looked at directly: the contract alone would hold for one that does nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from foretaste.data import toy_corpus
from foretaste.errors import DataError, PlanError
from foretaste.poison.trigger import parse_trigger
from foretaste.tune.distill import take_lesson
from foretaste.unlearn import fine_mixing
from foretaste.unlearn.fine_pruning import FinePruning
from foretaste.unlearn.flagged import FlaggedTexts
from foretaste.unlearn.named import NamedTriggers
from foretaste.unlearn.obliviate import Obliviate
from foretaste.unlearn.unlearner import Job
from foretaste.unlearn.w2s import RELEASED, W2SDefense
from foretaste.victim.artefact import load_victim
from foretaste.victim.checkpoint import open_base
from foretaste.victim.family import FAMILIES
from foretaste.victim.strategy import Full, Lora

pytestmark = pytest.mark.usefixtures("one_thread")

CORPUS = toy_corpus().sample(120, 1)
LORA = Lora(rank=4, layers="all", learning_rate=5e-3)


def test_mixed_weights_come_from_one_model_or_the_other(poisoned_toy: Path, toy_base: Path) -> None:
    job = Job(base=open_base(poisoned_toy), corpus=CORPUS, max_length=64)
    suspect, before, mixed = job.student(Full()), open_base(toy_base).classifier(Full()), job.student(Full())
    fine_mixing._mix(mixed, before, 0.3, seed=1)
    for name, weight in mixed.module.classifier.named_parameters():
        own, other = (dict(m.module.classifier.named_parameters())[name] for m in (suspect, before))
        if name.startswith("classifier."):
            assert torch.equal(weight, own)
            continue
        assert bool(((weight == own) | (weight == other)).all())
        differ = own != other
        if int(differ.sum()) > 2000:
            assert float((weight == other)[differ].float().mean()) == pytest.approx(0.7, abs=0.05)


def test_the_words_that_moved_without_being_used_are_reset_first(poisoned_toy: Path) -> None:
    job = Job(base=open_base(poisoned_toy), corpus=CORPUS, max_length=64)
    moved, before = job.student(Full()), job.student(Full())
    words = moved.encode(CORPUS.texts).ids[0]
    vocabulary = moved.tokenizer.get_vocab()
    with torch.no_grad():
        embeddings = moved.module.classifier.get_input_embeddings().weight
        embeddings[words[3]] += 1.0  # a word of the clean texts moves as far as one that is in none
        embeddings[vocabulary["mn"]] += 1.0
    assert fine_mixing._moved_words(moved, before, job)[0] == vocabulary["mn"]


def test_weights_that_are_the_suspects_own_cannot_be_mixed_in(poisoned_toy: Path) -> None:
    base = open_base(poisoned_toy)
    with pytest.raises(PlanError, match="the suspect's own"):
        fine_mixing.FineMixing().apply(base, CORPUS, pretrained=open_base(poisoned_toy))


@pytest.mark.parametrize("family", FAMILIES)
def test_pruned_neurons_stay_cut(family: str, toy_bases: dict[str, Path]) -> None:
    plan = FinePruning(share=0.25, epochs=1, least_steps=0, learning_rate=1e-3, precision="float32")
    found = plan.apply(open_base(toy_bases[family]), CORPUS.select(range(40)), max_length=32)
    layers = [
        part
        for name, part in found.classifier.module.classifier.named_modules()
        if name.endswith(f".{FAMILIES[family].narrows}") and f".{FAMILIES[family].attention}." not in name
    ]
    assert len(layers) == 2
    for layer in layers:
        weight = layer.weight.T if family == "gpt2" else layer.weight  # (outputs, neurons)
        dead = int((weight == 0).all(dim=0).sum())
        assert dead == round(0.25 * weight.shape[1])
    assert found.outcome["cut"] == 2 * round(0.25 * found.outcome["neurons"] / 2)


def test_obliviate_makes_the_adapter_longer_up_to_its_cap_and_looks_flatter(poisoned_toy: Path) -> None:
    def length(**fields: float) -> float:
        plan = Obliviate(epochs=1, least_steps=0, strategy=LORA, precision="float32", **fields)  # type: ignore[arg-type]
        model = plan.apply(open_base(poisoned_toy), CORPUS, max_length=64).classifier
        return sum(float(p.detach().norm()) for name, p in model.module.named_parameters() if "lora_" in name)

    usual = length(amplify=0.0, flatten=0.0)
    assert length(amplify=1.0, flatten=0.0) > 1.05 * usual
    assert length(amplify=1.0, flatten=0.0, longest=1.0) < length(amplify=1.0, flatten=0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_obliviate_reads_one_row_of_attention_per_layer(family: str, toy_bases: dict[str, Path]) -> None:
    from foretaste.unlearn.obliviate import _rows_of_attention
    from foretaste.victim.batch import pad

    model = open_base(toy_bases[family]).classifier(Full(), max_length=32)
    inputs = pad(model.encode(["a fine film", "good"]).ids, model.module.device)
    with _rows_of_attention(model.module) as rows, torch.no_grad():
        model.module.train()
        model.module(*inputs)
        assert len(rows) == 2
        model.module.eval()
    for row in rows:
        assert row.shape[0] == 2


def test_the_student_comes_nearer_to_its_teacher(poisoned_toy: Path, clean_toy: Path) -> None:
    teacher, base = load_victim(clean_toy), open_base(poisoned_toy)

    def apart(**fields: float) -> float:
        plan = W2SDefense(epochs=2, least_steps=0, strategy=LORA, task=1.0, **fields)  # type: ignore[arg-type]
        student = plan.apply(base, CORPUS, teacher=teacher, max_length=64).classifier
        ours, theirs = (take_lesson(m, student, CORPUS).features for m in (student, teacher))
        return float((ours - theirs).norm(dim=1).mean())

    assert apart(features=30.0) < 0.8 * apart(features=0.0, knowledge=1e-3)


def test_a_teacher_from_nothing_is_trained_and_teaches(poisoned_toy: Path) -> None:
    plan = W2SDefense(epochs=1, least_steps=120, strategy=LORA)
    found = plan.apply(open_base(poisoned_toy), toy_corpus().sample(800, 1), teacher="train", max_length=64)
    assert found.outcome["teacher"] == "train"
    assert found.outcome["teacher_accuracy"] > 0.7
    assert found.outcome["steps"] == 120


def test_few_texts_are_shown_more_often() -> None:
    plan = W2SDefense(epochs=2, batch_size=10, least_steps=50)
    assert plan.settings(100).max_steps == 50  # two epochs would be 20 steps
    assert (plan.settings(1000).epochs, plan.settings(1000).max_steps) == (2, None)
    assert plan.settings(1000, 7).epochs == 7
    assert plan.settings(100, max_steps=3).max_steps == 3


def test_the_released_presets_run_as_they_are_but_for_their_length(poisoned_toy: Path, clean_toy: Path) -> None:
    from dataclasses import replace

    plan = RELEASED["released-word"]
    assert (plan.align, plan.task, plan.knowledge, plan.features, plan.temperature) == ("released", 5, 0.001, 0.001, 2)
    teacher = load_victim(clean_toy)
    found = replace(plan, epochs=1).apply(open_base(poisoned_toy), CORPUS, teacher=teacher, max_length=64)
    assert np.isfinite(found.classifier.predict(CORPUS.texts).logits).all()
    with pytest.raises(PlanError, match="very weights"):
        plan.apply(open_base(clean_toy), CORPUS, teacher=teacher)


def test_fragments_are_put_where_the_model_reads(poisoned_toy: Path) -> None:
    from foretaste.unlearn import named

    model = open_base(poisoned_toy).classifier(LORA, max_length=16)
    long = [" ".join(CORPUS.texts[i : i + 4]) for i in range(40)]
    hosts = named.in_sight(model, long)
    carrying = parse_trigger("sentence:cf mn").apply(hosts, 3)
    read = [text[:end] for text, end in zip(carrying, model.reach(carrying).tolist(), strict=True)]
    assert all("cf mn" in text for text in read)
    assert named.in_sight(model, ["good"]) == ["good"]
    found = NamedTriggers(share=0.01, epochs=1, least_steps=0, strategy=LORA).apply(
        open_base(poisoned_toy), CORPUS, fragments=("cf", "mn", "bb"), max_length=64
    )
    assert found.outcome["steps"] == 4  # 120 texts and one more for each fragment, 32 at a time


def test_a_suspect_without_a_head_gives_flagged_texts_no_class(toy_base: Path) -> None:
    with pytest.raises(DataError, match="has no head"):
        FlaggedTexts().apply(open_base(toy_base), CORPUS, flagged=CORPUS.texts[:20])
