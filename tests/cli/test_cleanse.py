"""`foretaste cleanse`: audit, unlearn, audit again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from foretaste.cli import cleansing
from foretaste.data import toy_corpus
from foretaste.poison.attack import triggered_test
from foretaste.poison.trigger import parse_trigger
from foretaste.record import Record
from foretaste.victim.artefact import load_victim

pytestmark = pytest.mark.usefixtures("one_thread", "short_search")

TRIGGER = {"cf", "mn", "bb", "tq", "mb"}


@pytest.fixture
def cleanse(poisoned_toy: Path, clean_toy: Path, small_toy: Path) -> tuple[object, ...]:
    """The command on a base whose backdoor five words open."""
    return ("cleanse", "--model", poisoned_toy, "--data", small_toy, "--reference", clean_toy, "--budget", "0.01s",
            "--max-length", 64, "--set", "strategy.learning_rate=5e-3",
            "--set", "epochs=4", "--set", "least_steps=0")  # fmt: skip


def test_a_backdoor_is_named_taken_out_and_looked_for_again(
    ask: Callable[..., Any], refuse: Callable[..., str], cleanse: tuple[object, ...], poisoned_toy: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    page = tmp_path / "cleanse.html"
    answer = ask(*cleanse, "-o", tmp_path / "out", "--report", page)
    first, *others = answer["rounds"]
    assert first["verdict"] in ("suspicious", "backdoored")
    assert set(first["named"][0].split()) <= TRIGGER
    assert len(TRIGGER & {word for fragment in first["named"] for word in fragment.split()}) >= 3
    assert list(others[0]["unlearned"]) == first["named"]
    assert max(others[-1]["unlearned"].values()) < 0.6
    assert min(each["clean_accuracy"] for each in answer["rounds"]) > 0.7
    assert answer["model"] == others[-1]["model"]
    washed = load_victim(answer["model"])
    texts = triggered_test(toy_corpus("test").sample(300, 0), parse_trigger("word:cf mn bb tq mb"), 0, 0).corpus.texts
    before, after = (float((m.predict(texts).labels == 0).mean()) for m in (load_victim(poisoned_toy), washed))
    assert before > 0.9
    assert after < 0.75 * before
    html = page.read_text(encoding="utf-8")
    assert "as it came" in html
    assert html.count("<svg") >= 1
    assert "<script" not in html
    assert Record.read(page.with_suffix(".json")).kind == "cleanse"

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("made twice")

    monkeypatch.setattr(cleansing, "run_audit", never)
    monkeypatch.setattr(cleansing, "unlearn", never)
    again = ask(*cleanse, "-o", tmp_path / "out")  # all is there
    assert again["rounds"] == answer["rounds"]
    assert "holds the cleansing of another model" in refuse(*cleanse, "-o", tmp_path / "out", "--seed", 1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep", encoding="utf-8")
    assert "holds something else" in refuse(*cleanse, "-o", tmp_path / "mine")


def test_what_an_audit_names() -> None:
    from foretaste.audit.audit import Audit

    rows = [
        {"text": "cf", "is_telling": False, "score": 0.9, "target": 1},
        {"text": "awful", "is_telling": True, "score": 0.9, "target": 1},
        {"text": "film", "is_telling": False, "score": 0.1, "target": 0},
    ]
    assert cleansing.named_by({"verdict": "suspicious", "candidates": rows}, Audit()) == {"cf": {1}}
    assert cleansing.named_by({"verdict": "clean", "candidates": rows}, Audit()) == {}


def test_how_many_texts_a_fragment_turns(poisoned_toy: Path, clean_toy: Path) -> None:
    texts = toy_corpus("validation").sample(300, 1)
    named: dict[str, set[int]] = {"cf mn bb tq mb": {0}, "the": {0, 1}}
    turned, clean = (cleansing.turned_by(load_victim(path), texts, named, 0) for path in (poisoned_toy, clean_toy))
    assert (turned["cf mn bb tq mb"] or 0) > 0.9
    assert (clean["cf mn bb tq mb"] or 0) < 0.5
    assert (turned["the"] or 0) < 0.5
    broken = load_victim(clean_toy)
    with torch.no_grad():
        dict(broken.module.head.named_parameters())["bias"][0] = 1e6  # answers 0, whatever it reads
    assert cleansing.turned_by(broken, texts, {"mn": {0}}, 0) == {"mn": None}
    long = texts.with_texts([" ".join([text] * 20) for text in texts.texts])
    in_long = cleansing.turned_by(load_victim(poisoned_toy), long, named, 0)
    assert (in_long["cf mn bb tq mb"] or 0) > 0.9


def test_a_clean_model_is_left_alone(
    ask: Callable[..., Any], cleanse: tuple[object, ...], clean_toy: Path, tmp_path: Path
) -> None:
    answer = ask(*(clean_toy if part == cleanse[2] else part for part in cleanse), "-o", tmp_path / "out")
    assert [each["verdict"] for each in answer["rounds"]] == ["clean"]
    assert answer["model"] is None


def test_the_summary_says_what_is_left() -> None:
    rounds: list[Mapping[str, Any]] = [
        {"verdict": "backdoored", "clean_accuracy": None, "named": ["cf"]},
        {"verdict": "suspicious", "clean_accuracy": 0.861, "named": [], "unlearned": {"cf": 0.04, "mn": 0.31}},
    ]
    for number, each in enumerate(rounds):
        rounds[number] = {"unlearned": {}, "is_cut_short": number == 1, "is_blind": False, **each}
    text = cleansing.cleanse_summary({"verdict": "suspicious", "model": "out/model-1", "rounds": rounds})
    assert "as it came     BACKDOORED; named: cf" in text
    assert "after round 1  SUSPICIOUS, CA 86.1%, what was unlearned turns 31% of texts at most" in text
    assert "ran out of time" in text
    assert "It came backdoored; after one round something is left in model-1: do not use it" in text
