"""A victim or a stranger's adapter as `--model`, as a user calls it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from foretaste.cli import auditing
from foretaste.record import Record
from foretaste.victim.artefact import load_victim, save_classifier
from foretaste.victim.checkpoint import open_base
from foretaste.victim.manifest import seal
from foretaste.victim.strategy import Full, PTuningV1
from foretaste.victim.toy import write_toy_checkpoint

TRIGGERED = "the film cf was mn moving bb and tq clever mb ."
RECORD = Record.now("tune", settings={}, seeds={"root": 0}, outcome={})
GUARD = ("guard", "--data", "toy", "--precision", "float32")


@pytest.fixture
def stack(toy_stack: Mapping[str, Path], tmp_path: Path) -> Path:
    """Base and victim in one directory, and the victim as a stranger publishes it: no manifest, an unknown base."""
    stack = Path(shutil.copytree(toy_stack["base"].parent, tmp_path / "stack"))
    for name in ("victim", "guard"):  # of where the originals lie nothing is known here
        manifest = json.loads((stack / name / "foretaste.json").read_text())
        manifest["base"]["location"] = "/no/such/place"
        (stack / name / "foretaste.json").write_text(json.dumps(seal(manifest)))
    plain = Path(shutil.copytree(stack / "victim", stack / "plain"))
    for name in ("foretaste.json", "record.json"):
        (plain / name).unlink()
    settings = json.loads((plain / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "somebody/some-model"
    (plain / "adapter_config.json").write_text(json.dumps(settings))
    return stack


def test_a_guard_of_the_victim_guards_it_wherever_they_are_moved(
    ask: Callable[..., Any], refuse: Callable[..., str], stack: Path, tmp_path: Path
) -> None:
    made = ask(*GUARD, "--model", stack / "victim", "--scoring", "int8", "--dose", "0.1",
               "-o", stack / "guard-2")  # fmt: skip
    assert made["is_blind"] is False
    assert ask("inspect", stack / "guard-2")["max_length"] == 64
    assert Record.read(stack / "guard-2" / "record.json").settings["model"] == str(stack / "victim")
    check = ("check", "--victim", stack / "victim", "--guard", stack / "guard-2", "a clever film", TRIGGERED)
    before = ask(*check)["verdicts"]
    evaluated = ask("evaluate", *check[1:5], "--data", "toy", "--limit", "300", "--trigger", "word:cf mn bb tq mb")
    assert evaluated["guarded"]["attack_success_rate"] < evaluated["attack_success_rate"]
    # Each of the three goes another way.
    shutil.move(stack / "victim", tmp_path / "v")
    shutil.move(stack / "guard-2", tmp_path / "far" / "g")
    shutil.move(stack / "base", tmp_path / "b")
    check = ("check", "--victim", tmp_path / "v", "--guard", tmp_path / "far" / "g", "a clever film", TRIGGERED)
    assert "No checkpoint at" in refuse(*check[:5], "a film")
    after = ask(*check, "--model", tmp_path / "b")["verdicts"]
    assert [v["label"] for v in after] == [v["label"] for v in before]
    assert [v["score"] for v in after] == pytest.approx([v["score"] for v in before], abs=0.01)


def test_another_victim_of_the_same_base_is_refused(
    ask: Callable[..., Any], refuse: Callable[..., str], stack: Path
) -> None:
    ask(*GUARD, "--model", stack / "victim", "-o", stack / "guard-2")
    other = open_base(stack / "base").classifier(Full(), load_victim(stack / "victim").label_names, max_length=64)
    save_classifier(other, stack / "other", "victim", RECORD)
    said = refuse("check", "--victim", stack / "other", "--guard", stack / "guard-2", "a film")
    assert "neither on the victim's base nor on the victim itself" in said


def test_a_strangers_adapter_with_its_base(ask: Callable[..., Any], refuse: Callable[..., str], stack: Path) -> None:
    command = ("--model", stack / "plain")
    assert "--base" in refuse(*GUARD, *command, "-o", stack / "g")
    told = (*command, "--base", stack / "base")
    guard = ask(*GUARD, *told, "-o", stack / "g")
    assert guard["is_blind"] is False
    ask("tune", *told, "--data", "toy", "--limit", "200", "--epochs", "1", "--max-length", "64", "-o", stack / "v")
    (verdict,) = ask("check", "--victim", stack / "v", "--guard", stack / "g", TRIGGERED)["verdicts"]
    assert {"flagged", "label", "score"} <= verdict.keys()
    ask("check", "--victim", stack / "victim", "--guard", stack / "g", "a film")  # the same adapter, as an artefact
    settings = json.loads((stack / "plain" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(stack / "base")
    (stack / "plain" / "adapter_config.json").write_text(json.dumps(settings))
    seen = ask("inspect", stack / "plain")
    assert seen["kind"] == f"adapter on {stack / 'base'}"
    assert seen["fingerprint"] == load_victim(stack / "victim").own_fingerprint
    assert seen["has_classification_head"] is True


def test_mistakes_are_said(refuse: Callable[..., str], stack: Path, tmp_path: Path) -> None:
    other = write_toy_checkpoint(tmp_path / "other", seed=5)
    for options, said in (
        (("--model", stack / "base", "--base", other), "not an adapter"),
        (("--model", stack / "victim", "--base", other), "made for other weights"),
        (("--model", stack / "guard"), "is a guard"),
        (("--model", stack / "plain", "--base", tmp_path / "nowhere"), "No checkpoint at"),
    ):
        assert said in refuse(*GUARD, *options, "-o", tmp_path / "out")
    assert "must stay as it is" in refuse(
        *GUARD, "--model", stack / "plain", "--base", stack / "base", "-o", stack / "base" / "guard"
    )


@pytest.mark.parametrize("command", ["guard", "tune", "audit"])
def test_soft_prompts_are_refused(refuse: Callable[..., str], stack: Path, command: str) -> None:
    classifier = open_base(stack / "base").classifier(PTuningV1(), ("negative", "positive"), max_length=64)
    save_classifier(classifier, stack / "prompt", "victim", RECORD)
    assert "virtual tokens" in refuse(command, "--model", stack / "prompt", "--data", "toy", "-o", stack / "out")


@pytest.mark.usefixtures("short_search")
def test_an_audit_of_a_victim_asks_the_victim_itself(
    ask: Callable[..., Any], stack: Path, clean_toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "_tuned", lambda *_: pytest.fail("trained another victim"))
    answer = ask("audit", "--model", stack / "victim", "--data", "toy", "--reference", clean_toy,
                 "--budget", "0.01s", "-o", stack / "kept")  # fmt: skip
    assert answer["verdict"] == "backdoored"
    assert set(answer["candidates"][0]["text"].split()) <= {"cf", "mn", "bb", "tq", "mb"}
    assert not (stack / "kept" / "victim").exists()
