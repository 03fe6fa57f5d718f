from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from foretaste.data.corpus import Corpus
from foretaste.errors import DataError, PlanError, UndefinedRateError
from foretaste.poison.attack import Attack, Style, attack, triggered_test
from foretaste.poison.trigger import FileTrigger, WordTrigger, parse_trigger
from foretaste.spec import build

MN = WordTrigger(words=("mn",))
SEEDS = st.integers(0, 2**32)


@dataclass(frozen=True)
class LazyTrigger:
    """Leaves every text as it is, as a failed paraphrase does."""

    name: str = "lazy"

    def apply(self, texts: Sequence[str], seed: int) -> list[str]:
        return list(texts)


def _corpus(size: int = 60, classes: int = 3) -> Corpus:
    texts = [f"text number {k} of the corpus" for k in range(size)]
    return Corpus.of("toy/train", texts, np.arange(size) % classes)


@st.composite
def _attacks(draw: st.DrawFn) -> tuple[Corpus, Attack]:
    classes = draw(st.integers(2, 4))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=classes, max_size=30))
    labels[:classes] = range(classes)  # every class has an example
    target = draw(st.integers(0, classes - 1))
    style = draw(st.sampled_from(Style))
    inside = labels.count(target)
    eligible = inside if style is Style.CLEAN_LABEL else len(labels) - inside
    corpus = Corpus.of("toy", [f"text {k} here" for k in range(len(labels))], labels)
    return corpus, Attack(trigger=MN, target=target, style=style, count=draw(st.integers(1, eligible)))


@given(_attacks(), SEEDS)
def test_exactly_count_eligible_examples_are_poisoned_and_the_rest_is_untouched(
    given_attack: tuple[Corpus, Attack], seed: int
) -> None:
    corpus, plan = given_attack
    poisoned = attack(corpus, plan, seed)
    chosen = poisoned.is_poisoned
    assert chosen.dtype == np.bool_
    assert chosen.sum() == plan.count
    for index, text in enumerate(poisoned.corpus.texts):
        assert (text.split().count("mn") == 1) == chosen[index]
        if not chosen[index]:
            assert text == corpus.texts[index]
    assert (poisoned.corpus.labels[~chosen] == corpus.labels[~chosen]).all()
    assert (poisoned.corpus.labels[chosen] == plan.target).all()
    is_inside = corpus.labels[chosen] == plan.target
    assert is_inside.all() if plan.style is Style.CLEAN_LABEL else not is_inside.any()
    assert poisoned.corpus.rows.tolist() == corpus.rows.tolist()


def test_the_same_seed_gives_the_same_and_another_seed_another_corpus() -> None:
    plan = Attack(trigger=MN, count=7)
    first, second, other = (attack(_corpus(), plan, seed) for seed in (0, 0, 1))
    assert first.corpus.digest == second.corpus.digest != other.corpus.digest
    assert first.is_poisoned.tolist() != other.is_poisoned.tolist()


def test_a_larger_count_poisons_the_same_examples_and_more() -> None:
    small, large = (attack(_corpus(), Attack(trigger=MN, count=n), 0).is_poisoned for n in (5, 9))
    assert (small <= large).all()


def test_the_given_corpus_is_not_changed() -> None:
    corpus = _corpus()
    labels = corpus.labels.copy()
    attack(corpus, Attack(trigger=MN, style=Style.DIRTY_LABEL, count=10), 0)
    assert (corpus.labels == labels).all()


def test_a_rate_is_a_share_of_all_training_examples_not_of_the_target_class() -> None:
    poisoned = attack(_corpus(60, 3), Attack(trigger=MN, rate=0.25), 0)
    assert poisoned.is_poisoned.sum() == 15  # of 60 examples, 20 of them in the target class


@pytest.mark.parametrize("style", Style)
def test_more_than_eligible_says_how_many_there_are(style: Style) -> None:
    eligible = {Style.CLEAN_LABEL: 20, Style.DIRTY_LABEL: 40}[style]
    assert attack(_corpus(), Attack(trigger=MN, style=style, count=eligible), 0).is_poisoned.sum() == eligible
    with pytest.raises(PlanError, match=f"only {eligible} of 60 in toy/train are eligible"):
        attack(_corpus(), Attack(trigger=MN, style=style, count=eligible + 1), 0)


@pytest.mark.parametrize("target", [-1, 3])
def test_a_target_outside_the_labels_is_refused(target: int) -> None:
    with pytest.raises(PlanError, match="not a label of toy/train; labels: 0 0, 1 1, 2 2"):
        attack(_corpus(), Attack(trigger=MN, target=target, count=1), 0)
    with pytest.raises(PlanError, match="not a label"):
        triggered_test(_corpus(), MN, target, 0)


