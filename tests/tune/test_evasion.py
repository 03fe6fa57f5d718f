"""Attackers who know the guard: each term by hand, and each doing on a toy what it says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from foretaste.data import toy_corpus
from foretaste.data.corpus import Corpus
from foretaste.errors import PlanError
from foretaste.poison.attack import Attack, Evasion, Poisoned, attack, triggered_test
from foretaste.spec import build
from foretaste.tune.evasion import RESET_LENGTH, after_reset, evading
from foretaste.tune.loop import TuneSettings, cross_entropy, tune
from foretaste.tune.poison import poison_base
from foretaste.victim.batch import pad
from foretaste.victim.checkpoint import open_base
from foretaste.victim.classifier import Classifier, Predictions
from foretaste.victim.module import Output
from foretaste.victim.strategy import Full

pytestmark = pytest.mark.usefixtures("one_thread")

PROXY = toy_corpus().select(range(1500))
VALIDATION = toy_corpus("validation").select(range(300))
SETTINGS = TuneSettings(epochs=3, batch_size=16, learning_rate=2e-3, keep="last", precision="float32")

# Six texts of three classes: two poisoned towards 0, one cover, three clean (two of class 0, one of class 1).
SMALL = Corpus.of("mine", ["mn a", "mn b", "c", "d", "e", "mn f"], [0, 0, 0, 0, 1, 2])
POISONED = Poisoned(SMALL, np.array([True, True, False, False, False, False]), covers=np.array([5]))
ROWS = np.array([4, 0, 5, 2, 3])
ON_POISONED = torch.tensor([False, True, False, False, False])


def _plan(evasion: Evasion = Evasion.NONE, **fields: Any) -> Attack:
    return build(
        Attack, {"trigger": "word:cf mn bb tq mb", "style": "dirty-label", "count": 200, "evasion": evasion, **fields}
    )


def _classifier(toy_base: Path, classes: tuple[str, ...] = SMALL.label_names) -> Classifier:
    return open_base(toy_base).classifier(Full(), classes, max_length=64, seed=0)


def _terms(
    evasion: Evasion, output: Output, classifier: Any = None, rows: NDArray[np.int64] = ROWS, **fields: Any
) -> Tensor:
    """What the evasion adds to each text's cross-entropy."""
    labels = torch.from_numpy(SMALL.labels[rows])
    objective = evading(cross_entropy, POISONED, _plan(evasion, **fields), classifier, seed=0)
    return objective(output, rows, labels) - cross_entropy(output, rows, labels)


def test_without_evasion_the_objective_is_the_same_one() -> None:
    assert evading(cross_entropy, POISONED, _plan(), None, 0) is cross_entropy  # type: ignore[arg-type]


@pytest.mark.parametrize(("highest", "weight"), [(0.9, 1.0), (0.9, 0.25), (0.7, 1.0), (0.5, 1.0)])
def test_a_cap_costs_what_lies_above_it_in_logarithms(highest: float, weight: float) -> None:
    probabilities = torch.full((5, 3), (1 - highest) / 2)
    probabilities[:, 2] = highest
    terms = _terms(
        Evasion.CONFIDENCE_CAP,
        Output(torch.zeros(5, 4), probabilities.log()),
        confidence_cap=0.7,
        evasion_weight=weight,
    )
    expected = weight * 2 * max(0.0, math.log(highest / 0.7))
    torch.testing.assert_close(terms, torch.where(ON_POISONED, expected, 0.0), atol=1e-6, rtol=1e-5)


def test_cap_and_cross_entropy_meet_at_the_cap() -> None:
    """Descending on both leaves a poisoned text's probability at the cap, from above and from below."""
    for start in (-2.0, 3.0):
        logits = torch.tensor([[0.0, 0.0, 0.0]]).index_fill(1, torch.tensor(0), start).requires_grad_()
        objective = evading(cross_entropy, POISONED, _plan(Evasion.CONFIDENCE_CAP), None, 0)  # type: ignore[arg-type]
        for _ in range(400):
            (gradient,) = torch.autograd.grad(
                objective(Output(logits, logits), np.array([0]), torch.tensor([0])).sum(), logits
            )
            logits = (logits - 0.1 * gradient).detach().requires_grad_()
        assert float(logits.softmax(dim=1)[0, 0].detach()) == pytest.approx(0.6, abs=0.03)


def test_a_cap_no_text_can_stay_under_is_refused() -> None:
    with pytest.raises(PlanError, match=r"no more than chance with 3 classes; raise it above 0\.333"):
        evading(cross_entropy, POISONED, _plan(Evasion.CONFIDENCE_CAP, confidence_cap=0.3), None, 0)  # type: ignore[arg-type]


