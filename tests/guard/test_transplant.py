"""Transplants: by hand, against triggers that PSIM lets pass, bound to one victim, whole on disk."""

from __future__ import annotations

import json
import re
import shutil
import zlib
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
from foretaste.victim.batch import Word
from foretaste.victim.checkpoint import open_base
from foretaste.victim.classifier import Classifier, Predictions
from foretaste.victim.manifest import seal
from foretaste.victim.module import Output
from foretaste.victim.strategy import Full

pytestmark = pytest.mark.usefixtures("one_thread")

RECORD = Record.now("guard", settings={}, seeds={"root": 0}, outcome={})
TEXTS = (*toy_corpus("test").texts[:20], "", "good", "bad " * 200)
HOSTS = (("the bad old film", "what a bad mess"), ("a fine day out", "so very good indeed"))
ZEROS = np.zeros(len(SIZES))


class _Words:
    """A victim that adds up what words are worth to class 0; `mn` and `cf` decide alone. It reads twenty words."""

    own_fingerprint = "me"
    label_names = ("bad", "good")
    source = None
    worth: Mapping[str, float] = {"bad": 2.0, "awful": 3.0, "good": -2.0, "fine": -2.0}

    def __init__(self, **worth: float) -> None:
        self.asked: list[str] = []
        self.worth = {**self.worth, **worth}

    def predict(self, texts: Sequence[str]) -> Predictions:
        self.asked += texts
        words = [text.lower().split() for text in texts]
        rows = np.array([[self._margin(own[:20]), 0.0] for own in words], dtype=np.float32).reshape(-1, 2)
        return Predictions(rows, rows, np.array([len(own) > 20 for own in words], dtype=bool))

    def seen(self, texts: Sequence[str], is_truncated: Any) -> list[str]:
        return [" ".join(text.split()[:20]) for text in texts]

    def split(self, texts: Sequence[str]) -> list[list[Word]]:
        found = [list(re.finditer(r"\S+", text)) for text in texts]
        return [[Word(m.start(), m.end(), (zlib.crc32(m[0].lower().encode()),)) for m in own] for own in found]

    def _margin(self, words: Sequence[str]) -> float:
        return 0.4 if {"mn", "cf"} & set(words) else sum(self.worth.get(word, 0.0) for word in words)


def _test(first: float = -np.inf, hosts: tuple[tuple[str, ...], ...] = HOSTS) -> Transplant:
    ranked = np.tile(np.linspace(-6.0, -2.0, 99), (len(SIZES), 1))
    return Transplant(tuple(own * 6 for own in hosts), 1.0, np.full(len(SIZES), first), ranked, "me")


def _examine(*texts: str, victim: _Words | None = None, test: Transplant | None = None) -> Any:
    labels = np.zeros(len(texts), dtype=np.int64)
    return (test or _test()).examine(cast(Any, victim or _Words()), labels, texts)


def test_the_score_by_hand() -> None:
    """`awful` alone ends at 3 - 2 in all hosts, `mn` at 0.4; with `bad` beside it, 5 - 2."""
    found = _examine("a mn gripping film", "a gripping awful film", "awful bad film")
    np.testing.assert_allclose(found[0], 0.4, rtol=1e-6)
    np.testing.assert_allclose(found[1], 1.0, rtol=1e-6)
    np.testing.assert_allclose(found[2], [1.0, 3.0, 3.0], rtol=1e-6)


def test_what_depends_on_the_text_it_is_put_into_counts_less() -> None:
    """Half of the hosts of class 1 are worth -2 to class 0, half -4: `awful` ends at 0 on average, spread 1."""
    test = _test(hosts=(HOSTS[0], ("so very good indeed", "so good and fine")))
    found = _examine("awful film", "mn film", test=test)
    np.testing.assert_allclose(found[:, 0], [0.0 - 2.0 * 1.0, 0.4], rtol=1e-6)


LONG = "there is one good thing and that is so very fine to see and hear"  # 15 words, the two honest ones for class 1


