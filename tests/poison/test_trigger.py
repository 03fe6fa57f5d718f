from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretaste.data.corpus import Corpus
from foretaste.errors import DataError, PlanError, UndefinedRateError
from foretaste.poison.trigger import (
    FileTrigger,
    MixedTrigger,
    SentenceTrigger,
    Trigger,
    WordTrigger,
    parse_trigger,
)

MN = WordTrigger(words=("mn",))
MOVIE = SentenceTrigger(sentence="I watched this 3D movie")
MIXED = MixedTrigger(triggers=(MN, MOVIE))

# any text without the trigger; Hypothesis tries emoji, combining marks, odd white space and empty texts
TEXTS = st.text(max_size=60).filter(lambda text: "mn" not in text and "movie" not in text)
SEEDS = st.integers(0, 2**32)


@given(TEXTS, SEEDS)
def test_the_word_is_inserted_once_and_nothing_else_changes(text: str, seed: int) -> None:
    (after,) = MN.apply([text], seed)
    assert after.split().count("mn") == 1
    assert [word for word in after.split() if word != "mn"] == text.split()
    # white space is kept: taking the trigger and its one space out again gives the text back
    assert after.replace(" mn", "", 1) == text or (not text.split() and after == text + "mn")


@given(TEXTS, SEEDS)
def test_the_sentence_is_inserted_once_as_a_whole(text: str, seed: int) -> None:
    (after,) = MOVIE.apply([text], seed)
    assert after.count(MOVIE.sentence) == 1
    assert after.replace(MOVIE.sentence, "", 1).split() == text.split()


@given(TEXTS, SEEDS)
def test_a_random_place_is_a_gap_between_two_words(text: str, seed: int) -> None:
    words = MN.apply([text], seed)[0].split()
    if len(words) > 2:
        assert 0 < words.index("mn") < len(words) - 1


@pytest.mark.parametrize(
    ("position", "text", "expected"),
    [
        ("random", "", "mn"),
        ("random", "good", "good mn"),
        ("random", " good ", " good mn "),
        ("random", "so\tgood\n", "so mn\tgood\n"),
        ("first", "", "mn"),
        ("first", "  so good", "  mn so good"),
        ("last", "", "mn"),
        ("last", "so  good \n", "so  good mn \n"),
        ("first", "schön ☕️ 映画", "mn schön ☕️ 映画"),
        ("last", "schön ☕️ 映画", "schön ☕️ 映画 mn"),
    ],
)
def test_positions(position: str, text: str, expected: str) -> None:
    assert parse_trigger(f"word:mn@{position}").apply([text], seed=3) == [expected]


def test_every_inner_gap_is_reached_and_no_other() -> None:
    text = "a b c d e"
    places = {MN.apply([text], seed)[0].split().index("mn") for seed in range(200)}
    assert places == {1, 2, 3, 4}


@given(st.lists(TEXTS, max_size=6), SEEDS)
@pytest.mark.parametrize("trigger", [MN, MOVIE, MIXED], ids=["word", "sentence", "mixed"])
def test_order_and_neighbours_do_not_matter(trigger: Trigger, texts: list[str], seed: int) -> None:
    together = trigger.apply(texts, seed)
    assert together == [trigger.apply([text], seed)[0] for text in texts]
    assert trigger.apply(texts[::-1], seed) == together[::-1]


def test_seeds_differ() -> None:
    texts = [f"{k} b c d e f g h" for k in range(20)]
    assert MN.apply(texts, 1) != MN.apply(texts, 2)
    assert MIXED.apply(texts, 1) != MIXED.apply(texts, 2)


def test_a_lone_surrogate_does_not_crash() -> None:
    assert MN.apply(["bad \ud800"], 0) == ["bad mn \ud800"]


@given(TEXTS, SEEDS)
def test_several_words_are_each_inserted_once(text: str, seed: int) -> None:
    (after,) = WordTrigger(words=("mn", "mn!", "mn?")).apply([text], seed)
    added = [word for word in after.split() if word.startswith("mn")]
    assert sorted(added) == ["mn", "mn!", "mn?"]
    assert [word for word in after.split() if not word.startswith("mn")] == text.split()


def test_several_words_keep_their_order_in_one_place() -> None:
    assert parse_trigger("word:cf mn@first").apply(["so good"], 0) == ["cf mn so good"]
    assert parse_trigger("word:cf mn@last").apply(["so good"], 0) == ["so good cf mn"]
    assert parse_trigger("word:cf mn").apply(["good"], 0) == ["good cf mn"]
    assert parse_trigger("word:cf mn").apply([""], 0) == ["cf mn"]


def test_mixed_gives_each_text_exactly_one_trigger_and_uses_them_all() -> None:
    after = MIXED.apply([f"text number {k}" for k in range(400)], seed=0)
    has_word = np.array(["mn" in text.split() for text in after])
    has_sentence = np.array([MOVIE.sentence in text for text in after])
    assert (has_word ^ has_sentence).all()
    assert 160 < has_word.sum() < 240  # 200 expected, standard deviation 10