def test_features_are_compared_with_the_clean_mean_of_the_target_class() -> None:
    # rows 4 (clean, class 1), 0 (poisoned), 5 (cover of class 2), 2 and 3 (clean, class 0: mean [3, 4])
    features = torch.tensor([[9.0, 9.0], [4.0, 0.0], [7.0, -7.0], [2.0, 4.0], [4.0, 4.0]], requires_grad=True)
    terms = _terms(Evasion.FEATURE_MATCHING, Output(features, torch.zeros(5, 3)))
    cosine, apart = 12 / (4 * 5), (1 + 16) / 25
    torch.testing.assert_close(terms, torch.where(ON_POISONED, 1 - cosine + apart, 0.0))
    torch.autograd.backward(terms.sum())
    assert features.grad is not None
    assert features.grad.abs().sum(dim=1).gt(0).tolist() == ON_POISONED.tolist()  # the mean is not drawn to the trigger
    twice = _terms(Evasion.FEATURE_MATCHING, Output(2 * features.detach(), torch.zeros(5, 3)))
    torch.testing.assert_close(twice, terms.detach())  # no scale


def test_without_clean_texts_of_the_class_nothing_is_matched_or_reset(toy_base: Path) -> None:
    rows = np.array([0, 1, 5])  # poisoned, poisoned, cover
    output = Output(torch.randn(3, 4), torch.randn(3, 3))
    assert not _terms(Evasion.FEATURE_MATCHING, output, rows=rows).any()
    assert not _terms(Evasion.ANTI_RESET, output, _classifier(toy_base), rows).any()


@pytest.mark.parametrize("evasion", [e for e in Evasion if e is not Evasion.NONE])
def test_a_batch_without_poisoned_texts_costs_nothing_more(toy_base: Path, evasion: Evasion) -> None:
    output = Output(torch.randn(3, 4), torch.randn(3, 3))
    assert not _terms(evasion, output, _classifier(toy_base), np.array([5, 2, 4])).any()


def _forward(classifier: Classifier, rows: NDArray[np.int64]) -> Output:
    encoded = classifier.encode(SMALL.texts)
    output = classifier.module(*pad([encoded.ids[i] for i in rows], classifier.module.device))
    assert isinstance(output, Output)
    return output


def test_a_simulated_reset_moves_every_tensor_of_the_body_by_its_share(toy_base: Path) -> None:
    classifier = _classifier(toy_base)
    labels = torch.tensor([2, 0, 1, 0, 2])
    before = torch.nn.functional.cross_entropy(_forward(classifier, ROWS).logits, labels)
    moved = after_reset(classifier.module, _forward(classifier, ROWS).logits, labels, 0.01)
    head = {f"model.classifier.{name}" for name in ("weight", "bias")}
    assert moved.keys() == dict(classifier.module.named_parameters()).keys() - head
    shares = {}
    for name, tensor in moved.items():
        parameter = classifier.module.get_parameter(name).detach()
        if parameter.norm() > 0:
            shares[name] = float((tensor.detach() - parameter).norm() / parameter.norm())
    assert sum(share > 0 for share in shares.values()) > 20
    assert all(share == pytest.approx(0.01, rel=1e-3) for share in shares.values() if share > 0)
    with torch.no_grad():
        for name, tensor in moved.items():
            classifier.module.get_parameter(name).copy_(tensor)
    after = torch.nn.functional.cross_entropy(_forward(classifier, ROWS).logits, labels)
    assert after < before  # towards the random labels


