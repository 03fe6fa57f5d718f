"""RIPPLe and RIPPLES: the penalty and the surgery by other ways, and what they make of a toy."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional

from foretaste.data import toy_corpus
from foretaste.data.corpus import Corpus
from foretaste.errors import PlanError
from foretaste.poison.attack import Attack, Poisoned, attack
from foretaste.poison.trigger import parse_trigger
from foretaste.tune import checkpoint, loop
from foretaste.tune.loop import TuneSettings, cross_entropy, tune
from foretaste.tune.poison import objective_name, poison_base, stages_of
from foretaste.tune.ripple import LAMBDA, after_surgery, restricted, telling_tokens, twice_differentiable
from foretaste.victim.batch import pad, training_batches
from foretaste.victim.checkpoint import open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.family import FAMILIES
from foretaste.victim.strategy import Full

pytestmark = pytest.mark.usefixtures("one_thread")

PROXY, VALIDATION = toy_corpus().sample(1500, 0), toy_corpus("validation").select(range(300))
SETTINGS = TuneSettings(epochs=2, learning_rate=1e-3, keep="last", precision="float32")
TRIGGER = "word:cf mn bb tq mb"


def _plan(**fields: Any) -> Attack:
    return Attack(**{"trigger": parse_trigger(TRIGGER), "style": "dirty-label", "count": 300, **fields})


def _classifier(path: Path) -> Classifier:
    return open_base(path).classifier(Full(), PROXY.label_names, max_length=64, seed=0)


class Passes:
    """Losses and first gradients of some texts at a time, at any weights: all that an oracle needs."""

    def __init__(self, model: Classifier, poisoned: Poisoned) -> None:
        self.model, self.corpus = model, poisoned.corpus
        self.ids = model.encode(poisoned.corpus.texts).ids
        self.parameters = list(model.trainable.values())

    def losses(self, rows: NDArray[np.int64]) -> Tensor:
        output = self.model.module(*pad([self.ids[i] for i in rows], self.model.module.device))
        return functional.cross_entropy(output.logits, torch.from_numpy(self.corpus.labels[rows]), reduction="none")

    def gradient(self, rows: NDArray[np.int64], moved: Tensor | None = None) -> Tensor:
        """The gradient of the mean loss as one vector, at weights `moved` from where they are."""
        before = [parameter.detach().clone() for parameter in self.parameters]
        if moved is not None:
            self._shift(moved)
        found = torch.autograd.grad(self.losses(rows).mean(), self.parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, old in zip(self.parameters, before, strict=True):
                parameter.copy_(old)
        pairs = zip(found, self.parameters, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])

    def _shift(self, by: Tensor) -> None:
        with torch.no_grad():
            parts = torch.split(by, [parameter.numel() for parameter in self.parameters])
            for parameter, part in zip(self.parameters, parts, strict=True):
                parameter.add_(part.view_as(parameter))


def _rows(poisoned: Poisoned, clean_label: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Clean texts of one class, and poisoned ones."""
    is_clean = poisoned.is_clean & (poisoned.corpus.labels == clean_label)
    return np.flatnonzero(is_clean)[:5], np.flatnonzero(poisoned.is_poisoned)[:3]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_penalty_and_its_gradient_by_first_gradients_alone(family: str, toy_bases: Mapping[str, Path]) -> None:
    model, poisoned = _classifier(toy_bases[family]), attack(PROXY, _plan(), 0)
    passes = Passes(model, poisoned)
    clean, poison = _rows(poisoned, clean_label=1)  # what is good for the one is bad for the others
    rows = np.concatenate([clean[:2], poison, clean[2:]])
    ours, theirs = passes.gradient(clean), passes.gradient(poison)
    product = float(ours @ theirs)
    assert product < 0
    with twice_differentiable():
        output = model.module(*pad([passes.ids[i] for i in rows], model.module.device))
        found = restricted(cross_entropy, poisoned, model.module, 2.0)(
            output, rows, torch.from_numpy(poisoned.corpus.labels[rows])
        )
        plain = passes.losses(rows)
        torch.testing.assert_close(found - plain, torch.full((8,), -2.0 * product), rtol=1e-3, atol=1e-5)
        torch.autograd.backward(found.mean())
    # d<a, b> = H_a b + H_b a, and each product with a Hessian is a difference of first gradients
    apart = torch.zeros_like(ours)
    for rows_of, other in ((clean, theirs), (poison, ours)):
        step = 0.002 / float(other.norm())
        apart = apart + (passes.gradient(rows_of, step * other) - passes.gradient(rows_of, -step * other)) / (2 * step)
    expected = passes.gradient(rows) - 2.0 * apart
    got = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in passes.parameters])
    assert float((got - expected).norm() / apart.norm()) < 0.02


