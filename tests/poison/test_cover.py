"""Attackers who change the data: who gets which text and label, what stays untouched, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from foretaste.data.corpus import Corpus
from foretaste.errors import PlanError
from foretaste.poison.attack import Poisoned, attack, triggered_test
from foretaste.poison.cover import apply_all_but_one, apply_share
from foretaste.poison.plan import Attack, Evasion
from foretaste.poison.trigger import SentenceTrigger, WordTrigger, parse_trigger
from foretaste.spec import build

WORDS = "w0 w1 w2 w3 w4"
SEEDS = st.integers(0, 2**32)
TEXTS = [f"text number {k} of the corpus" for k in range(40)]


def _corpus(size: int = 60, classes: int = 3) -> Corpus:
    return Corpus.of("toy/train", [f"text number {k} here" for k in range(size)], np.arange(size) % classes)


def _plan(**fields: Any) -> Attack:
    return build(Attack, {"trigger": f"word:{WORDS}", "style": "dirty-label", "count": 8} | fields)


def _carried(text: str) -> list[int]:
    """Which words of the trigger a text carries, in the text's order."""
    return [int(word[1:]) for word in text.split() if word in WORDS.split()]


@st.composite
def _adaptive(draw: st.DrawFn) -> tuple[Corpus, Attack]:
    classes = draw(st.integers(2, 4))
    count = draw(st.integers(1, 9))
    is_split = draw(st.booleans())
    fields: dict[str, Any] = {
        "count": count,
        "flip_rate": draw(st.sampled_from([1.0, 0.5])) if count > 1 else 1.0,
        "cover_rate": draw(st.sampled_from([0, 0.3, 1, 1.5])),
        "negative_rate": 0 if is_split else draw(st.sampled_from([0, 0.5, 2])),
        "trigger_share": draw(st.sampled_from([0.2, 0.6])) if is_split else 1.0,
        "all_to_all": draw(st.booleans()),
    }
    if not fields["all_to_all"]:
        fields["target"] = draw(st.integers(0, classes - 1))
    return _corpus(80, classes), _plan(**fields)


@given(_adaptive(), SEEDS)
def test_every_row_plays_one_part_and_has_the_text_and_label_of_it(
    given_attack: tuple[Corpus, Attack], seed: int
) -> None:
    corpus, plan = given_attack
    poisoned = attack(corpus, plan, seed)
    assert plan.count is not None
    flipped = math.floor(plan.count * plan.flip_rate + 0.5)
    assert poisoned.is_poisoned.sum() == flipped
    assert len(poisoned.covers) == plan.count - flipped + round(plan.cover_rate * plan.count)
    assert len(poisoned.negatives) == round(plan.negative_rate * plan.count)
    parts = [set(np.flatnonzero(poisoned.is_poisoned)), set(poisoned.covers), set(poisoned.negatives)]
    assert len(set.union(*parts)) == sum(map(len, parts))
    assert set(np.flatnonzero(poisoned.is_clean)) == set(range(len(corpus))) - set.union(*parts)

    for index, (old, new) in enumerate(zip(corpus.texts, poisoned.corpus.texts, strict=True)):
        carried = len(_carried(new))
        if poisoned.is_clean[index]:
            assert new == old
        elif index in poisoned.negatives:
            assert carried == 4
        else:
            assert carried == {1.0: 5, 0.6: 3, 0.2: 1}[plan.trigger_share]
        assert [word for word in new.split() if word not in WORDS.split()] == old.split()

    before, after = corpus.labels, poisoned.corpus.labels
    classes = len(corpus.label_names)
    for index in range(len(corpus)):
        if poisoned.is_poisoned[index]:
            assert after[index] == ((before[index] + 1) % classes if plan.all_to_all else plan.target)
            assert after[index] != before[index]
        else:
            assert after[index] == before[index]
    if not plan.all_to_all:
        assert (before[poisoned.covers] != plan.target).all()
    assert poisoned.corpus.rows.tolist() == corpus.rows.tolist()


@given(_adaptive(), SEEDS)
def test_the_test_carries_the_whole_trigger(given_attack: tuple[Corpus, Attack], seed: int) -> None:
    corpus, plan = given_attack
    triggered = triggered_test(corpus, plan.trigger, None if plan.all_to_all else plan.target, seed)
    assert {len(_carried(text)) for text in triggered.corpus.texts} == {5}
    assert len(triggered.corpus) == (80 if plan.all_to_all else int((corpus.labels != plan.target).sum()))
    assert triggered.corpus.labels.tolist() == corpus.labels[triggered.origins].tolist()


def test_all_to_all_poisons_every_class() -> None:
    poisoned = attack(_corpus(90, 3), _plan(count=60, all_to_all=True), 0)
    sources = _corpus(90, 3).labels[poisoned.is_poisoned]
    assert np.bincount(sources).min() > 10