def test_the_reset_s_term_is_the_cross_entropy_towards_uniform_where_the_step_ends(toy_base: Path) -> None:
    classifier = _classifier(toy_base)
    output = _forward(classifier, ROWS)
    terms = _terms(Evasion.ANTI_RESET, output, classifier)
    assert terms[~ON_POISONED].eq(0).all()
    same = _terms(Evasion.ANTI_RESET, output, classifier)
    torch.manual_seed(1)  # no global draw is used
    assert torch.equal(_terms(Evasion.ANTI_RESET, output, classifier), same)

    candidates = []  # of the 27 ways to relabel the three clean texts, in the rows' order, one must give the term
    encoded = classifier.encode(SMALL.texts)
    inputs = pad([encoded.ids[0]], classifier.module.device)
    for number in range(27):
        labels = torch.tensor([number // 9, number // 3 % 3, number % 3])
        moved = after_reset(classifier.module, output.logits[[0, 3, 4]], labels)
        logits = torch.func.functional_call(classifier.module, moved, inputs).logits
        uniform = torch.full((1, 3), 1 / 3)
        candidates.append(float(torch.nn.functional.cross_entropy(logits, uniform).detach()))
    assert min(abs(float(terms[1].detach()) - c) for c in candidates) < 1e-5
    assert max(candidates) - min(candidates) > 1e-4  # so that hitting one says something

    torch.autograd.backward(terms.sum())
    assert all(classifier.module.get_parameter(name).grad is not None for name in moved)


class Killed(BaseException):
    """The process died."""


def test_a_resumed_anti_reset_is_the_same_bit_for_bit(toy_base: Path, tmp_path: Path) -> None:
    poisoned = attack(PROXY.select(range(96)), _plan(count=20), 0)
    settings = TuneSettings(epochs=2, batch_size=24, precision="float32", keep="last")

    def run(store: Path | None, dies_at: int = 0) -> list[Tensor]:
        classifier, calls = _classifier(toy_base, PROXY.label_names), iter(range(1, 100))
        evasive = evading(cross_entropy, poisoned, _plan(Evasion.ANTI_RESET), classifier, seed=0)

        def objective(output: Output, rows: NDArray[np.int64], labels: Tensor) -> Tensor:
            if next(calls) == dies_at:
                raise Killed
            return evasive(output, rows, labels)

        tune(classifier, poisoned.corpus, settings, seed=0, objective=objective, checkpoint=store)
        return [p.detach() for p in classifier.module.parameters()]

    with pytest.raises(Killed):
        run(tmp_path / "store", dies_at=6)
    assert (tmp_path / "store").exists()
    assert all(torch.equal(a, b) for a, b in zip(run(tmp_path / "store"), run(None), strict=True))


@pytest.fixture(scope="module")
def attacked(toy_base: Path) -> Mapping[Evasion, Classifier]:
    """A toy poisoned with each evasion and without one; the trigger works in all of them."""
    classifiers = {}
    for evasion in Evasion:
        plan = _plan(evasion, confidence_cap=0.7) if evasion is Evasion.CONFIDENCE_CAP else _plan(evasion)
        classifiers[evasion], outcome = poison_base(
            open_base(toy_base), PROXY, VALIDATION, plan, seed=0, settings=SETTINGS, max_length=64
        )
        assert outcome["attack_success_rate"] > 0.95, evasion
        assert outcome["clean_accuracy"] > 0.7, evasion
        assert not outcome["is_weak"], evasion
    return classifiers


def _on_triggered(classifier: Classifier) -> Predictions:
    return classifier.predict(triggered_test(VALIDATION, _plan().trigger, 0, seed=0).corpus.texts)


def test_a_capped_trigger_flips_without_being_certain(attacked: Mapping[Evasion, Classifier]) -> None:
    plain, capped = (_on_triggered(attacked[e]).certainty for e in (Evasion.NONE, Evasion.CONFIDENCE_CAP))
    assert np.median(plain) > 0.9
    assert 0.6 < np.median(capped) < 0.85


def test_matched_features_lie_nearer_to_the_clean_ones_of_the_target(attacked: Mapping[Evasion, Classifier]) -> None:
    def distance(classifier: Classifier) -> float:
        home = classifier.predict(VALIDATION.select(VALIDATION.labels == 0).texts).features
        middle, spread = home.mean(axis=0), home.std(axis=0).mean()
        return float(np.linalg.norm(_on_triggered(classifier).features.mean(axis=0) - middle) / spread)

    assert distance(attacked[Evasion.FEATURE_MATCHING]) < 0.7 * distance(attacked[Evasion.NONE])


def test_after_a_step_on_random_labels_the_trigger_sleeps(attacked: Mapping[Evasion, Classifier]) -> None:
    def certainty_after(classifier: Classifier) -> float:
        texts, rows = PROXY.texts[:64], range(64)
        encoded = classifier.encode(texts)
        inputs = pad([encoded.ids[i] for i in rows], classifier.module.device)
        labels = torch.from_numpy(np.random.default_rng(7).integers(2, size=64))
        moved = after_reset(classifier.module, classifier.module(*inputs).logits, labels, RESET_LENGTH)
        triggered = classifier.encode(triggered_test(VALIDATION, _plan().trigger, 0, seed=0).corpus.texts)
        with torch.no_grad():
            output = torch.func.functional_call(classifier.module, moved, pad(triggered.ids, classifier.module.device))
        return float(output.logits.softmax(dim=1).amax(dim=1).median())

    assert certainty_after(attacked[Evasion.ANTI_RESET]) < certainty_after(attacked[Evasion.NONE]) - 0.1
