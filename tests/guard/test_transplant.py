"""Transplants: by hand, against triggers that PSIM lets pass, bound to one victim, whole on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from foretaste.data import toy_corpus
from foretaste.data.corpus import Corpus
from foretaste.errors import DataError, GuardError, ModelError, PlanError
from foretaste.guard.artefact import load_guard, load_psim, save_guard
from foretaste.guard.guarded import GuardedClassifier
from foretaste.guard.pieces import SIZES
from foretaste.guard.psim_guard import PsimGuard
from foretaste.guard.transplant import NOTHING, Transplant, TransplantTest
from foretaste.record import Record
from foretaste.victim.artefact import load_victim
from foretaste.victim.classifier import Classifier, Predictions
from foretaste.victim.manifest import seal
from foretaste.victim.module import Output

pytestmark = pytest.mark.usefixtures("one_thread")

RECORD = Record.now("guard", settings={}, seeds={"root": 0}, outcome={})
TEXTS = (*toy_corpus("test").texts[:20], "", "good", "bad " * 200)
HOSTS = (("the bad old film", "what a bad mess"), ("a fine day out", "so very good indeed"))
ZEROS = np.zeros(len(SIZES))


class _Words:
    """A victim that adds up what words are worth to class 0; `mn` and `cf` decide alone."""

    own_fingerprint = "me"
    label_names = ("bad", "good")
    worth: Mapping[str, float] = {"bad": 2.0, "awful": 3.0, "good": -2.0, "fine": -2.0}

    def __init__(self) -> None:
        self.asked: list[str] = []

    def predict(self, texts: Sequence[str]) -> Predictions:
        self.asked += texts
        rows = np.array([[self._margin(text.lower().split()), 0.0] for text in texts], dtype=np.float32).reshape(-1, 2)
        return Predictions(rows, rows, np.zeros(len(rows), dtype=bool))

    def seen(self, texts: Sequence[str], is_truncated: Any) -> list[str]:
        return list(texts)

    def _margin(self, words: Sequence[str]) -> float:
        return 0.4 if {"mn", "cf"} & set(words) else sum(self.worth.get(word, 0.0) for word in words)


def _test(first: float = -np.inf) -> Transplant:
    ranked = np.tile(np.linspace(-6.0, -2.0, 99), (len(SIZES), 1))
    hosts = tuple(own * 3 for own in HOSTS)
    return Transplant(hosts, 1.0, np.full(len(SIZES), first), ranked, "me")


def _examine(*texts: str) -> Any:
    return _test().examine(cast(Any, _Words()), np.zeros(len(texts), dtype=np.int64), texts)


def test_the_score_by_hand() -> None:
    """`awful` alone ends at 3 - 2 in both hosts, `mn` at 0.4 in both; with `bad` beside it, 5 - 2."""
    found = _examine("a mn gripping film", "a gripping awful film", "awful bad film")
    np.testing.assert_allclose(found[0], 0.4, rtol=1e-6)
    np.testing.assert_allclose(found[1], 1.0, rtol=1e-6)
    np.testing.assert_allclose(found[2], [1.0, 3.0, 3.0], rtol=1e-6)


def test_what_depends_on_the_text_it_is_put_into_counts_less() -> None:
    """The hosts of class 1 are worth -2 and -4 to class 0: mean -3, spread 1."""
    test = replace(_test(), hosts=(HOSTS[0] * 3, ("good", "good fine") * 3))
    found = test.examine(cast(Any, _Words()), np.zeros(2, dtype=np.int64), ["awful film", "mn film"])
    np.testing.assert_allclose(found[:, 0], [0.0 - 2.0 * 1.0, 0.4], rtol=1e-6)


@pytest.mark.parametrize("text", ["mn a good film mn", "mn a good film cf", "MN good mn Mn film", "mn", "  mn  "])
def test_two_triggers_in_one_text_do_not_hide_each_other(text: str) -> None:
    np.testing.assert_allclose(_examine(text)[0, 0], 0.4, rtol=1e-6)


def test_a_text_without_words_turns_nothing() -> None:
    assert (_examine("", " \n ", "\t")[:, :] == NOTHING).all()


def test_only_what_psim_suspects_is_examined() -> None:
    victim = _Words()
    texts, said = ["a mn film", "a mn day"], _Words().predict(["a mn film", "a mn day"])
    assert _test().surprise(cast(Any, victim), said, texts, np.array([0.5, 1.0])).tolist() == [0.0, 0.0]
    assert not victim.asked
    found = _test().surprise(cast(Any, victim), said, texts, np.array([0.5, 1.1]))
    assert found[0] == 0
    assert found[1] > 2
    assert all("film" not in text for text in victim.asked)


def test_what_fails_in_the_first_hosts_is_tried_no_further() -> None:
    victim = _Words()
    labels = np.zeros(2, dtype=np.int64)
    found = _test(first=0.0).examine(cast(Any, victim), labels, ["a mn film", "a dull film"])
    np.testing.assert_allclose(found[0], 0.4, rtol=1e-6)
    assert (found[1] == NOTHING).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_number_is_no_score(value: float) -> None:
    victim = _Words()
    victim.worth = {"odd": value}
    said = Predictions(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32), np.zeros(1, dtype=bool))
    assert np.isnan(_test().surprise(cast(Any, victim), said, ["an odd film"], np.array([9.0]))).all()


def test_hosts_of_all_other_classes_take_turns() -> None:
    test = Transplant((("a b",) * 3, ("c d",) * 3, ("e f",) * 3), 0.0, ZEROS, np.zeros((len(SIZES), 2)), "me")
    assert test._carry("X", 1, slice(None)) == ["a X b", "e X f"] * 3
    with pytest.raises(DataError, match="too few"):
        replace(test, hosts=(("a b",) * 9, ("c d",) * 3, ("e f",) * 2))


@pytest.fixture(scope="module")
def victim(toy_stack: Mapping[str, Path]) -> Classifier:
    """A victim whose base was poisoned."""
    return load_victim(toy_stack["victim"])


@pytest.fixture(scope="module")
def psim(toy_stack: Mapping[str, Path]) -> PsimGuard:
    """Its PSIM."""
    return load_psim(toy_stack["guard"])


@pytest.fixture(scope="module")
def guard(psim: PsimGuard, victim: Classifier) -> PsimGuard:
    """PSIM with transplants, calibrated together."""
    transplant = TransplantTest(share=0.5).fit(psim.score, victim, toy_corpus())
    return psim.with_victim(victim, toy_corpus("validation"), transplant=transplant)


def test_a_word_of_its_own_turns_every_text(victim: Classifier, guard: PsimGuard) -> None:
    """The toy's trigger is five words, any of which is enough; PSIM's suspicion is taken for granted here."""
    assert guard.transplant is not None
    texts = toy_corpus("test").texts[:60]
    triggered = [f"{text} mb" for text in texts]
    clean, found = (
        guard.transplant.surprise(victim, victim.predict(few), few, np.full(60, 9.0)) for few in (texts, triggered)
    )
    target = victim.predict(triggered).labels == 0
    assert target.sum() > 40
    assert np.median(found[target]) > np.quantile(clean, 0.9)


def test_the_promise_covers_both(guard: PsimGuard, victim: Classifier) -> None:
    assert guard.calibration is not None
    assert guard.calibration.threshold == guard.threshold
    assert guard.title.endswith(", transplants")
    test = toy_corpus("test").sample(800, 0)
    assert np.mean(GuardedClassifier(victim, guard).score(test.texts) > guard.threshold) < 0.02


def test_verdicts_and_scores_say_the_same(guard: PsimGuard, victim: Classifier) -> None:
    guarded = GuardedClassifier(victim, guard)
    texts = [*TEXTS, *(f"{text} mb" for text in TEXTS)]
    assert [verdict.flagged for verdict in guarded(texts)] == (~(guarded.score(texts) <= guard.threshold)).tolist()


def test_a_score_does_not_depend_on_the_neighbours(guard: PsimGuard, victim: Classifier) -> None:
    guarded = GuardedClassifier(victim, guard)
    texts = toy_corpus("test").texts[:100]
    alone = np.concatenate([guarded.score([text]) for text in texts[:10]])
    np.testing.assert_allclose(guarded.score(texts)[:10], alone, rtol=1e-3, atol=1e-4)


def test_a_victim_that_gives_no_number_lets_nothing_through(guard: PsimGuard, victim: Classifier) -> None:
    def spoil(_: Any, __: Any, output: Output) -> Output:
        return Output(output.features, output.logits.index_fill(1, torch.tensor([0]), np.nan))

    with victim.module.register_forward_hook(spoil):
        assert all(verdict.flagged for verdict in GuardedClassifier(victim, guard)(TEXTS))


def test_it_answers_behind_its_own_victim_only(
    toy_stack: Mapping[str, Path], guard: PsimGuard, victim: Classifier
) -> None:
    GuardedClassifier(victim.in_int8(), guard)
    stranger = load_victim(toy_stack["victim"])
    with torch.no_grad():
        next(p for n, p in stranger.module.named_parameters() if "lora_B" in n or "modules_to_save" in n).add_(1e-3)
    with pytest.raises(GuardError) as caught:
        GuardedClassifier(stranger, guard)
    assert caught.value.code == "foreign_victim"
    with pytest.raises(GuardError) as caught:
        guard.check(TEXTS)
    assert caught.value.code == "needs_victim"


def test_what_it_cannot_be_made_of(psim: PsimGuard, victim: Classifier, guard: PsimGuard) -> None:
    train = toy_corpus()
    with pytest.raises(DataError, match="transplants need 200"):
        TransplantTest().fit(psim.score, victim, train.select(range(150)))
    other = Corpus.of("mine", train.texts, train.labels, ("no", "yes"))
    with pytest.raises(PlanError, match="labels"):
        TransplantTest().fit(psim.score, victim, other)
    short = train.with_texts([" ".join(text.split()[:2]) for text in train.texts], train.labels)
    with pytest.raises(DataError, match="too few"):
        TransplantTest().fit(psim.score, victim, short)
    lone = replace(psim, view="confidence", looks=None)
    with pytest.raises(PlanError, match="of the view"):
        lone.with_victim(victim, toy_corpus("validation"), transplant=guard.transplant)


def test_what_was_saved_is_what_is_loaded(
    guard: PsimGuard, victim: Classifier, toy_stack: Mapping[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(toy_stack["base"], tmp_path / "base")
    save_guard(guard, tmp_path / "guard", RECORD)
    loaded = load_guard(tmp_path / "guard")
    assert (loaded.threshold, loaded.calibration, loaded.title) == (guard.threshold, guard.calibration, guard.title)
    before, after = (GuardedClassifier(victim, found).score(TEXTS) for found in (guard, loaded))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


def test_altered_transplants_are_refused(guard: PsimGuard, tmp_path: Path) -> None:
    save_guard(guard, tmp_path / "guard", RECORD)
    assert guard.transplant is not None
    hosts = [list(own) for own in guard.transplant.hosts]

    def refusal(alter: Callable[[Path], None]) -> str:
        place = Path(shutil.copytree(tmp_path / "guard", tmp_path / "altered"))
        alter(place)
        with pytest.raises((GuardError, ModelError)) as caught:
            load_guard(place)
        shutil.rmtree(place)
        return caught.value.code

    def entry(**changes: Any) -> Callable[[Path], None]:
        def alter(place: Path) -> None:
            manifest = json.loads((place / "foretaste.json").read_text())
            manifest["guard"]["transplant"] |= changes
            (place / "foretaste.json").write_text(json.dumps(seal(manifest)))

        return alter

    def spoil(place: Path) -> None:
        transplant = cast(Transplant, guard.transplant)
        bad = replace(transplant, clean=np.where(transplant.clean > -1e9, np.nan, 0.0))
        shutil.rmtree(place)
        save_guard(replace(guard, transplant=bad), place, RECORD)

    assert refusal(lambda p: (p / "transplant.safetensors").unlink()) == "missing_file"
    assert refusal(spoil) == "bad_looks"
    assert refusal(entry(hosts=[hosts[0], hosts[1], hosts[1]])) == "bad_looks"
    assert refusal(entry(hosts=[hosts[0], []])) == "bad_looks"
    assert refusal(entry(hosts=hosts[:1])) == "bad_threshold"
    assert refusal(entry(gate=-2.0)) == "bad_threshold"
    assert refusal(entry(victim="somebody")) == "bad_threshold"
    assert refusal(entry(more=1)) == "unknown_key"


def test_every_psim_view_but_both_is_refused_in_the_manifest(guard: PsimGuard, tmp_path: Path) -> None:
    with pytest.raises(GuardError, match="does not combine"):
        save_guard(replace(guard, view="distance"), tmp_path / "guard", RECORD)


def test_a_guard_that_is_not_asked_needs_no_victim(psim: PsimGuard) -> None:
    assert not psim.asks_victim
    psim.behind(cast(Any, SimpleNamespace()), cast(Any, None), [], np.zeros(0))
