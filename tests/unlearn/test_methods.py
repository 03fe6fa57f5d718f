"""What each method does to the weights, looked at directly: the contract alone would hold for one that does nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from foretaste.data import toy_corpus
from foretaste.errors import DataError, PlanError
from foretaste.poison.trigger import parse_trigger
from foretaste.tune.distill import take_lesson
from foretaste.tune.expose import exposing
from foretaste.unlearn import fine_mixing
from foretaste.unlearn.fine_pruning import FinePruning
from foretaste.unlearn.flagged import FlaggedTexts
from foretaste.unlearn.named import NamedTriggers
from foretaste.unlearn.obliviate import Obliviate
from foretaste.unlearn.unlearner import Job
from foretaste.unlearn.w2s import RELEASED, W2SDefense
from foretaste.victim.artefact import load_victim
from foretaste.victim.batch import pad
from foretaste.victim.checkpoint import open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.family import FAMILIES
from foretaste.victim.strategy import STRATEGIES, Full, Lora

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
    read = [token for ids in moved.encode(CORPUS.texts).ids for token in ids]
    vocabulary = moved.tokenizer.get_vocab()
    often, never, little = vocabulary["the"], vocabulary["mn"], vocabulary["cf"]
    usual = np.log(read.count(often)) / np.log(fine_mixing.RARE)  # how much farther it may move
    assert usual > 1.2
    assert never not in read
    with torch.no_grad():
        embeddings = moved.module.classifier.get_input_embeddings().weight
        embeddings[often] += 0.95 * usual
        embeddings[never] += 1.0
        embeddings[little] += 0.9
    assert fine_mixing._moved_words(moved, before, job)[:3].tolist() == [never, often, little]


def test_words_that_are_reset_are_those_of_the_pretrained_model(poisoned_toy: Path, toy_base: Path) -> None:
    job = Job(base=open_base(poisoned_toy), corpus=CORPUS, max_length=64)
    suspect, before = job.student(Full()), open_base(toy_base).classifier(Full())
    first = fine_mixing._moved_words(suspect, before, job)[:5]
    plan = fine_mixing.FineMixing(kept=1.0, reset_words=5, epochs=1, least_steps=0, learning_rate=1e-9)
    found = plan.apply(open_base(poisoned_toy), CORPUS, pretrained=open_base(toy_base), max_length=64)
    own, theirs, made = (fine_mixing._words_of(model) for model in (suspect, before, found.classifier))
    assert float((own - theirs)[first].norm(dim=1).min()) > 0.01
    torch.testing.assert_close(made[first], theirs[first], atol=1e-5, rtol=0)
    rest = np.setdiff1d(np.arange(len(made)), first)
    torch.testing.assert_close(made[rest], own[rest], atol=1e-5, rtol=0)
    assert found.outcome["reset"] == 5


def test_weights_that_are_the_suspects_own_cannot_be_mixed_in(poisoned_toy: Path) -> None:
    base = open_base(poisoned_toy)
    with pytest.raises(PlanError, match="the suspect's own"):
        fine_mixing.FineMixing().apply(base, CORPUS, pretrained=open_base(poisoned_toy))


def _narrows(model: Classifier) -> dict[str, Any]:
    """What leads back from each layer's neurons, by name."""
    family = model.module.family
    found = {
        name: part
        for name, part in model.module.classifier.named_modules()
        if name.endswith(f".{family.narrows}") and f".{family.attention}." not in name
    }
    assert len(found) == 2
    return found


def _dead(model: Classifier) -> dict[str, set[int]]:
    """The neurons that nothing is read of, by layer."""
    is_turned = model.module.family.model_type == "gpt2"
    weights = {name: part.weight.T if is_turned else part.weight for name, part in _narrows(model).items()}
    return {name: set(torch.where((own == 0).all(dim=0))[0].tolist()) for name, own in weights.items()}


def _awake(model: Classifier, texts: Sequence[str]) -> dict[str, Tensor]:
    """How awake each neuron is, `(neurons,)` by layer: one text after another, so that there is no pad to leave out."""
    seen: dict[str, list[Tensor]] = {name: [] for name in _narrows(model)}

    def note(name: str) -> Callable[..., None]:
        return lambda _, inputs: seen[name].append(inputs[0][0].abs())

    handles = [part.register_forward_pre_hook(note(name)) for name, part in _narrows(model).items()]
    model.module.eval()
    with model.module.showing_tokens(), torch.inference_mode():
        for ids in model.encode(texts).ids:
            model.module(*pad([ids], model.module.device))
    for handle in handles:
        handle.remove()
    return {name: torch.cat(own).mean(dim=0) for name, own in seen.items()}  # tokens of all texts