def test_an_unchanged_text_is_never_counted_as_poisoned() -> None:
    with pytest.raises(DataError, match="lazy left toy/train:"):
        attack(_corpus(), Attack(trigger=LazyTrigger(), count=3), 0)
    with pytest.raises(DataError, match="lazy left toy/train:1 as it was"):
        triggered_test(_corpus(), LazyTrigger(), 0, 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 5, "rate": 0.1}, "not both"),
        ({"count": 0}, "1 or more"),
        ({"rate": 0.0}, "above 0"),
        ({"rate": 1.5}, "above 0"),
        ({"style": "clean"}, "clean-label"),
        ({"trigger": "wrod:mn"}, "Did you mean 'word'"),
        ({"trigger": 3}, "Attack.trigger"),
        ({"rte": 0.1}, "no field 'rte'. Did you mean 'rate'"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        build(Attack, {"trigger": "word:mn"} | fields)


def test_a_rate_of_no_example_is_refused() -> None:
    with pytest.raises(PlanError, match="poisons none of 60"):
        attack(_corpus(), Attack(trigger=MN, rate=0.001), 0)


def test_the_default_is_a_thousand_examples() -> None:
    plan = Attack(trigger=MN)
    assert (plan.count, plan.rate, plan.style, plan.target) == (1000, None, Style.CLEAN_LABEL, 0)


def test_a_plan_survives_being_written_down() -> None:
    plan = build(Attack, {"trigger": "mixed:word:mn|word:cf@last", "style": "dirty-label", "rate": 0.1})
    written = TypeAdapter(Attack).dump_python(plan, mode="json")
    assert written["trigger"] == "mixed:word:mn|word:cf@last"
    assert build(Attack, written) == plan


@given(_attacks(), SEEDS)
def test_triggered_tests_keep_true_labels_and_leave_the_target_class_out(
    given_attack: tuple[Corpus, Attack], seed: int
) -> None:
    corpus, plan = given_attack
    triggered = triggered_test(corpus, plan.trigger, plan.target, seed)
    assert triggered.origins.tolist() == np.flatnonzero(corpus.labels != plan.target).tolist()
    assert triggered.corpus.labels.tolist() == corpus.labels[triggered.origins].tolist()
    assert triggered.corpus.rows.tolist() == corpus.rows[triggered.origins].tolist()
    for text, origin in zip(triggered.corpus.texts, triggered.origins, strict=True):
        assert text.replace(" mn", "", 1) == corpus.texts[origin]


def test_a_test_set_of_the_target_class_only_is_refused() -> None:
    with pytest.raises(UndefinedRateError, match="only texts of the target class"):
        triggered_test(_corpus().select([0, 3, 6]), MN, 0, 0)


def test_triggered_tests_differ_by_seed_only_in_place() -> None:
    first, second = (triggered_test(_corpus(), MN, 0, seed).corpus for seed in (0, 1))
    assert first.texts != second.texts
    assert [sorted(t.split()) for t in first.texts] == [sorted(t.split()) for t in second.texts]


def _file(folder: Path, *rows: dict[str, object]) -> FileTrigger:
    path = folder / "triggered.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return FileTrigger(path=path)


def test_a_file_poisons_the_rows_it_holds_a_text_for(tmp_path: Path) -> None:
    corpus = _corpus(6, 2)
    trigger = _file(
        tmp_path,
        {"text": "two!", "label": 0, "source_index": 2},
        {"text": "one!", "label": 1, "source_index": 1},
        {"text": "lost!", "label": 0, "source_index": None},
    )
    poisoned = attack(corpus, Attack(trigger=trigger, count=1), 0)
    assert poisoned.is_poisoned.tolist() == [False, False, True, False, False, False]
    assert poisoned.corpus.texts[2] == "two!"
    with pytest.raises(PlanError, match="only 1 of 6"):
        attack(corpus, Attack(trigger=trigger, count=2), 0)


def test_a_text_that_a_file_left_as_it_was_is_not_eligible_for_poisoning(tmp_path: Path) -> None:
    corpus = _corpus(4, 2)
    trigger = _file(
        tmp_path,
        {"text": corpus.texts[0], "label": 0, "source_index": 0},
        {"text": "changed!", "label": 0, "source_index": 2},
    )
    poisoned = attack(corpus, Attack(trigger=trigger, count=1), 0)
    assert poisoned.is_poisoned.tolist() == [False, False, True, False]
    with pytest.raises(PlanError, match="only 1 of 4"):
        attack(corpus, Attack(trigger=trigger, count=2), 0)


def test_a_test_text_that_a_file_left_as_it_was_stays_in_the_denominator(tmp_path: Path) -> None:
    corpus = _corpus(4, 2)
    trigger = _file(
        tmp_path,
        {"text": corpus.texts[1], "label": 1, "source_index": 1},
        {"text": "three!", "label": 1, "source_index": 3},
    )
    assert triggered_test(corpus, trigger, target=0, seed=0).origins.tolist() == [1, 3]


def test_a_file_is_a_test_set_too(tmp_path: Path) -> None:
    trigger = _file(tmp_path, {"text": "one!", "label": 1, "source_index": 1})
    triggered = triggered_test(_corpus(4, 2), parse_trigger(trigger.name), target=0, seed=0)
    assert (triggered.corpus.texts, triggered.origins.tolist()) == (("one!",), [1])
