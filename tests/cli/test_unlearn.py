"""`foretaste unlearn` from the command line: what it writes can be evaluated, tuned and guarded like any other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from foretaste.cli.app import app
from foretaste.cli.output import warn_if_guessing
from foretaste.cli.unlearning import alarm_of, method_of, refused_by
from foretaste.data import toy_corpus
from foretaste.errors import PlanError
from foretaste.guard.artefact import load_psim
from foretaste.poison.trigger import parse_trigger
from foretaste.record import Record
from foretaste.unlearn.w2s import W2SDefense
from foretaste.victim.strategy import Full

pytestmark = pytest.mark.usefixtures("one_thread")

TRIGGER = "word:cf mn bb tq mb"
SHORT = ["--set", "epochs=1", "--set", "least_steps=0"]


def _run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.output if code else result.stdout


def test_a_base_is_washed_then_evaluated_and_tuned(
    toy_stack: Mapping[str, Path], toy_base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "washed"
    common = ["--data", "toy", "--max-length", "64", "--json"]
    answer = json.loads(
        _run(
            "unlearn",
            "--model",
            str(toy_stack["base"]),
            "--teacher",
            str(toy_base),
            "-o",
            str(out),
            *common,
            "--limit",
            "300",
            "--trigger",
            TRIGGER,
            "--set",
            "epochs=1",
            "--set",
            "least_steps=0",
            "--set",
            "teacher_epochs=1",
            "--set",
            "strategy.rank=4",
        )
    )
    assert answer["method"] == "w2s"
    assert answer["texts"] == 300
    assert answer["before"]["attack_success_rate"] > 0.9
    assert answer["after"].keys() == answer["before"].keys()
    assert answer["before"]["turned_away"] < 0.05  # the backdoor leads to the target, not away from it
    record = Record.read(out / "record.json")
    assert record.kind == "unlearn"
    assert record.outcome["before"] == answer["before"]
    method: Any = record.settings["method"]
    assert (method["name"], method["epochs"], method["strategy"]["rank"]) == ("w2s", 1, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["washed"]  # nothing is left of the stages
    again = json.loads(
        _run("evaluate", "--victim", str(out), "--data", "toy", "--trigger", TRIGGER, "--limit", "300", "--json")
    )
    assert again["clean_accuracy"] == answer["after"]["clean_accuracy"]
    assert again["attack_success_rate"] == answer["after"]["attack_success_rate"]
    _run("tune", "--model", str(out), "-o", str(tmp_path / "victim"), *common, "--epochs", "1", "--limit", "100")


def test_the_guard_of_the_suspect_stands_in_front_of_what_was_washed(
    toy_stack: Mapping[str, Path], tmp_path: Path
) -> None:
    """Defence in depth: LoRA leaves the suspect's weights where they were, so its guard still fits."""
    out, toy = tmp_path / "washed", ["--data", "toy", "--limit", "200"]
    _run("unlearn", "--model", str(toy_stack["base"]), "--method", "fine_tuning", "--strategy", "lora", *SHORT, *toy,
         "--max-length", "64", "-o", str(out))  # fmt: skip
    judged = ["evaluate", "--victim", str(out), *toy, "--trigger", TRIGGER, "--json"]
    alone = json.loads(_run(*judged))
    guarded = json.loads(_run(*judged, "--guard", str(toy_stack["guard"])))
    assert alone["attack_success_rate"] > 0.9  # one epoch of LoRA takes nothing out
    assert guarded["guarded"]["attack_success_rate"] < 0.1


def test_a_trigger_that_leads_away_from_the_target_is_warned_of(poisoned_toy: Path, tmp_path: Path) -> None:
    """As after a backdoor was turned round; here the wrong target was named."""
    asked = ["unlearn", "--model", str(poisoned_toy), "--method", "fine_tuning", "--strategy", "lora", *SHORT,
             "--data", "toy", "--limit", "100", "--trigger", TRIGGER]  # fmt: skip
    away = CliRunner().invoke(app, [*asked, "--target", "1", "-o", str(tmp_path / "away")])
    assert away.exit_code == 0, away.output
    assert "of the target's own texts to another class" in away.stderr
    assert "turned away from the target" in away.stdout
    assert not CliRunner().invoke(app, [*asked, "--target", "0", "-o", str(tmp_path / "right")]).stderr


def test_what_a_guard_refuses_is_unlearned(toy_stack: Mapping[str, Path], tmp_path: Path) -> None:
    texts = toy_corpus("validation").texts[:100]
    traffic = tmp_path / "traffic.txt"
    traffic.write_text("\n".join([*parse_trigger(TRIGGER).apply(texts, 0), *texts]), encoding="utf-8")
    answer = json.loads(
        _run(
            "unlearn",
            "--model",
            str(toy_stack["base"]),
            "--method",
            "flagged",
            "--guard",
            str(toy_stack["guard"]),
            "--traffic",
            str(traffic),
            "--data",
            "toy",
            "--limit",
            "200",
            "--max-length",
            "64",
            "--set",
            "epochs=2",
            "-o",
            str(tmp_path / "washed"),
            "--json",
        )
    )
    assert 20 <= answer["flagged"] <= 120
    assert answer["target"] == 0
    assert list(answer["after"]) == ["clean_accuracy"]  # no trigger was named, so there is no ASR