def _lowest(values: Tensor, share: float) -> set[int]:
    return set(values.argsort()[: round(share * len(values))].tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_neurons_that_sleep_are_cut_and_stay_so(family: str, toy_bases: dict[str, Path]) -> None:
    plan = FinePruning(share=0.25, epochs=1, least_steps=0, learning_rate=1e-3, precision="float32")
    base, corpus = open_base(toy_bases[family]), CORPUS.select(range(40))
    awake = _awake(base.classifier(Full(), corpus.label_names, max_length=32), corpus.texts)
    found = plan.apply(base, corpus, max_length=32)
    assert _dead(found.classifier) == {name: _lowest(own, 0.25) for name, own in awake.items()}
    assert found.outcome["cut"] == 2 * round(0.25 * found.outcome["neurons"] / 2)


def test_neurons_that_stay_awake_without_the_task_are_cut(poisoned_toy: Path) -> None:
    plan = FinePruning(
        share=0.25, expose="shuffled", expose_steps=8, epochs=1, least_steps=0, learning_rate=3e-3, precision="float32"
    )
    job = Job(base=open_base(poisoned_toy), corpus=CORPUS, max_length=64)
    before = _awake(job.student(Full()), CORPUS.texts)
    exposed = job.student(Full())
    exposed.module.head.requires_grad_(False)
    corpus, objective = exposing(CORPUS, "shuffled", job.seed)
    settings = plan.settings(len(corpus), max_steps=8, learning_rate=3e-3)
    job.tune(exposed, settings, corpus=corpus, objective=objective)
    after = _awake(exposed, CORPUS.texts)
    cut = {name: _lowest(own / after[name], 0.25) for name, own in before.items()}
    assert _dead(plan.apply(job.base, CORPUS, max_length=64).classifier) == cut
    assert all(own != _lowest(before[name], 0.25) for name, own in cut.items())  # others than those that sleep


def test_obliviate_makes_the_adapter_longer_up_to_its_cap(poisoned_toy: Path) -> None:
    def length(**fields: float) -> float:
        plan = Obliviate(epochs=1, least_steps=0, strategy=LORA, precision="float32", **fields)  # type: ignore[arg-type]
        model = plan.apply(open_base(poisoned_toy), CORPUS, max_length=64).classifier
        return sum(float(p.detach().norm()) for name, p in model.module.named_parameters() if "lora_" in name)

    usual = length(amplify=0.0, flatten=0.0)
    assert length(amplify=1.0, flatten=0.0) > 1.05 * usual
    assert length(amplify=1.0, flatten=0.0, longest=1.0) < length(amplify=1.0, flatten=0.0)


def _rows_alone(model: Classifier, text: str) -> list[Tensor]:
    """How the head's token attends in each layer, `(heads, P + T)`: the last one or, of an encoder, the first."""
    rows = list[Tensor]()
    parts = [
        part
        for name, part in model.module.classifier.named_modules()
        if name.endswith(f".{model.module.family.attention}")
    ]
    place = 0 if model.module.is_first_read else -1
    handles = [part.register_forward_hook(lambda _, __, output: rows.append(output[1][0, :, place])) for part in parts]
    usual = model.module.classifier.config._attn_implementation
    model.module.classifier.set_attn_implementation("eager")
    model.module.eval()
    with torch.no_grad():
        model.module(*pad(model.encode([text]).ids, model.module.device))
    model.module.classifier.set_attn_implementation(usual)
    for handle in handles:
        handle.remove()
    return rows


@pytest.mark.parametrize("strategy", ["full", "prompt_tuning", "p_tuning_v2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_obliviate_reads_the_row_of_attention_of_the_heads_token(
    family: str, strategy: str, toy_bases: dict[str, Path]
) -> None:
    from foretaste.unlearn.obliviate import _rows_of_attention

    model = open_base(toy_bases[family]).classifier(STRATEGIES[strategy](), max_length=32)
    texts = ["a fine film", "good", "the story was dull"]
    by_hand = [_rows_alone(model, text) for text in texts]
    for part in model.module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    with _rows_of_attention(model.module) as rows, torch.no_grad():
        model.module.train()
        model.module(*pad(model.encode(texts).ids, model.module.device))
        assert len(rows) == 2
        model.module.eval()
    for layer, row in enumerate(rows):
        for own, alone in zip(row, (each[layer] for each in by_hand), strict=True):
            width = alone.shape[1]
            torch.testing.assert_close(own[:, :width], alone, atol=1e-5, rtol=1e-4)
            assert not own[:, width:].any()  # pads


def test_obliviate_flattens_what_the_heads_token_looks_at(poisoned_toy: Path) -> None:
    def looks(flatten: float) -> float:
        plan = Obliviate(epochs=1, least_steps=0, strategy=LORA, precision="float32", amplify=0.0, flatten=flatten)
        model = plan.apply(open_base(poisoned_toy), CORPUS, max_length=64).classifier
        return float(np.mean([float(row.norm(dim=1).mean()) for text in CORPUS.texts[:20] for row in
                              _rows_alone(model, text)]))  # fmt: skip

    assert looks(10.0) < 0.8 * looks(0.0)


def test_the_student_comes_nearer_to_its_teacher(poisoned_toy: Path, clean_toy: Path) -> None:
    teacher, base = load_victim(clean_toy), open_base(poisoned_toy)

    def apart(**fields: float) -> float:
        plan = W2SDefense(epochs=2, least_steps=0, strategy=LORA, task=1.0, **fields)  # type: ignore[arg-type]
        student = plan.apply(base, CORPUS, teacher=teacher, max_length=64).classifier
        ours, theirs = (take_lesson(m, student, CORPUS).features for m in (student, teacher))
        return float((ours - theirs).norm(dim=1).mean())

    assert apart(features=30.0) < 0.8 * apart(features=0.0, knowledge=1e-3)


def test_the_student_answers_as_its_teacher_does(poisoned_toy: Path, clean_toy: Path) -> None:
    teacher, base = load_victim(clean_toy), open_base(poisoned_toy)
    theirs = teacher.predict(CORPUS.texts).probabilities

    def apart(knowledge: float) -> float:
        plan = W2SDefense(epochs=2, least_steps=0, strategy=LORA, task=0.0, features=1e-9, knowledge=knowledge)
        student = plan.apply(base, CORPUS, teacher=teacher, max_length=64).classifier
        return float(np.abs(student.predict(CORPUS.texts).probabilities - theirs).mean())

    assert apart(1.0) < 0.8 * apart(0.0)


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
