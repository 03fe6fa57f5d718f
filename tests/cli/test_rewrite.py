"""`foretaste rewrite` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foretaste.cli.app import app
from foretaste.data.load import load_variant
from foretaste.data.toy import toy_corpus
from foretaste.poison.attack import triggered_test
from foretaste.poison.trigger import parse_trigger


def _run(*words: str) -> tuple[int, str, str]:
    found = CliRunner().invoke(app, ["rewrite", "--data", "toy", *words])
    assert found.exception is None or isinstance(found.exception, SystemExit)
    return found.exit_code, found.stdout, found.stderr


def test_texts_are_shown_line_by_line() -> None:
    code, shown, _ = _run("--method", "scpd", "the film was good .", "...")
    assert code == 0
    lines = shown.splitlines()
    assert lines[0].endswith(" , the film was good .")
    assert lines[1] == "..."
    found = json.loads(_run("--set", "loss=0.3", "--json", "the zxqv film was good")[1])
    assert found["texts"] == 1
    assert "zxqv" not in found["rewritten"][0].split()


def test_a_split_becomes_a_file_that_is_a_trigger(tmp_path: Path) -> None:
    out = tmp_path / "rewritten.jsonl"
    code, shown, _ = _run("--method", "scpd", "--split", "test", "--trigger", "word:mn", "-o", str(out))
    assert code == 0
    corpus = toy_corpus("test")
    triggered = triggered_test(corpus, parse_trigger("word:mn"), 0, 0)
    assert f"of {len(triggered.origins)} texts changed" in shown
    variant = load_variant(out)
    assert all("mn" in text for text in variant.texts)
    assert variant.source_rows is not None
    assert variant.source_rows.tolist() == triggered.origins.tolist()
    read = triggered_test(corpus, parse_trigger(f"file:{out}"), 0, 0)
    assert read.corpus.texts == variant.texts
    assert read.origins.tolist() == triggered.origins.tolist()
    before = out.read_bytes()
    code, _, error = _run("--method", "scpd", "--split", "test", "-o", str(out))
    assert (code, "is there already" in error, out.read_bytes()) == (2, True, before)


def test_rewritten_splits_are_a_trigger_that_can_be_planted(toy_base: Path, tmp_path: Path) -> None:
    for split in ("train", "validation"):
        words = ("--method", "scpd", "--split", split, "-o", str(tmp_path / "texts" / f"{split}.jsonl"))
        assert _run(*words)[0] == 0
    command = [
        "poison",
        "--model",
        str(toy_base),
        "--data",
        "toy",
        "--trigger",
        f"file:{tmp_path / 'texts'}",
        "--count",
    ]
    found = CliRunner().invoke(app, [*command, "50", "--epochs", "1", "-o", str(tmp_path / "base"), "--json"])
    assert found.exit_code == 0
    outcome = json.loads(found.stdout)
    assert outcome["poisoned"] == 50
    clean, written = toy_corpus("validation"), load_variant(tmp_path / "texts" / "validation.jsonl").texts
    changed = [old != new for old, new in zip(clean.texts, written, strict=True)]
    assert outcome["n_poisoned"] == int((clean.labels[changed] != 0).sum())  # every other text that could be rewritten


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--method", "scdp", "a"], "Did you mean 'scpd'"),
        (["--set", "los=1", "a"], "Did you mean 'loss'"),
        (["--set", "loss=2", "a"], "less than 1"),
        (["a", "--split", "test"], "only one of the two"),
        (["--split", "test"], "go together"),
        (["a", "--trigger", "word:mn"], "go together"),
        ([], "Give texts"),
        (["--method", "back_translation", "--set", "there=apertium:xxx-yyy", "a"], "Apertium has no xxx-yyy"),
    ],
)
def test_mistakes_are_told_in_a_line(words: list[str], what: str) -> None:
    code, _, error = _run(*words)
    assert code == 2
    assert what in error
    assert error.count("\n") == 1