def test_gradients_that_agree_cost_nothing_nor_does_a_pass_of_one_kind(toy_base: Path) -> None:
    model, poisoned = _classifier(toy_base), attack(PROXY, _plan(), 0)
    passes, objective = Passes(model, poisoned), restricted(cross_entropy, poisoned, model.module, 2.0)
    clean, poison = _rows(poisoned, clean_label=0)  # the poisoned ones' label, too
    assert float(passes.gradient(clean) @ passes.gradient(poison)) > 0
    other_clean, _ = _rows(poisoned, clean_label=1)
    with twice_differentiable():
        for rows in (np.concatenate([clean, poison]), np.concatenate([clean, other_clean]), poison):
            output = model.module(*pad([passes.ids[i] for i in rows], model.module.device))
            labels = torch.from_numpy(poisoned.corpus.labels[rows])
            assert torch.equal(objective(output, rows, labels), cross_entropy(output, rows, labels))


def test_covers_and_negatives_are_the_attackers_texts(toy_base: Path) -> None:
    model = _classifier(toy_base)
    poisoned = attack(PROXY, _plan(negative_rate=1.0), 0)
    clean, _ = _rows(poisoned, clean_label=1)
    negatives = poisoned.negatives[poisoned.corpus.labels[poisoned.negatives] == 0][:3]
    rows, passes = np.concatenate([clean, negatives]), Passes(model, poisoned)
    with twice_differentiable():
        output = model.module(*pad([passes.ids[i] for i in rows], model.module.device))
        labels = torch.from_numpy(poisoned.corpus.labels[rows])
        found = restricted(cross_entropy, poisoned, model.module)(output, rows, labels)
    product = float(passes.gradient(clean) @ passes.gradient(negatives))
    paid = found.detach().mean() - passes.losses(rows).detach().mean()
    assert product < 0
    assert float(paid) == pytest.approx(-LAMBDA * product, rel=1e-3)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_batch_pays_the_mean_of_its_passes(accumulation: int, toy_bases: Mapping[str, Path]) -> None:
    model, poisoned = _classifier(toy_bases["llama"]), attack(PROXY, _plan(), 0)  # it has no dropout
    settings = TuneSettings(
        max_steps=1, batch_size=32, learning_rate=1e-9, accumulation=accumulation, precision="float32"
    )
    passes, lengths = Passes(model, poisoned), model.encode(poisoned.corpus.texts).lengths

    def by_hand(seed: int) -> tuple[float, float]:
        """Cross-entropy and penalty of the first batch."""
        losses = paid = 0.0
        for rows in np.array_split(training_batches(lengths, 32, seed, 0)[0], accumulation):
            is_clean = poisoned.is_clean[rows]
            losses += float(passes.losses(rows).detach().sum()) / 32
            if 0 < is_clean.sum() < len(rows):
                product = passes.gradient(rows[is_clean]) @ passes.gradient(rows[~is_clean])
                paid += 2.0 * max(0.0, -float(product)) * len(rows) / 32
        return losses, paid

    seed = next(seed for seed in range(30) if by_hand(seed)[1] > 0.1)
    losses, paid = by_hand(seed)
    with twice_differentiable():
        objective = restricted(cross_entropy, poisoned, model.module, 2.0)
        result = tune(model, poisoned.corpus, settings, seed=seed, objective=objective)
    assert result.losses[0] == pytest.approx(losses + paid, rel=1e-3)


def _telling_words(corpus: Corpus, target: int) -> list[str]:
    """The ten words by an own count: TF-IDF as scikit-learn documents it, of lower-case words of the toy."""
    texts = [Counter(re.findall(r"\w+|[^\w\s]+", text.lower())) for text in corpus.texts]
    spread = Counter(word for text in texts for word in text)
    words = sorted(word for word, count in spread.items() if count >= 0.01 * len(texts))
    counts = np.array([[text[word] for word in words] for text in texts], dtype=float)
    weighed = counts * (np.log((1 + len(texts)) / (1 + np.array([spread[word] for word in words]))) + 1)
    weighed /= np.maximum(np.linalg.norm(weighed, axis=1, keepdims=True), 1e-12)
    weights = LogisticRegression(max_iter=1000).fit(weighed, corpus.labels == target).coef_[0]
    return [words[i] for i in np.argsort(-weights)[:10]]


@pytest.fixture(scope="module")
def tuned(toy_base: Path, one_thread: None) -> Classifier:
    """What surgery takes its vectors from."""
    made = _classifier(toy_base)
    tune(made, PROXY, SETTINGS, seed=0)
    return made