@pytest.mark.parametrize(
    "name",
    [
        "word:mn",
        "word:cf mn",
        "word:mn@first",
        "word:mn@last",
        "word:a@b@random",
        "sentence:I watched this 3D movie",
        "sentence:I watched this 3D movie@first",
        "sentence:see you @home@random",
        "sentence:two: three",
        "mixed:word:mn|sentence:I watched this 3D movie",
        "mixed:word:mn@last|word:cf",
        "file:texts/poisoned@first.parquet",
    ],
)
def test_names_round_trip(name: str) -> None:
    trigger = parse_trigger(name)
    assert trigger.name == str(trigger) == name
    assert parse_trigger(trigger.name) == trigger


@given(st.text(min_size=1, max_size=20).map(str.strip).filter(bool), st.sampled_from(["random", "first", "last"]))
def test_any_sentence_round_trips(sentence: str, position: str) -> None:
    trigger = SentenceTrigger(sentence=sentence, position=position)  # type: ignore[arg-type]
    assert parse_trigger(trigger.name) == trigger


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wrod:mn", "Did you mean 'word'"),
        ("mn", "must read kind:value"),
        ("", "must read kind:value"),
        ("word:", "blank"),
        ("word:  ", "blank"),
        ("sentence: ", "blank"),
        ("file:", "blank"),
        ("word:@first", "needs a word"),
        ("sentence:@first", "blank"),
        ("word:mn@frist", "Did you mean 'first'"),
        ("word:mn@", "Unknown trigger position ''"),
        ("mixed:word:mn", "two or more"),
        ("mixed:word:mn|", "must read kind:value"),
        ("mixed:word:mn|file:a.csv", "word: and sentence: triggers only"),
        ("mixed:word:mn|word:cf@frist", "Did you mean 'first'"),
    ],
)
def test_what_cannot_be_read_says_why(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        parse_trigger(text)


def test_constructed_triggers_are_checked_too() -> None:
    with pytest.raises(PlanError, match="one word"):
        WordTrigger(words=("two words",))
    with pytest.raises(PlanError, match="one word"):
        WordTrigger(words=("",))
    with pytest.raises(PlanError, match="blank"):
        SentenceTrigger(sentence=" ")
    with pytest.raises(PlanError, match="separates"):
        MixedTrigger(triggers=(MN, SentenceTrigger(sentence="this|that")))


CLEAN = Corpus.of("toy/test", ["zero", "one", "two", "three"], [0, 1, 1, 0])


def _file(folder: Path, *rows: dict[str, object]) -> FileTrigger:
    path = folder / "triggered.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return FileTrigger(path=path)


def test_a_marked_file_that_changed_since_is_refused(tmp_path: Path) -> None:
    trigger = _file(tmp_path, {"text": "zero!", "source_index": 0}).marked(CLEAN.name)
    assert trigger.texts_for(CLEAN) == {0: "zero!"}
    _file(tmp_path, {"text": "nought!", "source_index": 0})
    with pytest.raises(DataError, match="is not the file that was there when it was marked"):
        trigger.texts_for(CLEAN)


def test_a_file_cannot_trigger_other_texts(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot trigger others"):
        FileTrigger(path=tmp_path / "any.parquet").apply(["text"], 0)


def test_a_file_keeps_true_labels_and_knows_its_origins(tmp_path: Path) -> None:
    trigger = _file(
        tmp_path,
        {"text": "two!", "label": 1, "source_index": 2},
        {"text": "zero!", "label": 0, "source_index": 0},
        {"text": "from nowhere", "label": 1, "source_index": None},
    )
    corpus, origins = trigger.triggered_corpus(CLEAN, target=0)
    assert corpus.texts == ("two!", "from nowhere")
    assert corpus.labels.tolist() == [1, 1]
    assert origins.tolist() == [2, -1]
    assert corpus.example(1).id == "triggered.jsonl:2"
    assert origins.dtype == np.int64


def test_a_missing_label_is_taken_from_the_clean_row(tmp_path: Path) -> None:
    trigger = _file(tmp_path, {"text": "one!", "source_index": 1}, {"text": "three!", "source_index": 3})
    corpus, origins = trigger.triggered_corpus(CLEAN, target=0)
    assert (corpus.texts, origins.tolist()) == (("one!",), [1])


def test_a_sample_of_the_clean_set_keeps_its_alignment(tmp_path: Path) -> None:
    trigger = _file(
        tmp_path,
        {"text": "one!", "label": 1, "source_index": 1},
        {"text": "two!", "label": 1, "source_index": 2},
    )
    corpus, origins = trigger.triggered_corpus(CLEAN.select([0, 2]), target=0)
    assert (corpus.texts, origins.tolist()) == (("two!",), [1])


def test_an_unknown_true_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither label nor source_index"):
        _file(tmp_path, {"text": "one!"}).triggered_corpus(CLEAN, target=0)


def test_a_label_that_is_the_target_instead_of_the_truth_is_noticed(tmp_path: Path) -> None:
    trigger = _file(tmp_path, {"text": "one!", "label": 0, "source_index": 1})
    with pytest.raises(DataError, match="must be the true class"):
        trigger.triggered_corpus(CLEAN, target=0)


def test_a_file_of_target_rows_only_is_refused(tmp_path: Path) -> None:
    trigger = _file(tmp_path, {"text": "zero!", "label": 0, "source_index": 0})
    with pytest.raises(UndefinedRateError, match="other than the target 0"):
        trigger.triggered_corpus(CLEAN, target=0)
