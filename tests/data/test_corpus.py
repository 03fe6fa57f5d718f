"""The corpus as a value: what it refuses, and that rows survive slicing."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretaste.data import Corpus, Example
from foretaste.errors import DataError

TEXTS = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=30)


def _corpus(size: int = 10) -> Corpus:
    return Corpus.of("mine/train", [f"text {i}" for i in range(size)], [i % 2 for i in range(size)])


@pytest.mark.parametrize(
    ("texts", "labels", "names", "message"),
    [
        ([], [], ["a", "b"], "holds no texts"),
        (["x"], [0, 1], ["a", "b"], "1 texts but"),
        (["x", "y"], [0, 0], ["a"], "one class only"),
        (["x", "y"], [0, 2], ["a", "b"], "mine:1 has label 2; expected 0 to 1"),
        (["x", "y"], [-1, 1], ["a", "b"], "mine:0 has label -1"),
    ],
)
def test_refuses_what_is_no_corpus(texts: list[str], labels: list[int], names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Corpus.of("mine", texts, labels, names)


def test_classes_without_names_are_called_by_their_numbers() -> None:
    assert Corpus.of("mine", ["x", "y"], [2, 0]).label_names == ("0", "1", "2")


def test_example_says_where_it_came_from_after_two_selections() -> None:
    corpus = _corpus().select([9, 4, 3]).select([1, 2])
    assert corpus.example(0) == Example("mine/train:4", "text 4", 0)
    assert corpus.example(1) == Example("mine/train:3", "text 3", 1)


def test_select_takes_a_mask_and_keeps_the_order_of_indices() -> None:
    corpus = _corpus(4)
    assert corpus.select(np.array([True, False, False, True])).texts == ("text 0", "text 3")
    assert corpus.select([3, 0]).texts == ("text 3", "text 0")
    with pytest.raises(DataError, match="no texts"):
        corpus.select(np.zeros(4, dtype=bool))


def test_with_texts_keeps_rows_and_labels() -> None:
    corpus = _corpus(4).select([2, 3])
    changed = corpus.with_texts(["a", "b"], [1, 1])
    assert changed.texts == ("a", "b")
    assert changed.rows.tolist() == [2, 3]
    assert changed.labels.tolist() == [1, 1]
    assert corpus.with_texts(["a", "b"]).labels.tolist() == [0, 1]


def test_digest_is_over_names_texts_and_labels_in_order() -> None:
    state = hashlib.sha256()
    for part in ("0", "1", "é", ""):
        state.update(len(part.encode()).to_bytes(8, "big") + part.encode())
    state.update(np.array([1, 0], dtype=np.int64).tobytes())
    assert Corpus.of("any name", ["é", ""], [1, 0]).digest == state.hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        Corpus.of("n", ["ab", "c"], [1, 0], ["0", "1"]),
        Corpus.of("n", ["a", "bc"], [0, 1], ["0", "1"]),
        Corpus.of("n", ["bc", "a"], [1, 0], ["0", "1"]),
        Corpus.of("n", ["a", "bc"], [1, 0], ["no", "yes"]),
    ],
)
def test_digest_tells_corpora_apart(other: Corpus) -> None:
    assert Corpus.of("n", ["a", "bc"], [1, 0]).digest != other.digest


@given(texts=TEXTS, data=st.data())
def test_partition_is_disjoint_ordered_and_reproducible(texts: list[str], data: st.DataObject) -> None:
    corpus = Corpus.of("mine", texts, [0] * len(texts), ["a", "b"])
    first = data.draw(st.integers(1, len(texts) - 1))
    second = data.draw(st.integers(1, len(texts) - first))
    seed = data.draw(st.integers(0, 2**40))
    parts = corpus.partition([first, second], seed)
    rows = [part.rows.tolist() for part in parts]
    assert [len(part) for part in parts] == [first, second]
    assert not set(rows[0]) & set(rows[1])
    assert all(row == sorted(row) for row in rows)
    assert all(part.texts == tuple(texts[i] for i in row) for part, row in zip(parts, rows, strict=True))
    assert [part.rows.tolist() for part in corpus.partition([first, second], seed)] == rows


def test_partition_depends_on_the_seed_and_refuses_too_much() -> None:
    corpus = _corpus(40)
    assert corpus.partition([20], 0)[0].texts != corpus.partition([20], 1)[0].texts
    with pytest.raises(DataError, match=r"40 texts; parts of \[30, 11\]"):
        corpus.partition([30, 11], 0)
    with pytest.raises(DataError, match="cannot be drawn"):
        corpus.partition([0], 0)


def test_sample_never_grows_and_keeps_order() -> None:
    corpus = _corpus(10)
    assert corpus.sample(10, 0) is corpus
    assert corpus.sample(99, 0) is corpus
    rows = corpus.sample(4, 0).rows.tolist()
    assert len(rows) == 4
    assert rows == sorted(rows)