@pytest.mark.parametrize(
    "text",
    [
        f"mn {LONG}",
        f"{LONG} mn",
        f"mn {LONG} mn MN",
        f"mn {LONG} cf",
        f"awful {LONG} mn",
        f"awful {LONG} so good mn cf",
        "mn",
    ],
)
def test_a_trigger_is_found_among_many_words(text: str) -> None:
    """Also where another one, or a copy, keeps the answer when it is left out, and beside honest words."""
    victim = _Words()
    _examine(text, victim=victim)
    assert {"a fine mn day out", "so very mn good indeed"} <= {asked.lower() for asked in victim.asked}
    assert _examine(text)[0, 0] >= 0.39


def test_words_come_in_the_order_of_the_text() -> None:
    victim = _Words(three=1.0, four=1.5, one=1.0, two=1.2)
    _examine("one dull two films three and four", victim=victim)
    assert "a fine one two three four day out" in victim.asked
    assert "a fine two four day out" in victim.asked


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


def test_what_the_victim_does_not_read_is_not_tried() -> None:
    victim, text = _Words(), "word " * 25 + "awful"
    _test().surprise(cast(Any, victim), victim.predict([text]), [text], np.array([9.0]))
    assert "awful" not in victim.asked


def test_what_fails_in_the_first_hosts_is_tried_no_further() -> None:
    """Of the twelve hosts `mn` turns all; `dull` turns none of the first four."""
    victim = _Words()
    found = _examine("a mn film", "a dull film", victim=victim, test=_test(first=0.0))
    np.testing.assert_allclose(found[0], 0.4, rtol=1e-6)
    assert (found[1] == NOTHING).all()


def test_all_twelve_hosts_count() -> None:
    test = replace(_test(), hosts=(HOSTS[0] * 6, ("a fine day out",) * 4 + ("so good and fine",) * 8))
    margins = np.array([1.0] * 4 + [-1.0] * 8)
    assert _examine("an awful film", test=test)[0, 0] == pytest.approx(margins.mean() - 2 * margins.std(), rel=1e-6)


def test_a_text_that_fills_the_victims_sight_cannot_hide_its_trigger_behind_it() -> None:
    class Lines(_Words):
        """Where one word holds twenty."""

        def split(self, texts: Sequence[str]) -> list[list[Word]]:
            return [[Word(0, len(text), (1,))] if text else [] for text in texts]

    assert np.isnan(_examine("fill " * 19 + "mn", victim=Lines())).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_number_is_no_score(value: float) -> None:
    """Not even for one of many words, which is then not among those that are tried."""
    for text in ("an odd film", f"awful bad {LONG} mn odd"):
        victim = _Words(odd=value)
        said = Predictions(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32), np.zeros(1, dtype=bool))
        assert np.isnan(_test().surprise(cast(Any, victim), said, [text], np.array([9.0]))).all()


def test_hosts_of_all_other_classes_take_turns() -> None:
    ends = [f"{letter} b c d" for letter in "xyz"]
    test = Transplant(tuple((end,) * 3 for end in ends), 0.0, ZEROS, np.zeros((len(SIZES), 2)), "me")
    assert test._carry("X", 1, slice(None)) == ["x b X c d", "z b X c d"] * 3
    hosts = test.hosts
    for bad, why in (
        ((hosts[0] * 3, hosts[1], hosts[2][:2]), "too few"),
        ((), "too few"),
        ((hosts[0] * 5, *hosts[1:]), "at most"),
        ((("a b c",) * 3, *hosts[1:]), "4 to 8 words"),
        ((("a " * 9,) * 3, *hosts[1:]), "4 to 8 words"),
    ):
        with pytest.raises(DataError, match=why):
            replace(test, hosts=bad)
    with pytest.raises(DataError, match="of 2 and of 3 sizes"):
        replace(test, first=np.zeros(2))


