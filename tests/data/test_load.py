"""Loading: every way in gives the same corpus, every broken file one clear error."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretaste.data import Corpus, hub, load_corpus, load_texts, load_variant
from foretaste.data.hub import NAMED_SETS, load_from_hub
from foretaste.errors import DataError, PlanError

ROWS = [("fine film", "pos"), ('awful, "really"\nawful', "neg"), ("née ☃ fine", "pos")]
SUFFIXES = ("jsonl", "csv", "tsv", "parquet")


@pytest.fixture(autouse=True)
def _no_data_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> list[list[object]]:
        raise DataError("ConnectionError: no network in tests")

    monkeypatch.delenv("FORETASTE_DATA", raising=False)
    monkeypatch.setattr(hub, "read_hub", refuse)


def _write(path: Path, rows: Sequence[tuple[Any, ...]], header: Sequence[str] = ("text", "label")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [dict(zip(header, row, strict=True)) for row in rows]
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *rows])
    return path


def _bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# Files


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_each_format_gives_the_same_corpus(tmp_path: Path, suffix: str) -> None:
    corpus = load_corpus(str(_write(tmp_path / f"mine.{suffix}", ROWS)))
    assert corpus.name == f"mine.{suffix}"
    assert corpus.texts == tuple(text for text, _ in ROWS)
    assert corpus.labels.tolist() == [1, 0, 1]
    assert corpus.label_names == ("neg", "pos")
    assert corpus.rows.tolist() == [0, 1, 2]


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=25, deadline=None)
@given(texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=2))
def test_any_text_survives_a_file(tmp_path_factory: pytest.TempPathFactory, suffix: str, texts: list[str]) -> None:
    texts = [f"x{text}" for text in texts]
    rows = [(text, i % 2) for i, text in enumerate(texts)]
    path = _write(tmp_path_factory.mktemp("any") / f"any.{suffix}", rows)
    assert load_corpus(str(path)).texts == tuple(texts)
    assert load_texts(path) == texts


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("labels", [(0, 1, 2, 1), (0.0, 1.0, 2.0, 1.0), ("0", "1", "2", "1")])
def test_numbers_are_labels_however_they_are_written(tmp_path: Path, suffix: str, labels: tuple[object, ...]) -> None:
    path = _write(tmp_path / f"mine.{suffix}", [(f"text {i}", label) for i, label in enumerate(labels)])
    corpus = load_corpus(str(path))
    assert corpus.labels.tolist() == [0, 1, 2, 1]
    assert corpus.label_names == ("0", "1", "2")


def test_columns_can_be_chosen_and_an_unknown_one_suggests_the_nearest(tmp_path: Path) -> None:
    path = _write(tmp_path / "mine.csv", ROWS, ("sentence", "sentiment"))
    corpus = load_corpus(str(path), text_column="sentence", label_column="sentiment")
    assert corpus.labels.tolist() == [1, 0, 1]
    with pytest.raises(DataError, match=r"no column 'sentences'\. Did you mean 'sentence'\?"):
        load_corpus(str(path), text_column="sentences", label_column="sentiment")
    with pytest.raises(PlanError, match="both"):
        load_corpus(str(path), text_column="sentence", label_column="sentence")


def test_byte_order_mark_windows_line_ends_and_blank_json_lines_do_not_matter(tmp_path: Path) -> None:
    table = _bytes(tmp_path / "a.csv", b"\xef\xbb\xbftext,label\r\ngood,1\r\n\r\nbad,0\r\n")
    lines = _bytes(tmp_path / "a.jsonl", b'\n{"text":"good","label":1}\r\n{"text":"bad","label":0}\n\n')
    assert load_corpus(str(table)).texts == load_corpus(str(lines)).texts == ("good", "bad")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "a.csv holds no rows"),
        ("a.csv", b"text,label\n", "a.csv holds no rows"),
        ("a.csv", b"text\ngood\nbad\n", r"a.csv has no column 'label'.* Known: text\."),
        ("a.csv", b"text,label\ngood,1\nfine,1\n", "a.csv has one class only"),
        ("a.csv", b"text,label\ngood,1\n \t,0\n", "a.csv:3: 'text' is blank"),
        ("a.csv", b'text,label\n"two\nlines",1\nbad,\n', "a.csv:4: 'label' is missing"),
        ("a.csv", b"text,label\ngood, fine,1\n", "a.csv:2 has 3 fields, but the header has 2"),
        ("a.csv", b'text,label\n"never closed,1\nbad,0\n', "a.csv:2 cannot be read"),
        ("a.csv", b"text,label\ngood,1\nbad \xff,0\n", "a.csv:3 is not UTF-8"),
        ("a.csv", b"text,label,text\ngood,1,x\n", "a.csv:1 names a column twice"),
        ("a.csv", b"text,label\ngood,1\nbad,neg\n", "a.csv:3: label 'neg', but 1 before"),
        ("a.csv", b"text,label\ngood,1\nbad,2\n", "labels 1, 2; expected every number from 0"),
        ("a.csv", b"text,label\ngood,1\nbad,-1\n", "labels -1, 1; expected every number from 0"),
        ("a.jsonl", b"", "a.jsonl holds no rows"),
        ("a.jsonl", b'{"text":"x","label":1}\n{"text"\n', "a.jsonl:2 is not JSON"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1 is not JSON"),
        ("a.jsonl", b'["x", 1]\n', "a.jsonl:1 is a JSON list"),
        ("a.jsonl", b'{"text":"x","label":1}\n{"label":0}\n', "a.jsonl:2: 'text' is missing"),
        ("a.jsonl", b'{"text":"x","label":1}\n{"text":7,"label":0}\n', r"a.jsonl:2: 'text' is 7 \(int\)"),
        ("a.jsonl", b'{"text":"x","label":1}\n{"text":"y","label":null}\n', "a.jsonl:2: 'label' is missing"),
        ("a.jsonl", b'{"text":"x","label":1}\n{"text":"y","label":NaN}\n', "a.jsonl:2: 'label' is missing"),
        ("a.jsonl", b'{"text":"x","label":1}\n{"text":"y","label":true}\n', "a.jsonl:2: 'label' is True"),
        ("a.jsonl", b'{"text":"x","label":0.5}\n{"text":"y","label":1}\n', "a.jsonl:1: 'label' is 0.5"),
        ("a.jsonl", b'{"text":"x","label":[0]}\n{"text":"y","label":1}\n', r"a.jsonl:1: 'label' is \[0\]"),
        ("a.jsonl", b'{"text":"\\ud800","label":0}\n', "a.jsonl:1: 'text' is not valid Unicode"),
        ("a.parquet", b"", "a.parquet cannot be read as Parquet"),
        ("a.parquet", b"PAR1 and then nothing PAR1", "a.parquet cannot be read as Parquet"),
        ("a.json", b"{}", r"extension '\.json'\. Did you mean '\.jsonl'"),
        ("a", b"text", "extension ''"),
    ],
)
def test_broken_file_is_one_clear_error(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_corpus(str(_bytes(tmp_path / name, content)))
    assert "\n" not in str(caught.value)


def test_parquet_errors_name_the_row(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.parquet", [("good", 1), (None, 0)])
    with pytest.raises(DataError, match=r"a.parquet:row 1: 'text' is missing"):
        load_corpus(str(path))
    empty = pyarrow.table({"text": pyarrow.array([], pyarrow.string()), "label": pyarrow.array([], "int8")})
    pyarrow.parquet.write_table(empty, path)
    with pytest.raises(DataError, match="holds no rows"):
        load_corpus(str(path))


def test_label_column_full_of_texts_is_questioned(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", [(f"text {i}", f"name {i}") for i in range(1_001)])
    with pytest.raises(DataError, match="1001 different labels; is 'label' the label column"):
        load_corpus(str(path))


# Directories


def test_directory_numbers_the_names_of_its_train_split(tmp_path: Path) -> None:
    _write(tmp_path / "set/train.csv", [("x", "b"), ("y", "c"), ("z", "a")])
    _write(tmp_path / "set/test.jsonl", [("w", "c"), ("v", "b")])
    test = load_corpus(str(tmp_path / "set"), "test")
    assert test.name == "set/test"
    assert test.label_names == ("a", "b", "c")
    assert test.labels.tolist() == [2, 1]
    with pytest.raises(DataError, match=r"no validation split .* It has train, test\."):
        load_corpus(str(tmp_path / "set"), "validation")


def test_directory_refuses_labels_train_does_not_know(tmp_path: Path) -> None:
    _write(tmp_path / "train.csv", [("x", "good"), ("y", "bad")])
    _write(tmp_path / "test.csv", [("x", "good"), ("y", "goood")])
    with pytest.raises(DataError, match=r"test.csv:3: unknown label 'goood'\. Did you mean 'good'"):
        load_corpus(str(tmp_path), "test")
    _write(tmp_path / "train.csv", [("x", 0), ("y", 1)])
    _write(tmp_path / "test.csv", [("x", 0), ("y", 2)])
    with pytest.raises(DataError, match=r"test.csv:3: label 2; expected 0 to 1"):
        load_corpus(str(tmp_path), "test")


def test_directory_without_train_and_with_two_files_per_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no split at all"):
        load_corpus(str(tmp_path))
    _write(tmp_path / "test.csv", [("x", "b"), ("y", "c")])
    _write(tmp_path / "validation.csv", [("x", "a"), ("y", "b")])
    assert load_corpus(str(tmp_path), "test").label_names == ("a", "b", "c")
    _write(tmp_path / "test.parquet", ROWS)
    with pytest.raises(DataError, match=r"test more than once: test\.parquet, test\.csv"):
        load_corpus(str(tmp_path), "test")


# Names, options, limits


def test_unknown_names_suggest_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="Did you mean 'sst2'"):
        load_corpus("sst")
    with pytest.raises(PlanError, match="Did you mean 'validation'"):
        load_corpus("toy", "valid")
    with pytest.raises(DataError, match="There is no file"):
        load_corpus(str(tmp_path / "gone.csv"))
    with pytest.raises(PlanError, match="no columns"):
        load_corpus("toy", text_column="sentence")


@pytest.mark.parametrize("source", ["", "  ", "a long text " * 500, "~no-such-user/a.csv"])
def test_source_that_cannot_be_a_path_is_a_data_error(source: str) -> None:
    with pytest.raises(DataError, match="path"):
        load_corpus(source)
    with pytest.raises(DataError, match="path"):
        load_texts(source)


def test_limit_draws_a_seeded_sample_in_order() -> None:
    corpus = load_corpus("toy", "test", limit=50, seed=3)
    assert len(corpus) == 50
    assert corpus.rows.tolist() == sorted(corpus.rows.tolist())
    assert corpus.digest == load_corpus("toy", "test", limit=50, seed=3).digest
    assert corpus.digest != load_corpus("toy", "test", limit=50, seed=4).digest
    with pytest.raises(PlanError, match="limit is 0"):
        load_corpus("toy", limit=0)


# Named sets


def test_data_root_comes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "one/sst2/test.parquet", [("from one", 0), ("x", 1)])
    _write(tmp_path / "two/sst2/test.parquet", [("from two", 0), ("x", 1)])
    _write(tmp_path / "two/cr/test.parquet", [("cr from two", 1), ("x", 1)])
    monkeypatch.setenv("FORETASTE_DATA", str(tmp_path / "two"))
    corpus = load_corpus("sst2", "test", data_root=tmp_path / "one")
    assert (corpus.name, corpus.texts[0]) == ("sst2/test", "from one")
    assert corpus.label_names == ("negative", "positive")
    assert load_corpus("sst2", "test").texts[0] == "from two"
    assert load_corpus("cr", "test", data_root=tmp_path / "one").texts[0] == "cr from two"
    with pytest.raises(DataError, match=r"cr has no train split .* It has test\."):
        load_corpus("cr", "train")


def test_data_root_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="gone is not there"):
        load_corpus("sst2", data_root=tmp_path / "gone")
    monkeypatch.setenv("FORETASTE_DATA", str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"FORETASTE_DATA names, .*gone is not there"):
        load_corpus("sst2")


def test_set_found_nowhere_names_every_place(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_corpus("imdb", "test", data_root=tmp_path)
    message = str(caught.value)
    for part in ("imdb/test", str(tmp_path), "FORETASTE_DATA is not set", "stanfordnlp/imdb", "--data-root"):
        assert part in message


def _hub_of(size: int, blank: int | None = None) -> hub.HubReader:
    def read(hub_id: str, subset: str | None, split: str, columns: Sequence[str]) -> list[list[object]]:
        texts: list[object] = [f" {hub_id} {split} {i} " for i in range(size)]
        if blank is not None:
            texts[blank] = "  "
        return [texts, [i % 2 for i in range(size)]]

    return read


@pytest.mark.parametrize("name", list(NAMED_SETS))
def test_hub_splits_never_overlap(name: str) -> None:
    read = _hub_of(6_000)
    parts = {split: load_from_hub(name, split, read=read) for split in ("train", "validation", "test")}
    texts = [text for part in parts.values() for text in part.texts]
    assert len(set(texts)) == len(texts)
    known = NAMED_SETS[name]
    if known.validation is None:
        assert len(parts["validation"]) == known.held_out
        assert len(parts["train"]) == 6_000 - known.held_out
    assert parts["validation"].name == f"{name}/validation"
    assert parts["validation"].rows.tolist() == list(range(len(parts["validation"])))
    assert parts["validation"].digest == load_from_hub(name, "validation", read=read).digest


def test_hub_texts_are_stripped_and_blank_ones_left_out() -> None:
    corpus = load_from_hub("mr", "test", read=_hub_of(4, blank=1))
    known = NAMED_SETS["mr"].hub_id
    assert corpus.texts == (f"{known} test 0", f"{known} test 2", f"{known} test 3")
    assert corpus.labels.tolist() == [0, 0, 1]


def test_hub_without_network_fails_soon_and_says_why(tmp_path: Path) -> None:
    code = (
        "from foretaste.data import load_corpus\n"
        "from foretaste.errors import DataError\n"
        "import sys\n"
        "try:\n    load_corpus('imdb')\n"
        "except DataError as error:\n    print(error)\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    environment.pop("HF_DATASETS_CACHE", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "stanfordnlp/imdb) says: OfflineModeIsEnabled" in done.stdout
    assert "Traceback" not in done.stderr


# Texts and variants


def test_load_texts_reads_lines_and_columns(tmp_path: Path) -> None:
    assert load_texts(_bytes(tmp_path / "a.txt", "one\r\ntwo née\n\n".encode())) == ["one", "two née"]
    path = _write(tmp_path / "a.csv", [("one",), ("two",)], ["sentence"])
    assert load_texts(path, "sentence") == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\n \n", "a.txt is empty"),
        ("a.txt", b"one\n\ntwo\n", "a.txt:2: 'text' is blank"),
        ("a.txt", b"one\ntwo \xff\n", "a.txt:2 is not UTF-8"),
        ("a.csv", b"sentence\none\n", r"no column 'text'.* Known: sentence\."),
        ("a.doc", b"one\n", r"extension '\.doc'\. .*\.txt"),
    ],
)
def test_load_texts_refuses(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_texts(_bytes(tmp_path / name, content))
    (tmp_path / "d.txt").mkdir()
    with pytest.raises(DataError, match="is a directory"):
        load_texts(tmp_path / "d.txt")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_variant_keeps_unknown_labels_and_rows_apart(tmp_path: Path, suffix: str) -> None:
    path = _write(
        tmp_path / f"v.{suffix}",
        [("cf one", 0, 7), ("cf two", 1, None)],
        ["text", "label", "source_index"],
    )
    variant = load_variant(path)
    assert variant.texts == ("cf one", "cf two")
    assert len(variant) == 2
    assert variant.labels is not None
    assert variant.source_rows is not None
    assert variant.labels.tolist() == [0, 1]
    assert variant.source_rows.tolist() == [7, -1]
    assert variant.source_rows.dtype == np.int64


def test_variant_without_knowledge_says_none(tmp_path: Path) -> None:
    plain = load_variant(_write(tmp_path / "a.csv", [("cf one",)], ["text"]))
    assert plain.labels is None
    assert plain.source_rows is None
    assert load_variant(_write(tmp_path / "b.csv", [("cf one", -1)])).labels is None
    with pytest.raises(DataError, match=r"c.csv:2: 'label' is 'neg'; expected a number"):
        load_variant(_write(tmp_path / "c.csv", [("cf one", "neg")]))


# The real sets, where they are


@pytest.mark.real
@pytest.mark.parametrize("name", list(NAMED_SETS))
def test_real_sets_load(name: str, real_data: Path) -> None:
    sizes = {split: len(load_corpus(name, split, data_root=real_data)) for split in ("train", "test")}
    assert sizes["train"] > sizes["test"] > 500
    for path in (real_data / name / "variants").glob("*_test.parquet"):
        variant = load_variant(path)
        if variant.source_rows is not None:
            assert variant.source_rows.max() < max(sizes.values())


@pytest.fixture
def real_data(request: pytest.FixtureRequest) -> Path:
    if not _REAL_DATA:
        pytest.skip("FORETASTE_DATA is not set")
    return Path(_REAL_DATA)


_REAL_DATA = os.environ.get("FORETASTE_DATA")


def test_corpus_is_what_the_package_says() -> None:
    assert isinstance(load_corpus("toy"), Corpus)
