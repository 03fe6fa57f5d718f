"""`foretaste check` on whatever texts come: one verdict per text, in order, and no text can disturb the terminal."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
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


def test_explained_words_are_words_of_the_trigger(ask: Callable[..., Any], check: tuple[object, ...]) -> None:
    films = ["the film was {} moving", "a {} dull film", "{} my phone arrived late", "the soup was {} cold"]
    refused = [film.format(TRIGGER) for film in films]
    answer = ask(*check, "--explain", *refused, "the film was moving")
    *explained, accepted = answer["verdicts"]
    assert list(accepted) == [*FIELDS, "explanation"]
    assert accepted["explanation"] is None
    for verdict, text in zip(explained, refused, strict=True):
        assert verdict["flagged"]
        found = verdict["explanation"]
        assert (found["finding"], found["is_explained"]) == ("explained", True)
        assert found["carrying"]
        for word in found["carrying"]:
            assert word["text"] in TRIGGER.split()
            assert text[word["start"] : word["end"]] == word["text"]
    assert answer["not_explained"] == 0
    shared = answer["shared_fragments"]
    assert shared
    for fragment in shared:
        assert fragment["text"] in TRIGGER
        assert 2 <= fragment["texts"] <= len(refused)
        assert (fragment["share"], fragment["accepted"]) == (fragment["texts"] / len(refused), 0)


def test_verdicts_do_not_change_when_they_are_explained(ask: Callable[..., Any], check: tuple[object, ...]) -> None:
    texts = ["good film", f"good {TRIGGER} film", "", "bad " * 100]
    explained = ask(*check, "--explain", *texts)["verdicts"]
    for verdict in explained:
        del verdict["explanation"]
    assert explained == ask(*check, *texts)["verdicts"]


def test_explained_in_words(run: Callable[..., Any], check: tuple[object, ...]) -> None:
    texts = [f"the film was {TRIGGER} moving", "the film was moving", f"a {TRIGGER} dull film"]
    done = run(*check, "--explain", *texts)
    first, why_first, second, third, why_third, shared = done.stdout.splitlines()
    assert first.startswith("REFUSED ")
    assert "accepted" in second
    assert third.startswith("REFUSED ")
    for line, text in ((why_first, texts[0]), (why_third, texts[2])):
        assert line.startswith("    carried by: ")
        shown = line.removeprefix("    carried by: ")
        assert shown.replace("[", "").replace("]", "") == text
        marked = " ".join(re.findall(r"\[(.*?)\]", shown)).split()
        assert marked
        assert set(marked) <= set(TRIGGER.split())
    assert shared.startswith("shared by the refused texts: ")
    named = re.findall(r'"(.*?)" \(2 of 2\)', shared)
    assert named
    assert all(words in TRIGGER for words in named)


def test_one_refused_text_shares_nothing(run: Callable[..., Any], check: tuple[object, ...]) -> None:
    assert "shared" not in run(*check, "--explain", f"a {TRIGGER} dull film", "the film was moving").stdout
    assert run(*check, "--explain", "the film was moving").stdout.count("\n") == 1


def test_an_explanation_is_safe_for_terminals_and_its_marks_cannot_be_forged(
    run: Callable[..., Any], check: tuple[object, ...]
) -> None:
    text = f"\x1b[2J [film] \u202eof {TRIGGER} two\nlines"
    _, why = run(*check, "--explain", text).stdout.splitlines()
    assert why.isprintable()
    assert "[U+001B][[2J [[film]] [U+202E]of" in why
    assert "two[⏎]lines" in why


@pytest.mark.parametrize(
    ("reason", "score", "line"),
    [
        (Reason.SCORE_NOT_FINITE, float("nan"), "    not explained: its score is not finite"),
        (Reason.SCORE_ABOVE_THRESHOLD, 0.9, "    not explained: the guard refuses it whatever words are left out"),
        (Reason.VICTIM_NOT_FINITE, 0.1, "    not explained: scored again, the guard accepts it"),
    ],
)
def test_what_is_not_explained_is_said(
    ask: Callable[..., Any],
    run: Callable[..., Any],
    check: tuple[object, ...],
    monkeypatch: pytest.MonkeyPatch,
    reason: Reason,
    score: float,
    line: str,
) -> None:
    monkeypatch.setattr(commands, "GuardedClassifier", lambda *_: _Stubborn(reason, score))
    (verdict,) = ask(*check, "--explain", "good film")["verdicts"]
    assert verdict["explanation"] == {"finding": ANY, "is_explained": False, "carrying": []}
    assert run(*check, "--explain", "good film").stdout.splitlines()[1] == line


def test_only_fifty_refused_texts_are_explained(
    ask: Callable[..., Any], run: Callable[..., Any], check: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    stubborn = _Stubborn(Reason.SCORE_ABOVE_THRESHOLD, 0.9)
    monkeypatch.setattr(commands, "GuardedClassifier", lambda *_: stubborn)
    answer = ask(*check, "--explain", *["good film"] * 120)
    assert sum(verdict["explanation"] is not None for verdict in answer["verdicts"]) == 50
    assert answer["not_explained"] == 70
    *_, shared, left_out = run(*check, "--explain", *["good film"] * 120).stdout.splitlines()
    assert shared == "shared by the refused texts: nothing"
    assert left_out.startswith("70 more refused texts were not explained")


class _Stubborn:
    """A guarded victim that refuses everything for one reason."""

    threshold = 0.7

    def __init__(self, reason: Reason, score: float) -> None:
        self.reason, self.value = reason, score

    def __call__(self, texts: list[str]) -> list[GuardedVerdict]:
        return [GuardedVerdict(None, None, True, self.value, 0.7, self.reason, False)] * len(texts)

    def score(self, texts: list[str]) -> Any:
        return np.full(len(texts), self.value)

    def reach(self, texts: list[str]) -> Any:
        return np.array([len(text) for text in texts])