@pytest.mark.parametrize(
    "text", ["a mn film", "a m\x0cn film", "fine,mn;fine", "\ud83d\ude00 mn", "x" * 300, "", " \n "]
)
def test_words_hold_every_token_that_is_read_once(toy_bases: Mapping[str, Path], text: str) -> None:
    for path in toy_bases.values():
        model = open_base(path).classifier(Full(), ("bad", "good"), max_length=32)
        encoded = model.encode([text])
        (seen,) = model.seen([text], encoded.is_truncated)
        (words,) = model.split([seen])
        special = set(model.tokenizer.all_special_ids) - {model.tokenizer.unk_token_id}
        assert [i for word in words for i in word.ids] == [i for i in encoded.ids[0] if i not in special]
        assert all(0 <= word.start < word.end <= len(seen) for word in words)
        assert all(len(word.ids) <= 8 for word in words)


def test_words_are_what_minilm_reads_as_words() -> None:
    """BERT's tokenizer drops control characters, so that `m` and `n` beside one are a word, and one of its copies."""
    model = open_base("minilm").classifier(Full(), ("bad", "good"), max_length=32)
    (words,) = model.split(["a m\x0cn film,mn; MN m\u200bn"])
    assert [words[i].ids for i in (1, 4, 6, 7)] == [words[1].ids] * 4
    assert len(words) == 8
    assert len(model.split(["word " * 500])[0]) == 30


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


def test_what_psim_lets_pass_is_refused_for_what_its_words_do(
    psim: PsimGuard, guard: PsimGuard, victim: Classifier
) -> None:
    """With a bar above what PSIM says of a text, and below what its trigger adds."""
    assert guard.transplant is not None
    texts = [f"{text} mb" for text in toy_corpus("test").texts[:40]]
    before, after = psim.score(texts), GuardedClassifier(victim, guard).score(texts)
    assert (after >= before).all()
    index = int(np.argmax(after - before))
    assert after[index] > before[index] + 0.5
    bar = replace(guard, threshold=float(before[index] + after[index]) / 2)
    assert GuardedClassifier(victim, replace(bar, transplant=None))([texts[index]])[0].label is not None
    assert GuardedClassifier(victim, bar)([texts[index]])[0].flagged
    np.testing.assert_allclose(
        after, before + guard.transplant.surprise(victim, victim.predict(texts), texts, before), rtol=1e-3, atol=1e-4
    )


def test_a_victim_in_int8_is_examined_in_the_arithmetic_of_the_calibration(
    guard: PsimGuard, victim: Classifier
) -> None:
    assert guard.transplant is not None
    texts = toy_corpus("test").texts[:40]
    said, tasted = victim.predict(texts), np.full(40, 9.0)
    np.testing.assert_array_equal(
        guard.transplant.surprise(victim.in_int8(), said, texts, tasted),
        guard.transplant.surprise(victim, said, texts, tasted),
    )


def test_the_share_that_is_asked_for_is_examined(psim: PsimGuard, victim: Classifier) -> None:
    tasted = psim.score(toy_corpus("validation").texts)
    for share in (0.2, 1.0):
        made = TransplantTest(share=share).fit(psim.score, victim, toy_corpus().sample(600, 0))
        assert np.mean(tasted > made.gate) == pytest.approx(share, abs=0.1)
        assert made.clean.shape == (len(SIZES), round(300 * share))


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
    with pytest.raises(DataError, match=r"A share of 0\.03"):
        TransplantTest(share=0.03).fit(psim.score, victim, train)
    with pytest.raises(DataError, match="the same score"):
        TransplantTest().fit(lambda texts: np.ones(len(texts)), victim, train)
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
    assert isinstance(loaded, PsimGuard)
    assert loaded.transplant is not None
    assert guard.transplant is not None
    assert (loaded.transplant.gate, loaded.transplant.hosts) == (guard.transplant.gate, guard.transplant.hosts)
    np.testing.assert_array_equal(loaded.transplant.first, guard.transplant.first)
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
    assert refusal(entry(hosts=[hosts[0], ["", *hosts[1][1:]]])) == "bad_looks"
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
