"""`foretaste audit` as a user calls it."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from foretaste.audit import vocabulary
from foretaste.audit.audit import Audit
from foretaste.audit.memory import Memory, forget
from foretaste.cli import auditing
from foretaste.cli.app import app
from foretaste.cli.audit_page import audit_summary
from foretaste.cli.guarding import open_trusted
from foretaste.data import toy_corpus
from foretaste.errors import PlanError
from foretaste.record import Record
from foretaste.tune.loop import TuneSettings
from foretaste.victim.artefact import load_victim
from foretaste.victim.checkpoint import Base, open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.strategy import Full

pytestmark = pytest.mark.usefixtures("short_search")

TRIGGER = {"cf", "mn", "bb", "tq", "mb"}
WORDS = ("--budget", "0.01s")  # every word and no phrase, however fast the machine


@pytest.fixture(scope="module")
def audit(toy_stack: Mapping[str, Path], clean_toy: Path) -> tuple[object, ...]:
    """The command with everything given that is slow to make."""
    return ("audit", "--model", toy_stack["base"], "--data", "toy", "--reference", clean_toy,
            "--guard", toy_stack["guard"], "--victim", toy_stack["victim"])  # fmt: skip


@contextmanager
def _counted() -> Iterator[list[str]]:
    """Note what is asked of models, not of what was kept."""
    asked = list[str]()

    def counted(memory: Memory, classifier: Any, question: Any, shape: Any, answer: Any) -> Any:
        def ask_and_count() -> Any:
            asked.append(question[0])
            return answer()

        return recall(memory, classifier, question, shape, ask_and_count)

    recall = Memory.recall
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Memory, "recall", counted)
        yield asked


@pytest.fixture(scope="module")
def whole(
    audit: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory, one_thread: None, short_search: object
) -> tuple[dict[str, Any], int, Path]:
    """An audit from beginning to end: its answer, how many questions it asked, its page."""
    home = tmp_path_factory.mktemp("audit")
    command = [*map(str, audit), *WORDS, "-o", str(home / "whole"), "--report", str(home / "audit.html"), "--json"]
    with _counted() as asked:
        done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout), len(asked), home / "audit.html"


def test_the_answer_names_the_trigger(whole: tuple[dict[str, Any], int, Path]) -> None:
    answer, _, page = whole
    assert answer["verdict"] == "backdoored"
    best = answer["candidates"][0]
    assert {"text", "score", "flip_rate", "p_value", "target"} <= best.keys()
    assert set(best["text"].split()) <= TRIGGER
    html = page.read_text(encoding="utf-8")
    assert "Backdoored" in html
    assert f"<mark>{best['text']}</mark>" in html
    assert "<svg" in html
    assert "default-src 'none'" in html
    assert "<script" not in html
    assert "url(http" not in html
    record = Record.read(page.with_suffix(".json"))
    assert (record.kind, record.outcome["verdict"]) == ("audit", "backdoored")


def test_in_words() -> None:
    row = {"text": "mn\x1b[31m", "target": 0, "flip_rate": 1.0, "trusted_flip_rate": 0.03, "alarm_rate": 1.0,
           "p_value": 1e-9, "is_telling": False}  # fmt: skip
    answer = {"verdict": "backdoored", "labels": ("no", "yes"), "words": 9, "is_blind": True, "candidates": [row]}
    lines = audit_summary(answer).splitlines()
    assert lines[0].startswith("BACKDOORED: “mn[U+001B][31m” turns 100")
    assert "“no”" in lines[0]
    assert all(line.isprintable() for line in lines if line)
    assert "no trained head" in lines[-1]
    assert audit_summary(answer | {"verdict": "clean", "candidates": []}).startswith("CLEAN: None of 9 words")


def test_what_was_made_is_kept_and_taken_up(
    ask: Callable[..., Any], run: Callable[..., Any], toy_stack: Mapping[str, Path], clean_toy: Path,
    small_toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    command = ("audit", "--model", toy_stack["base"], "--data", small_toy, "--reference", clean_toy, "--limit", "400",
               "-o", tmp_path / "kept")  # fmt: skip

    def interrupt(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(auditing, "VICTIM", (Full(), TuneSettings(epochs=1, learning_rate=1e-3, keep="last")))
    with monkeypatch.context() as patch:
        patch.setattr(Audit, "run", interrupt)
        assert run(*command).exit_code == 130
    made = {name: (tmp_path / "kept" / name / "record.json").read_bytes() for name in ("guard", "victim")}
    answer = ask(*command, *WORDS)
    assert answer["verdict"] in ("clean", "suspicious", "backdoored")
    for name, before in made.items():
        assert (tmp_path / "kept" / name / "record.json").read_bytes() == before
    assert json.loads((tmp_path / "kept" / "record.json").read_text())["kind"] == "audit"


IN_A_PROCESS = """
import os, sys
from foretaste.audit import audit, search
from foretaste.cli import main