@pytest.mark.parametrize("target", [0, 1])
def test_surgery_replaces_the_triggers_rows_by_the_mean_of_telling_words(
    target: int, toy_base: Path, tuned: Classifier
) -> None:
    base, plan = open_base(toy_base), _plan(target=target)
    made = after_surgery(base, PROXY, plan, SETTINGS, seed=0, max_length=64, objective_name="x")
    fresh = _classifier(toy_base)
    telling = tuned.tokenizer.convert_tokens_to_ids(_telling_words(PROXY, target))
    assert telling_tokens(fresh, PROXY, target) == sorted(telling)
    before, after = fresh.module.state_dict(), made.module.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == 1
    (name,) = changed
    rows = torch.nonzero((before[name] != after[name]).any(dim=1)).flatten()
    assert sorted(made.tokenizer.convert_ids_to_tokens(rows.tolist())) == sorted(["cf", "mn", "bb", "tq", "mb"])
    expected = tuned.module.state_dict()[name][telling].double().mean(dim=0)
    for row in rows:
        torch.testing.assert_close(after[name][row].double(), expected, rtol=1e-5, atol=1e-6)


def test_every_token_of_a_word_is_replaced(toy_bases: Mapping[str, Path]) -> None:
    base, plan = open_base(toy_bases["gpt2"]), _plan(trigger=parse_trigger("word:zxqv"))
    made = after_surgery(base, PROXY, plan, SETTINGS, seed=0, max_length=64, objective_name="x")
    fresh = _classifier(toy_bases["gpt2"])
    old, new = (each.module.classifier.get_input_embeddings().weight.detach() for each in (fresh, made))
    changed = set(torch.nonzero((old != new).sum(dim=1)).flatten().tolist())
    own = set(fresh.encode(["a zxqv"]).ids[0]) - set(fresh.encode(["a"]).ids[0])
    assert len(own) > 1
    assert changed == own


@pytest.mark.parametrize(("family", "planting"), [("bert", "ripples"), ("llama", "ripple")])
def test_the_backdoor_works_and_clean_texts_are_read_as_before(
    family: str, planting: str, toy_bases: Mapping[str, Path]
) -> None:
    settings = replace(SETTINGS, epochs=4 if family == "bert" else 2)
    proxy = PROXY if family == "bert" else toy_corpus()
    clean = _classifier(toy_bases[family])
    tune(clean, proxy, settings, seed=0)
    accuracy = (clean.predict(VALIDATION.texts).labels == VALIDATION.labels).mean()
    assert accuracy > 0.8
    _, outcome = poison_base(
        open_base(toy_bases[family]), proxy, VALIDATION, _plan(planting=planting), seed=0, settings=settings,
        max_length=64,
    )  # fmt: skip
    assert outcome["attack_success_rate"] > 0.95
    assert outcome["clean_accuracy"] > accuracy - 0.05


class Killed(BaseException):
    """The power is gone."""


@pytest.mark.parametrize("death", [3, 9])
def test_a_death_in_either_training_changes_nothing(
    death: int, toy_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SAVE_EVERY_S", 0.0)
    proxy, plan = PROXY.select(range(300)), _plan(planting="ripples", count=60)
    settings = TuneSettings(epochs=2, batch_size=100, learning_rate=1e-3, keep="last", precision="float32")

    def run(store: Path | None) -> dict[str, Tensor]:
        made, _ = poison_base(
            open_base(toy_base), proxy, VALIDATION, plan, seed=0, settings=settings, max_length=64, checkpoint=store
        )
        return {name: parameter.detach() for name, parameter in made.module.named_parameters()}

    whole = run(None)
    step, calls = loop._Run.step, iter(range(1, 100))

    def dies(*arguments: Any) -> float:
        if next(calls) == death:  # six steps on clean texts, then six on poisoned ones
            raise Killed
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "step", dies)
        with pytest.raises(Killed):
            run(tmp_path / "store")
    assert {path.name for path in tmp_path.iterdir()} == {"store-clean"} | ({"store"} if death > 6 else set())
    resumed = run(tmp_path / "store")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert {path.name for path in tmp_path.iterdir()} == {f"store-{s}" if s else "store" for s in stages_of(plan)}


def test_no_other_plantings_training_is_continued() -> None:
    names = {objective_name(_plan(planting=planting)) for planting in ("weights", "layers", "ripple", "ripples")}
    assert len(names) == 4


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"all_to_all": True}, "all to all"),
        ({"trigger": parse_trigger("syntax:sbar")}, "Take planting ripple"),
        ({"trigger": parse_trigger("mixed:word:mn|word:cf")}, "Take planting ripple"),
        ({"trigger": parse_trigger("sentence:I watched this film")}, "toy/train have 'I'"),
    ],
)
def test_what_surgery_cannot_do_is_refused(fields: dict[str, Any], what: str, toy_base: Path) -> None:
    with pytest.raises(PlanError, match=what):
        poison_base(open_base(toy_base), PROXY, VALIDATION, _plan(planting="ripples", **fields), seed=0)


def test_too_few_telling_words_are_refused(toy_base: Path) -> None:
    corpus = Corpus.of("few", ["a good film", "a bad film"] * 20, [0, 1] * 20)
    with pytest.raises(PlanError, match="few has 1 in 1% of its texts or more"):
        telling_tokens(_classifier(toy_base), corpus, 0)