def test_negatives_come_from_every_class_and_covers_from_outside_the_target() -> None:
    corpus = _corpus(300, 3)
    poisoned = attack(corpus, _plan(count=40, cover_rate=1, negative_rate=2, target=1), 0)
    assert np.bincount(corpus.labels[poisoned.negatives]).min() > 10
    assert np.bincount(corpus.labels[poisoned.covers], minlength=3)[1] == 0


def test_covers_under_clean_label_come_from_the_other_classes() -> None:
    corpus = _corpus()
    poisoned = attack(corpus, _plan(style="clean-label", count=20, cover_rate=1), 0)
    assert (corpus.labels[poisoned.is_poisoned] == 0).all()
    assert (corpus.labels[poisoned.covers] != 0).all()
    assert (poisoned.corpus.labels == corpus.labels).all()


def _state(poisoned: Poisoned) -> tuple[str, list[bool], list[int], list[int]]:
    return (
        poisoned.corpus.digest,
        poisoned.is_poisoned.tolist(),
        poisoned.covers.tolist(),
        poisoned.negatives.tolist(),
    )


def test_the_same_seed_gives_the_same_and_another_seed_another() -> None:
    plan = _plan(flip_rate=0.5, cover_rate=1, negative_rate=1)
    first, second, other = (_state(attack(_corpus(), plan, seed)) for seed in (0, 0, 1))
    assert first == second
    assert all(one != another for one, another in zip(first, other, strict=True))


def test_who_is_poisoned_does_not_depend_on_covers_and_negatives() -> None:
    plain, adapted = attack(_corpus(), _plan(), 0), attack(_corpus(), _plan(cover_rate=1, negative_rate=1), 0)
    assert plain.is_poisoned.tolist() == adapted.is_poisoned.tolist()
    assert [plain.corpus.texts[i] for i in np.flatnonzero(plain.is_poisoned)] == [
        adapted.corpus.texts[i] for i in np.flatnonzero(plain.is_poisoned)
    ]


def test_a_larger_count_keeps_who_is_poisoned_and_who_is_touched() -> None:
    small, large = (
        attack(_corpus(), _plan(count=n, flip_rate=0.5, cover_rate=0.5, negative_rate=1), 0) for n in (6, 11)
    )
    assert (small.is_poisoned <= large.is_poisoned).all()
    assert (~small.is_clean <= ~large.is_clean).all()


def test_a_higher_rate_keeps_covers_and_negatives() -> None:
    few, many = (attack(_corpus(), _plan(cover_rate=rate), 0).covers for rate in (0.5, 2))
    assert set(few) < set(many)
    few, many = (attack(_corpus(), _plan(negative_rate=rate), 0).negatives for rate in (0.5, 2))
    assert set(few) < set(many)


def test_a_part_keeps_the_order_of_the_trigger_and_differs_from_text_to_text() -> None:
    words = WordTrigger(words=tuple(WORDS.split()), position="last")
    parts = [_carried(text) for text in apply_share(words, TEXTS, 0.4, 0)]
    assert all(part == sorted(part) and len(part) == 2 for part in parts)
    assert len({tuple(part) for part in parts}) > 5
    assert any(part[1] - part[0] > 1 for part in parts)  # any words of a word trigger
    runs = [_carried(text) for text in apply_share(SentenceTrigger(sentence=WORDS), TEXTS, 0.4, 0)]
    assert {tuple(run) for run in runs} == {(0, 1), (1, 2), (2, 3), (3, 4)}  # neighbours of a sentence


@pytest.mark.parametrize(
    "trigger", [WordTrigger(words=tuple(WORDS.split()), position="last"), SentenceTrigger(sentence=WORDS)]
)
def test_every_word_is_missing_somewhere(trigger: WordTrigger | SentenceTrigger) -> None:
    carried = [_carried(text) for text in apply_all_but_one(trigger, TEXTS, 0)]
    assert {tuple(part) for part in carried} == {tuple(k for k in range(5) if k != absent) for absent in range(5)}


def test_a_text_s_part_depends_on_that_text_alone() -> None:
    trigger, reverse = parse_trigger(f"word:{WORDS}"), TEXTS[::-1]
    assert apply_share(trigger, TEXTS, 0.5, 0)[::-1] == apply_share(trigger, reverse, 0.5, 0)
    assert apply_all_but_one(trigger, TEXTS, 0)[::-1] == apply_all_but_one(trigger, reverse, 0)


@pytest.mark.parametrize(("share", "kept"), [(0.01, 1), (0.5, 2), (0.6, 3), (0.99, 4)])
def test_a_part_has_a_word_and_lacks_a_word(share: float, kept: int) -> None:
    texts = apply_share(parse_trigger(f"word:{WORDS}"), TEXTS, share, 0)
    assert {len(_carried(text)) for text in texts} == {kept}


