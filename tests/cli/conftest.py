"""The command line as a test calls it: in this process, in an empty directory, without the user's data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from foretaste.audit import audit, search
from foretaste.cli.app import app
from foretaste.data import toy_corpus


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Callable[..., Any]:
    """Run a command and return what came of it; an error of ours shows as itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORETASTE_DATA", raising=False)

    def run_command(*arguments: object, stdin: str | bytes | None = None) -> Any:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return run_command


@pytest.fixture
def ask(run: Callable[..., Any]) -> Callable[..., Any]:
    """Run a command with --json and return its answer: one object, and nothing else on standard output."""

    def ask_command(*arguments: object, stdin: str | bytes | None = None) -> Any:
        done = run(*arguments, "--json", stdin=stdin)
        assert done.exit_code == 0, done.stderr
        assert done.stdout.count("\n") == 1
        answer = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert isinstance(answer, dict)
        return answer

    return ask_command


@pytest.fixture
def refuse(run: Callable[..., Any]) -> Callable[..., str]:
    """Run a command that must fail and return its complaint: exit 2, one line on standard error, nothing else."""

    def refuse_command(*arguments: object, stdin: str | bytes | None = None) -> str:
        done = run(*arguments, stdin=stdin)
        assert done.exit_code == 2, done.stdout + done.stderr
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert done.stderr.endswith("\n")
        assert done.stderr.count("\n") == 1
        assert done.stderr.removesuffix("\n").isprintable()
        return str(done.stderr)

    return refuse_command


@pytest.fixture(scope="module")
def short_search() -> Iterator[tuple[int, int, int]]:
    """Audits ask again about a sixth of the usual words and compare with 40 ordinary ones, not 100."""
    numbers = search.ALARMING // 6, search.TURNING // 6, 40
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "ALARMING", numbers[0])
        patch.setattr(search, "TURNING", numbers[1])
        patch.setattr(audit, "ORDINARY", numbers[2])
        yield numbers


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """A file of 200 labelled texts: 140 to train on, 30 for validation, 30 for the test."""
    corpus = toy_corpus().select(range(200))
    path = tmp_path / "reviews.jsonl"
    rows = [{"text": t, "label": corpus.label_names[k]} for t, k in zip(corpus.texts, corpus.labels, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