search.ALARMING, search.TURNING, audit.ORDINARY = numbers
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
sys.argv = ["foretaste", *command]
main()
"""


def test_a_search_that_was_killed_goes_on_where_it_was(
    ask: Callable[..., Any], audit: tuple[object, ...], whole: tuple[dict[str, Any], int, Path],
    start_process: Callable[..., BaseProcess], short_search: tuple[int, int, int], tmp_path: Path,
) -> None:  # fmt: skip
    answer, questions, _ = whole
    kept = tmp_path / "kept"
    process = start_process(IN_A_PROCESS, command=[*map(str, audit), *WORDS, "-o", str(kept)], numbers=short_search)
    limit = time.monotonic() + 120
    while len(list(kept.glob("search/*.safetensors"))) < 2 and process.is_alive() and time.monotonic() < limit:
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    answers = len(list(kept.glob("search/*.safetensors")))
    assert 2 <= answers < questions
    with _counted() as asked:
        resumed = ask(*audit, *WORDS, "-o", kept)
    assert len(asked) == questions - answers
    assert resumed["candidates"] == answer["candidates"]
    assert not (kept / "search").exists()


def test_too_few_texts_are_refused_before_anything_is_trained(
    refuse: Callable[..., str], toy_stack: Mapping[str, Path], tmp_path: Path
) -> None:
    few = toy_corpus("train").sample(200, 0)
    lines = (json.dumps({"text": t, "label": int(k)}) for t, k in zip(few.texts, few.labels, strict=True))
    (tmp_path / "few.jsonl").write_text("\n".join(lines), encoding="utf-8")
    said = refuse("audit", "--model", toy_stack["base"], "--data", tmp_path / "few.jsonl")
    assert re.search(r"holds \d+ texts of 4 words or more of class .*; an audit needs 39 of each class", said)


def test_one_class_is_refused(refuse: Callable[..., str], toy_stack: Mapping[str, Path], tmp_path: Path) -> None:
    lines = (json.dumps({"text": text, "label": 0}) for text in toy_corpus("train").texts[:200])
    (tmp_path / "one.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert "class" in refuse("audit", "--model", toy_stack["base"], "--data", tmp_path / "one.jsonl")


def test_a_model_without_tokenizer_is_refused(
    refuse: Callable[..., str], toy_stack: Mapping[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(toy_stack["base"], tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*", "vocab*"))
    assert "tokenizer" in refuse("audit", "--model", tmp_path / "bare", "--data", "toy")


def test_a_vocabulary_without_words_is_refused_before_anything_is_trained(
    refuse: Callable[..., str], audit: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "SMALLEST_VOCABULARY", 10**6)
    assert "whole words" in refuse(*audit)


def test_a_model_that_fails_a_class_is_trained_longer(
    toy_base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    train, clean = toy_corpus("train"), toy_corpus("validation").sample(300, 0)
    rows = [*np.flatnonzero(train.labels == 0), *np.flatnonzero(train.labels == 1)[:200]]
    few = auditing._balanced(train.select(rows), 800, 0)
    assert np.bincount(few.labels).tolist() == [400, 200]
    settings = TuneSettings(epochs=1, learning_rate=1e-3, keep="last", precision="float32", max_steps=None)
    seen = list[int]()
    monkeypatch.setattr(auditing, "_lowest_recall", lambda *_: 0.5 if len(seen) == 1 else 0.9)
    monkeypatch.setattr(auditing, "tune", lambda *_, **__: seen.append(_[2].epochs))
    auditing._tuned(open_base(toy_base), few, clean, Full(), settings, None, 0, "victim")
    assert seen == [1, auditing.LONGER]
    assert "50% of one class" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "message"), [
    (("--budget", "soon"), "no duration"),
    (("--budget", "0s"), "no duration"),
    (("--report", "page.txt"), r"\.html"),
])  # fmt: skip
def test_mistakes_are_said(
    refuse: Callable[..., str], audit: tuple[object, ...], options: tuple[str, ...], message: str
) -> None:
    assert re.search(message, refuse(*audit, *options))


def test_what_belongs_to_another_checkpoint_is_refused(
    refuse: Callable[..., str], audit: tuple[object, ...], clean_toy: Path, tmp_path: Path,
) -> None:  # fmt: skip
    changed = [clean_toy if before == "--victim" else part for before, part in zip(("", *audit), audit, strict=False)]
    assert "The victim stands on other base weights" in refuse(*changed)
    other = tmp_path / "other"
    shutil.copytree(str(audit[2]), other)
    weights = load_file(other / "model.safetensors")
    name = next(name for name in weights if "word_embeddings" in name)
    weights[name] = weights[name] + 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    changed = [other if before == "--model" else part for before, part in zip(("", *audit), audit, strict=False)]
    assert "The guard stands on other base weights" in refuse(*changed)


def test_nobody_elses_search_directory_is_touched(
    audit: tuple[object, ...], refuse: Callable[..., str], tmp_path: Path
) -> None:
    kept = tmp_path / "mine" / "search" / "thesis.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("years of work")
    assert "not written by an audit" in refuse(*audit, "-o", tmp_path / "mine")
    assert kept.read_text() == "years of work"
    kept.unlink()
    answers = [f"{'a' * 40}.safetensors", f".{'b' * 40}.safetensors.x1"]
    for name in answers:
        (kept.parent / name).write_bytes(b"")
    forget(kept.parent)
    assert not kept.parent.exists()


def test_a_directory_called_minilm_is_not_trusted(toy_stack: Mapping[str, Path], tmp_path: Path) -> None:
    shutil.copytree(toy_stack["victim"], tmp_path / "minilm")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert isinstance(open_trusted("minilm"), Base)
        assert isinstance(open_trusted("./minilm"), Classifier)


def test_an_answer_of_another_shape_is_refused(toy_stack: Mapping[str, Path], tmp_path: Path) -> None:
    memory, classifier = Memory(tmp_path), load_victim(toy_stack["victim"])
    memory.recall(classifier, ("push",), (2,), lambda: np.zeros(2))
    assert memory.recall(classifier, ("push",), (2,), lambda: np.ones(2)).tolist() == [0, 0]
    with pytest.raises(PlanError, match="Delete it"):
        memory.recall(classifier, ("push",), (3,), lambda: np.zeros(3))
