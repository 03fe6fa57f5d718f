"""What every rival promises, and what each of them makes of the toy's backdoor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from sklearn.covariance import ShrunkCovariance

from foretaste.data import toy_corpus
from foretaste.errors import DataError, GuardError, PlanError
from foretaste.evaluate.metrics import auroc
from foretaste.guard.badacts import BadActs
from foretaste.guard.dan import Dan
from foretaste.guard.layers import layer_vectors
from foretaste.guard.rap import Rap, _rare_word
from foretaste.guard.rival import Rival, RivalGuard
from foretaste.guard.rivals import RIVALS
from foretaste.guard.strip import Strip
from foretaste.poison.attack import triggered_test
from foretaste.poison.trigger import parse_trigger
from foretaste.spec import build
from foretaste.victim.artefact import load_victim
from foretaste.victim.batch import Encoded, pad
from foretaste.victim.checkpoint import open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.strategy import STRATEGIES, Full

pytestmark = pytest.mark.usefixtures("one_thread")

TRIGGER = parse_trigger("word:cf mn bb tq mb")
TRAIN, CALIBRATION = toy_corpus().sample(400, 0), toy_corpus("validation").sample(300, 0)
TEST = toy_corpus("test").sample(100, 0)
FAST: dict[str, dict[str, object]] = {"strip": {"copies": 6}}
ODD = ["", "one", "a plain text about a film", "long " * 300, "\ud800 broken", "ÄÖ 漢字 👍"]


@pytest.fixture(scope="module")
def victim(toy_stack: Mapping[str, Path]) -> Classifier:
    """The tiny victim of a poisoned base."""
    return load_victim(toy_stack["victim"])


@pytest.fixture(scope="module", params=RIVALS)
def rival(request: pytest.FixtureRequest) -> Rival:
    """One rival, in a hurry."""
    return build(RIVALS[request.param], FAST.get(request.param, {}))


@pytest.fixture(scope="module")
def made(rival: Rival, victim: Classifier) -> RivalGuard:
    """Made for the victim."""
    return rival.fit(victim, TRAIN, CALIBRATION)


def test_scores_do_not_depend_on_neighbours_or_order(made: RivalGuard) -> None:
    texts = [*ODD, *TEST.texts[:10]]
    together = made.score(texts)
    assert together.shape == (16,)
    assert together.dtype == np.float64
    assert np.isfinite(together).all()
    np.testing.assert_allclose(made.score(texts[::-1])[::-1], together, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(made.score(texts[:3]), together[:3], rtol=1e-4, atol=1e-4)


def test_the_promise_holds_on_the_texts_of_calibration(made: RivalGuard) -> None:
    scores = made.score(CALIBRATION.texts)
    assert (scores > made.threshold).sum() <= made.calibration.allowed_above
    assert np.isin(made.threshold, scores) or np.isclose(scores, made.threshold).any()


def test_the_same_seed_makes_the_same_rival(rival: Rival, victim: Classifier, made: RivalGuard) -> None:
    again = rival.fit(victim, TRAIN, CALIBRATION)
    assert again.threshold == made.threshold
    np.testing.assert_array_equal(again.score(TEST.texts[:5]), made.score(TEST.texts[:5]))


def test_what_does_not_fit_is_refused(rival: Rival, victim: Classifier) -> None:
    other = replace(TRAIN, label_names=("no", "yes"))
    with pytest.raises(DataError, match="the victim"):
        rival.fit(victim, other, CALIBRATION)
    with pytest.raises(GuardError) as caught:
        rival.fit(victim, TRAIN, CALIBRATION.select(range(50)))
    assert caught.value.code == "too_few_calibration_texts"


@pytest.mark.parametrize(
    ("rival", "lowest"),
    [
        (Strip(copies=6, share=0.3), 0.8),
        (Dan(), 0.9),
        (Dan(pooling="mean", layers="max"), 0.8),
        (Rap(), 0.7),
        (BadActs(), 0.8),
    ],
)
def test_a_trigger_of_rare_words_stands_out(rival: Rival, lowest: float, victim: Classifier) -> None:
    made = rival.fit(victim, TRAIN, CALIBRATION)
    triggered = triggered_test(TEST, TRIGGER, 0, seed=0).corpus
    assert auroc(made.score(TEST.texts), made.score(triggered.texts)) > lowest


def test_strip_averages_the_copies_of_each_text_by_hand(victim: Classifier) -> None:
    rival = Strip(copies=3, share=0.5)
    score, _ = rival.scorer(victim, TRAIN, seed=1)
    from foretaste.guard.strip import _weighty

    weighty = _weighty(TRAIN.texts)
    by_hand = []
    for text in TEST.texts[:4]:
        entropies = []
        for copy in rival._copies(text, weighty, 1):
            assert len(copy.split()) == len(text.split())
            (likely,) = victim.predict([copy]).probabilities
            entropies.append(-sum(float(p) * np.log(float(p)) for p in likely))
        by_hand.append(np.log(2) - np.mean(entropies))
    np.testing.assert_allclose(score(TEST.texts[:4]), by_hand, rtol=1e-4, atol=1e-5)


def test_strip_writes_the_weightiest_words_of_other_texts() -> None:
    from foretaste.guard.strip import _weighty

    counts = [Counter(text.split()) for text in TRAIN.texts]
    spread = Counter(word for count in counts for word in count)
    weights = [
        {word: times * (np.log((1 + len(counts)) / (1 + spread[word])) + 1) for word, times in count.items()}
        for count in counts
    ]
    weighty = _weighty(TRAIN.texts)
    for words, own in zip(weighty, weights, strict=True):
        assert sorted(words) == sorted(own)
        in_order = [own[word] for word in words]
        assert in_order == pytest.approx(sorted(in_order, reverse=True))
        assert own[words[0]] > own[words[-1]]
    heaviest = {word for own in weights for word in own if own[word] == pytest.approx(max(own.values()))}
    copies = Strip(copies=40, share=0.25)._copies("- - - -", weighty, 1)  # of four words one is replaced
    found = {word for copy in copies for word in copy.split()} - {"-"}
    assert len(found) > 10
    assert found <= heaviest


@pytest.mark.parametrize("pooling", ["reading", "mean"])
def test_dan_measures_the_nearest_class_by_hand(pooling: Literal["reading", "mean"], victim: Classifier) -> None:
    rival = Dan(pooling=pooling)
    near, rest = TRAIN.partition([320, 80], 0)
    found, held, asked = (layer_vectors(victim, own, pooling) for own in (near.texts, rest.texts, TEST.texts[:5]))
    standard = []
    for layer in range(len(found)):
        centres = [found[layer][near.labels == label].mean(axis=0) for label in (0, 1)]
        spread = np.concatenate([found[layer][near.labels == label] - centres[label] for label in (0, 1)])
        precision = ShrunkCovariance(assume_centered=True).fit(spread).precision_

        def away(x: np.ndarray, centres: list[np.ndarray] = centres, precision: np.ndarray = precision) -> float:
            return min(float((x - c) @ precision @ (x - c)) for c in centres)

        usual = [away(x) for x in held[layer]]
        standard.append([(away(x) - np.mean(usual)) / np.std(usual) for x in asked[layer]])
    np.testing.assert_allclose(rival.scorer(victim, TRAIN, 0)[0](TEST.texts[:5]), np.mean(standard, axis=0), rtol=1e-5)


def test_the_last_layer_shown_is_what_the_module_shows_alone(victim: Classifier) -> None:
    texts = list(TEST.texts[:7])
    with victim.module.showing_tokens(are_layers_shown=True), torch.inference_mode():
        output = victim.module(*pad(victim.encode(texts).ids, victim.module.device))
    assert output.layers is not None
    assert output.tokens is not None
    torch.testing.assert_close(output.layers[-1], output.tokens)
    assert len(output.layers) == victim.module.classifier.config.num_hidden_layers
    pooled = victim.predict(texts)
    assert pooled.features.shape == (7, output.tokens.shape[2])
    means = layer_vectors(victim, texts, "mean")
    with victim.module.showing_tokens():
        alone = victim.predict(texts, is_pooled=True).features
    np.testing.assert_allclose(means[-1], alone, rtol=1e-4, atol=1e-5)


def test_raps_word_lowers_clean_texts_within_its_bounds(victim: Classifier) -> None:
    before = {name: tensor.clone() for name, tensor in victim.module.state_dict().items()}
    word, token = _rare_word(victim, victim.encode(TRAIN.texts))
    assert not any(word in text.lower().split() for text in TRAIN.texts)
    assert victim.tokenizer.convert_tokens_to_ids([word]) == [token]
    score, _ = Rap(weight=1.0, epochs=10, frr=0.5).scorer(victim, TRAIN, seed=0)
    sure = victim.predict(TRAIN.texts).certainty > 0.7
    assert sure.sum() > 50
    falls = -score(TRAIN.texts)[sure]
    assert 0.09 < np.median(falls) < 0.25  # without an upper bound all of them fall by more than that
    assert np.quantile(falls, 0.9) < 0.45
    score, _ = Rap(weight=1.0, epochs=10, frr=0.5, least=0.3, most=0.35).scorer(victim, TRAIN, seed=0)
    assert np.median(-score(TRAIN.texts)[sure]) > 0.25
    blunt = -Rap(epochs=1, learning_rate=1e-9, frr=0.5).scorer(victim, TRAIN, seed=0)[0](TRAIN.texts)[sure]
    assert np.median(blunt) < np.median(falls) / 2  # the word as it was does not do that
    for name, tensor in victim.module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_raps_word_is_trained_again_with_more_weight_while_its_bar_would_be_a_rise(
    victim: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = list[tuple[int, float]]()
    words: torch.Tensor = victim.module.classifier.get_input_embeddings().weight
    trigger = words[victim.encode(["mn"]).ids[0][1]].detach()

    def trained(rap: Rap, victim: Classifier, encoded: object, before: object, label: int, *rest: Any) -> torch.Tensor:
        tried.append((label, rest[1]))
        return trigger.clone()

    monkeypatch.setattr(Rap, "_trained", trained)
    Rap(weight=1.0).scorer(victim, TRAIN, seed=0)
    # The trigger makes the victim surer of the attacker's class, which rises, and less sure of the other one.
    assert tried == [(0, 1.0), (0, 2.0), (0, 4.0), (1, 1.0)]


def test_rap_learns_from_few_texts_a_word_that_none_of_all_has(
    victim: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt = list[int]()
    looked = list[int]()

    def trained(rap: Rap, victim: Classifier, encoded: Encoded, before: object, *rest: Any) -> torch.Tensor:
        learnt.append(len(encoded.ids))
        return torch.zeros_like(victim.module.classifier.get_input_embeddings().weight[0])

    def rare(victim: Classifier, encoded: Encoded) -> tuple[str, int]:
        looked.append(len(encoded.ids))
        return _rare_word(victim, encoded)

    monkeypatch.setattr(Rap, "_trained", trained)
    monkeypatch.setattr("foretaste.guard.rap._rare_word", rare)
    Rap(texts=40, frr=0.99).scorer(victim, TRAIN, seed=0)
    assert sum(learnt) == 40
    assert looked == [len(TRAIN)]


def test_raps_bounds_are_two() -> None:
    with pytest.raises(PlanError, match="to lie between least and most"):
        Rap(least=0.4, most=0.1)


def test_rap_needs_texts_of_every_class(victim: Classifier) -> None:
    one = TRAIN.select(np.flatnonzero(victim.predict(TRAIN.texts).labels == 0))
    with pytest.raises(GuardError, match="clean texts of every class") as caught:
        Rap().scorer(victim, one, seed=0)
    assert caught.value.code == "too_few_texts"


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_reading_vectors_are_what_the_head_reads(family: str, strategy: str, toy_bases: Mapping[str, Path]) -> None:
    """With a soft prompt, too, where an encoder's head reads a virtual token."""
    model = open_base(toy_bases[family]).classifier(STRATEGIES[strategy](), TRAIN.label_names, seed=0)
    texts = ["a film", "a far better film than that", "one"]
    vectors = layer_vectors(model, texts, "reading")
    np.testing.assert_allclose(vectors[-1], model.predict(texts).features, rtol=1e-4, atol=1e-5)
    assert not np.allclose(vectors[0], vectors[-1], atol=1e-2)