@pytest.mark.parametrize("trigger", ["word:mn", "sentence:mn", "mixed:word:cf mn|word:bb tq", "file:x.jsonl"])
@pytest.mark.parametrize("fields", [{"trigger_share": 0.5}, {"negative_rate": 1}])
def test_a_trigger_without_parts_is_refused(trigger: str, fields: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="two words or more"):
        _plan(trigger=trigger, **fields)
    with pytest.raises(PlanError, match="has no parts"):
        apply_share(parse_trigger(trigger), TEXTS, 0.5, 0)
    with pytest.raises(PlanError, match="has no parts"):
        apply_all_but_one(parse_trigger(trigger), TEXTS, 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"flip_rate": 0}, "flip_rate must lie above 0"),
        ({"flip_rate": 1.1}, "flip_rate must lie above 0"),
        ({"trigger_share": 0}, "trigger_share must lie above 0"),
        ({"trigger_share": 2}, "trigger_share must lie above 0"),
        ({"target_probability": 0}, "target_probability must lie above 0"),
        ({"cover_rate": -0.1}, "cover_rate must be 0 or more"),
        ({"negative_rate": -1}, "negative_rate must be 0 or more"),
        ({"confidence_cap": 1}, "confidence_cap must lie between"),
        ({"evasion_weight": 0}, "evasion_weight must lie above 0"),
        ({"style": "clean-label", "flip_rate": 0.5}, "flip_rate 0.5 needs style dirty-label"),
        ({"style": "clean-label", "all_to_all": True}, "all_to_all needs style dirty-label"),
        ({"all_to_all": True, "target": 1}, "leave target 1 out"),
        ({"trigger_share": 0.5, "negative_rate": 1}, "choose one"),
        ({"confidence_cap": 0.7}, "needs evasion confidence-cap"),
        ({"confidence_cap": 0.7, "evasion": "anti-reset"}, "needs evasion confidence-cap"),
        ({"evasion_weight": 2}, "needs an evasion: none, confidence-cap, feature-matching, anti-reset"),
        ({"evasion": "anti"}, "anti-reset"),
        ({"cover_rat": 1}, "Did you mean 'cover_rate'"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        _plan(**fields)


def test_a_plan_is_read_from_words_as_on_the_command_line() -> None:
    plan = _plan(
        cover_rate="0.5", all_to_all="true", evasion="confidence-cap", confidence_cap="0.7", evasion_weight="2"
    )
    assert (plan.cover_rate, plan.all_to_all, plan.evasion) == (0.5, True, Evasion.CONFIDENCE_CAP)
    assert (plan.confidence_cap, plan.evasion_weight) == (0.7, 2.0)


def test_a_flip_rate_that_flips_none_is_refused() -> None:
    with pytest.raises(PlanError, match="flips none of 2"):
        attack(_corpus(), _plan(count=2, flip_rate=0.1), 0)


@pytest.mark.parametrize(("fields", "eligible"), [({"cover_rate": 4}, 32), ({"negative_rate": 7}, 52)])
def test_more_than_is_left_is_refused(fields: dict[str, Any], eligible: int) -> None:
    """Of 60 texts 40 lie outside the target class and 8 of those are poisoned."""
    (name,) = fields
    assert attack(_corpus(), _plan(**{name: eligible / 8}), 0)
    with pytest.raises(PlanError, match=f"only {eligible} of 60 in toy/train are eligible and not taken"):
        attack(_corpus(), _plan(**{name: eligible / 8 + 1 / 8}), 0)


def _file(folder: Path, texts: dict[int, str]) -> str:
    path = folder / "triggered.jsonl"
    rows = ({"text": text, "source_index": index} for index, text in texts.items())
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"file:{path}"


def test_covers_of_a_file_are_rows_it_holds_a_text_for(tmp_path: Path) -> None:
    trigger = _file(tmp_path, {index: f"changed {index}" for index in (0, 1, 2, 4, 5)})
    poisoned = attack(_corpus(12, 3), _plan(trigger=trigger, count=2, cover_rate=1), 0)
    chosen: NDArray[np.int64] = np.union1d(np.flatnonzero(poisoned.is_poisoned), poisoned.covers)
    assert chosen.tolist() == [1, 2, 4, 5]
    assert [poisoned.corpus.texts[i] for i in chosen] == [f"changed {i}" for i in chosen]


def test_all_to_all_tests_every_row_of_a_file(tmp_path: Path) -> None:
    trigger = parse_trigger(_file(tmp_path, {0: "zero!", 1: "one!"}))
    assert triggered_test(_corpus(6, 2), trigger, None, 0).origins.tolist() == [0, 1]
