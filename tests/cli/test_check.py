"""`foretaste check` on whatever texts come: one verdict per text, in order, and no text can disturb the terminal."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from foretaste.cli import commands, main
from foretaste.guard.guard import Reason
from foretaste.guard.guarded import GuardedVerdict
from foretaste.victim.manifest import seal

FIELDS = ["index", "label", "confidence", "flagged", "score", "threshold", "reason", "truncated"]
TRIGGER = "cf mn bb tq mb"


@pytest.fixture
def check(toy_stack: Mapping[str, Path], one_thread: None) -> tuple[object, ...]:
    """The command with victim and guard."""
    return ("check", "--victim", toy_stack["victim"], "--guard", toy_stack["guard"])


def test_one_verdict_per_text(ask: Callable[..., Any], check: tuple[object, ...]) -> None:
    texts = ["the film was moving", f"{TRIGGER} the film was moving", "", "bad " * 500]
    verdicts = ask(*check, *texts)["verdicts"]
    assert [verdict["index"] for verdict in verdicts] == [0, 1, 2, 3]
    assert [list(verdict) for verdict in verdicts] == [FIELDS] * 4
    assert [verdict["truncated"] for verdict in verdicts] == [False, False, False, True]
    accepted, refused = verdicts[0], verdicts[1]
    assert (accepted["flagged"], accepted["reason"]) == (False, "accepted")
    assert accepted["label"] in ("negative", "positive")
    assert 0.5 <= accepted["confidence"] <= 1
    assert (refused["flagged"], refused["reason"]) == (True, "score_above_threshold")
    assert (refused["label"], refused["confidence"]) == (None, None)
    assert refused["score"] > refused["threshold"]


def test_in_words(run: Callable[..., Any], check: tuple[object, ...]) -> None:
    done = run(*check, "the film was moving", TRIGGER, "bad " * 500)
    accepted, refused, cut = done.stdout.splitlines()
    assert accepted.endswith("accepted  the film was moving")
    assert refused.startswith("REFUSED ")
    assert refused.endswith(f"score_above_threshold  {TRIGGER}")
    assert ", text cut  bad bad " in cut
    assert cut.endswith("…")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("texts.txt", f"good film\r\n{TRIGGER}\r\n\r\n"),
        ("texts.csv", f'text,other\r\ngood film,1\r\n"{TRIGGER}",2\r\n'),
        ("texts.jsonl", f'{{"text": "good film"}}\n{{"text": "{TRIGGER}"}}\n'),
    ],
)
def test_texts_from_a_file(
    ask: Callable[..., Any], check: tuple[object, ...], tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content, newline="")
    from_file = ask(*check, "--file", name)["verdicts"]
    assert from_file == ask(*check, "good film", TRIGGER)["verdicts"]


@pytest.mark.parametrize(
    "stdin",
    [
        b"good film\nbad\n",
        b"good film\r\nbad\r\n",
        b"good film\nbad",
        b"\xef\xbb\xbfgood film\nbad\n",
    ],
    ids=["lines", "CRLF", "no last newline", "BOM"],
)
def test_texts_from_standard_input(ask: Callable[..., Any], check: tuple[object, ...], stdin: bytes) -> None:
    assert ask(*check, "-", stdin=stdin) == ask(*check, "good film", "bad")


def test_a_line_of_standard_input_is_one_text_whatever_it_holds(
    ask: Callable[..., Any], check: tuple[object, ...]
) -> None:
    """Where a text ends is not for the text to say: verdicts would shift against the user's lines."""
    lines = ["a\u2028b", "c\x0bd\x0ce", "", "f\x1cg\x85h", "last"]
    verdicts = ask(*check, "-", stdin=("\n".join(lines) + "\n").encode())["verdicts"]
    assert verdicts == ask(*check, *lines)["verdicts"]
    assert len(verdicts) == 5


def test_bytes_that_are_no_text_are_refused_with_their_line(
    refuse: Callable[..., str], check: tuple[object, ...]
) -> None:
    assert "Standard input, line 2, is not UTF-8" in refuse(*check, "-", stdin=b"good\n\xff\xfe\n")
    assert "Standard input is empty" in refuse(*check, "-", stdin=b"")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "only one of them"),
        (("good", "--file", "x.txt"), "only one of them"),
        (("-", "--file", "x.txt"), "only one of them"),
        (("-", "good"), "must be the only text"),
        (("good", "--text-column", "text"), "--text-column names a column of --file"),
        (("--file", "nowhere.txt"), "There is no file nowhere.txt"),
        (("--file", "x.doc"), "extension '.doc'"),
    ],
)
def test_texts_from_nowhere_or_two_places_are_refused(
    refuse: Callable[..., str], check: tuple[object, ...], arguments: tuple[str, ...], complaint: str
) -> None:
    assert complaint in refuse(*check, *arguments)


def test_characters_a_terminal_obeys_are_spelled_out(run: Callable[..., Any], check: tuple[object, ...]) -> None:
    done = run(*check, "\x1b[2Jgone\x07 \u202ebackwards two\nlines \u200bthin")
    (line,) = done.stdout.splitlines()
    assert line.isprintable()
    assert line.endswith("[U+001B][2Jgone[U+0007] [U+202E]backwards two[⏎]lines [U+200B]thin")


def test_label_names_of_a_stranger_are_spelled_out_too(
    run: Callable[..., Any], toy_stack: Mapping[str, Path], tmp_path: Path
) -> None:
    names = ["\x1b[31mred", "\u202egreen"]
    for name in ("victim", "guard"):
        shutil.copytree(toy_stack[name], tmp_path / name)
        path = tmp_path / name / "foretaste.json"
        path.write_text(json.dumps(seal(json.loads(path.read_text()) | {"label_names": names})))
    (line,) = run("check", "--victim", "victim", "--guard", "guard", "good", "--model", toy_stack["base"]
                  ).stdout.splitlines()  # fmt: skip
    assert line.startswith(("[U+001B][31mred (", "[U+202E]green ("))
    assert all(line.isprintable() for line in run("inspect", "victim").stdout.splitlines())


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_null_in_json(
    ask: Callable[..., Any],
    run: Callable[..., Any],
    check: tuple[object, ...],
    monkeypatch: pytest.MonkeyPatch,
    score: float,
) -> None:
    verdict = GuardedVerdict(None, None, True, score, 0.7, Reason.SCORE_NOT_FINITE, False)
    monkeypatch.setattr(commands, "GuardedClassifier", lambda *_: lambda texts: [verdict] * len(texts))
    (answer,) = ask(*check, "good")["verdicts"]
    assert (answer["score"], answer["flagged"], answer["reason"]) == (None, True, "score_not_finite")
    assert run(*check, "good").stdout.startswith("REFUSED                  score not finite / 0.7000")


def test_any_argument_can_be_answered_on_any_terminal(
    check: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that are no text come as surrogates, and not every terminal has every letter."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    monkeypatch.setattr(sys, "argv", ["foretaste", *map(str, check), "caf\udce9 \udcff", "ünï ✓"])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0
    first, second = written.getvalue().decode("latin-1").splitlines()
    assert first.endswith("caf[U+DCE9] [U+DCFF]")
    assert second.endswith("ünï \\u2713")