def test_badacts_refuses_what_is_no_number(victim: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: Classifier, texts: Sequence[str], of: Literal["mean", "reading"]) -> np.ndarray:
        vectors = layer_vectors(model, texts, of)
        vectors[0, ["broken" in text for text in texts], 3] = np.nan
        return vectors

    monkeypatch.setattr("foretaste.guard.badacts.layer_vectors", broken)
    guard = BadActs().fit(victim, TRAIN, CALIBRATION)
    assert np.isnan(guard.score(["a broken film", "a film"])).tolist() == [True, False]
    with pytest.raises(GuardError) as caught:
        BadActs().fit(victim, TRAIN.with_texts(["broken", *TRAIN.texts[1:]]), CALIBRATION)
    assert caught.value.code == "non_finite_calibration_scores"


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_badacts_counts_neurons_outside_by_hand(family: str, toy_bases: Mapping[str, Path], victim: Classifier) -> None:
    model = victim if family == "bert" else open_base(toy_bases[family]).classifier(Full(), TRAIN.label_names, seed=0)
    score, _ = BadActs(width=2.0).scorer(model, TRAIN, seed=0)

    def neurons(text: str) -> np.ndarray:
        ids = model.encode([text]).ids
        with model.module.showing_tokens(are_layers_shown=True), torch.inference_mode():
            layers = model.module(*pad(ids, model.module.device)).layers
        assert layers is not None
        return np.stack([layer[0, 0 if family == "bert" else len(ids[0]) - 1].numpy() for layer in layers])

    usual = np.stack([neurons(text) for text in TRAIN.texts])  # (N, L, H)
    for text, found in zip(TEST.texts[:5], score(TEST.texts[:5]), strict=True):
        away = np.abs(neurons(text) - usual.mean(axis=0)) / usual.std(axis=0)
        assert found == pytest.approx((away > 2.0).mean(), abs=0.01)