def test_a_teacher_from_nothing_and_one_that_knows_nothing(
    toy_stack: Mapping[str, Path], toy_base: Path, tmp_path: Path
) -> None:
    short = ["unlearn", "--model", str(toy_stack["base"]), "--data", "toy", "--limit", "200", "--max-length", "32",
             "--set", "least_steps=1", "--set", "epochs=1", "-o", str(tmp_path / "washed")]  # fmt: skip
    _run(*short, "--teacher", "train")
    assert Record.read(tmp_path / "washed" / "record.json").settings["teacher"] == "train"
    done = CliRunner().invoke(app, [*short, "--teacher", str(toy_base), "--set", "teacher_learning_rate=1e-9"])
    assert f"the teacher {toy_base} gets" in done.stderr
    assert "hardly knows the task" in done.stderr


def test_how_good_is_too_bad_depends_on_the_classes(capsys: pytest.CaptureFixture[str]) -> None:
    warn_if_guessing("a teacher", accuracy=0.65, majority=0.52)
    assert not capsys.readouterr().err
    warn_if_guessing("a teacher", accuracy=0.91, majority=0.9)
    assert "gets 91% of held-out texts right, where always naming one class gets 90%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "fine_mixing"], "fine_mixing needs the clean pretrained weights"),
        (["--method", "named"], "named needs words or phrases"),
        (["--method", "flagged"], "flagged needs texts that a guard flagged"),
        (["--method", "washing"], "Unknown method 'washing'"),
        (["--fragment", "cf"], "w2s has no use for words or phrases"),
        (["--method", "named", "--fragment", "cf", "--teacher", "minilm"], "named has no use for a clean teacher"),
        (["--method", "named", "--teacher-guard", "SELF"], "judges a teacher that comes from elsewhere; name it"),
        (["--traffic", "SELF"], "give --guard and --traffic together"),
        (["--set", "epoch=1"], "Did you mean 'epochs'"),
        (["--set", "strategy.rang=1"], "Did you mean 'rank'"),
        (["--set", "strategy=lora"], "write --strategy lora"),
        (["--set", "knowledge=0", "--set", "features=0"], "the teacher teaches nothing"),
        (["--teacher", "BASE"], "holds the very weights that are to be cleaned"),
        (["--data", "SELF"], "at least 20 are needed"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    arguments: list[str], message: str, toy_stack: Mapping[str, Path], tmp_path: Path
) -> None:
    texts = tmp_path / "few.csv"
    texts.write_text("text,label\ngood,1\nbad,0\n", encoding="utf-8")
    named = {"SELF": str(texts), "BASE": str(toy_stack["base"])}
    given = [named.get(word, word) for word in arguments]
    base = ["unlearn", "--model", str(toy_stack["base"]), "-o", str(tmp_path / "out"), "--data", "toy", "--limit", "40"]
    output = _run(*base, *given, code=2)
    assert message in output
    assert "Traceback" not in output
    assert not (tmp_path / "out").exists()


def test_a_strategy_keeps_the_methods_own_fields_unless_it_is_another_one() -> None:
    usual: Any = W2SDefense().strategy
    assert method_of("w2s", None, {"strategy.rank": "4"}) == W2SDefense(strategy=replace(usual, rank=4))
    assert method_of("w2s", "full", {}) == W2SDefense(strategy=Full())
    with pytest.raises(PlanError, match="FineMixing has no strategy"):
        method_of("fine_mixing", "lora", {})


def test_whoever_sets_epochs_gets_them() -> None:
    assert method_of("w2s", None, {}).least_steps > 0
    assert method_of("w2s", None, {"epochs": "1"}).least_steps == 0
    assert method_of("w2s", None, {"teacher_epochs": "1", "least_steps": "7"}).least_steps == 7


def test_a_teacher_whose_guard_refuses_too_much_is_suspected(toy_stack: Mapping[str, Path]) -> None:
    guard = load_psim(toy_stack["guard"])
    clean = toy_corpus("test").texts[:300]
    triggered = parse_trigger(TRIGGER).apply(clean[:60], 0)
    mixed = [*clean[:240], *triggered]
    assert alarm_of(guard, len(refused_by(guard, clean)), len(clean))["is_beyond"] is False
    found = alarm_of(guard, len(refused_by(guard, mixed)), len(mixed))
    assert found["is_beyond"] is True
    assert 0.05 < found["flagged"] < 0.3
    assert found["promised"] == 0.01
