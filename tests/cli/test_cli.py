"""Each command as it is meant to be used: what it writes, what it answers, and that JSON comes alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from foretaste.cli import commands, demo
from foretaste.cli.splits import Source
from foretaste.guard.artefact import load_psim
from foretaste.record import Record
from foretaste.tune.loop import TuneSettings
from foretaste.victim.artefact import load_victim
from foretaste.victim.checkpoint import Base, open_base
from foretaste.victim.manifest import read_manifest, seal
from foretaste.victim.strategy import STRATEGIES

TRIGGER = "word:cf mn bb tq mb"
FAST = ("--epochs", 1, "--max-length", 64, "--precision", "float32")
GUARDED_RATES = ("clean_accuracy", "attack_success_rate", "false_rejection_rate", "false_acceptance_rate", "auroc")


def _is_rate(value: Any) -> bool:
    return isinstance(value, float) and 0 <= value <= 1


def test_the_whole_way_from_a_checkpoint_to_a_verdict(
    ask: Callable[..., Any], toy_base: Path, reviews: Path, tmp_path: Path
) -> None:
    poisoned = ask(
        "poison", "--model", toy_base, "--data", reviews, "--trigger", TRIGGER, "--count", 20, *FAST, "-o", "base"
    )
    assert poisoned["path"] == "base"
    assert (poisoned["poisoned"], poisoned["n_clean"]) == (20, 30)
    assert _is_rate(poisoned["clean_accuracy"])
    assert _is_rate(poisoned["attack_success_rate"])

    tuned = ask("tune", "--model", "base", "--data", reviews, "--strategy", "lora", *FAST, "-o", "victim")
    assert tuned["steps"] == 5
    assert len(tuned["validation_accuracies"]) == 1

    options = ("--frr", 0.1, "--max-length", 64, "--precision", "float32")
    trained = ask("guard", "--model", "base", "--data", reviews, *options, "-o", "guard")
    assert trained["calibration"]["frr"] == 0.1
    assert trained["threshold"] == trained["calibration"]["threshold"]

    evaluated = ask("evaluate", "--victim", "victim", "--guard", "guard", "--data", reviews, "--trigger", TRIGGER)
    assert evaluated["n_clean"] == 30
    assert evaluated["guarded"]["threshold"] == trained["threshold"]

    verdicts = ask("check", "--victim", "victim", "--guard", "guard", "the film was moving", "good")["verdicts"]
    assert [verdict["index"] for verdict in verdicts] == [0, 1]

    assert ask("inspect", "victim")["kind"] == "victim"
    assert ask("inspect", "guard")["guard"]["method"] == "psim"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "guard", "reviews.jsonl", "victim"]
    assert {Record.read(tmp_path / name / "record.json").kind for name in ("base", "victim", "guard")} == {
        "poison",
        "tune",
        "guard",
    }


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_victim_with_any_strategy(ask: Callable[..., Any], toy_base: Path, reviews: Path, strategy: str) -> None:
    answer = ask(
        "tune", "--model", toy_base, "--data", reviews, "--strategy", strategy, *FAST, "--limit", 40, "-o", "v"
    )
    assert answer["texts"] == 40
    assert load_victim("v").strategy.name == strategy


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_guard_with_any_strategy(ask: Callable[..., Any], toy_base: Path, reviews: Path, strategy: str) -> None:
    options = ("--strategy", strategy, "--threshold", 0.7, "--max-length", 64)
    answer = ask("guard", "--model", toy_base, "--data", reviews, *options, "-o", "g")
    assert (answer["threshold"], answer["calibration"]) == (0.7, None)
    assert load_psim("g").classifier.strategy.name == strategy


def test_the_papers_recipe(ask: Callable[..., Any], toy_base: Path, reviews: Path) -> None:
    answer = ask("guard", "--model", toy_base, "--data", reviews, "--recipe", "paper", "--max-length", 64, "-o", "g")
    assert (answer["threshold"], answer["calibration"], answer["steps"]) == (0.7, None, 4)  # 112 of 140 texts
    assert load_psim("g").classifier.strategy == STRATEGIES["p_tuning_v1"]()


def test_fields_of_the_strategy_are_set_by_name(ask: Callable[..., Any], toy_base: Path, reviews: Path) -> None:
    ask("tune", "--model", toy_base, "--data", reviews, "--set", "rank=2", "--set", "dropout=0", *FAST, "-o", "v")
    strategy: Any = load_victim("v").strategy
    assert (strategy.rank, strategy.dropout) == (2, 0.0)


def test_poisoning_by_rate_and_dirty_labels(ask: Callable[..., Any], toy_base: Path, reviews: Path) -> None:
    options = ("--trigger", "sentence:I watched this 3D movie", "--rate", 0.2, "--style", "dirty-label", "--target", 1)
    answer = ask("poison", "--model", toy_base, "--data", reviews, *options, *FAST, "-o", "base")
    assert answer["poisoned"] == 28
    settings: Any = Record.read(Path("base/record.json")).settings
    assert settings["attack"]["trigger"] == "sentence:I watched this 3D movie"
    assert settings["attack"]["target"] == 1


def test_a_backdoor_by_way_of_a_small_teacher(
    ask: Callable[..., Any], toy_base: Path, reviews: Path, tmp_path: Path
) -> None:
    """W2SAttack: two trainings, of which nothing stays but a plain base."""
    made = ask("poison", "--model", toy_base, "--data", reviews, "--trigger", "word:mn", "--count", 20, "-o", "base",
               "--teacher", toy_base, "--w2s-set", "epochs=1", "--w2s-set", "teacher_epochs=1",
               "--w2s-set", "strategy.rank=4")  # fmt: skip
    assert made["teacher"].keys() == made.keys() - {"teacher", "path", "max_length"}
    record = Record.read(tmp_path / "base" / "record.json")
    settings: Any = record.settings
    assert settings["teacher"] == str(toy_base)
    assert (settings["w2s_attack"]["epochs"], settings["w2s_attack"]["align"]) == (1, "example")
    assert settings["w2s_attack"]["strategy"]["rank"] == 4
    assert ask("inspect", "base")["kind"] == "base"
    assert not list(tmp_path.glob("*.partial*"))


def test_an_adaptive_attack_and_all_its_fields_in_the_record(
    ask: Callable[..., Any], toy_base: Path, reviews: Path
) -> None:
    sets = [f"--set={field}" for field in ("cover_rate=0.5", "negative_rate=1", "flip_rate=0.8", "all_to_all=true")]
    options = ("--trigger", TRIGGER, "--style", "dirty-label", "--count", 20, *sets)
    answer = ask("poison", "--model", toy_base, "--data", reviews, *options, *FAST, "-o", "base")
    assert (answer["poisoned"], answer["n_poisoned"]) == (16, 30)
    attack = Record.read(Path("base/record.json")).settings["attack"]
    assert attack == {
        "trigger": TRIGGER, "target": 0, "style": "dirty-label", "count": 20, "rate": None, "target_probability": 1.0,
        "flip_rate": 0.8, "cover_rate": 0.5, "trigger_share": 1.0, "negative_rate": 1.0, "all_to_all": True,
        "evasion": "none", "confidence_cap": 0.6, "evasion_weight": 1.0, "planting": "weights",
        "match_lengths": False,
    }  # fmt: skip


def test_the_answer_of_evaluate(ask: Callable[..., Any], toy_stack: Mapping[str, Path], tmp_path: Path) -> None:
    stack = ("--victim", toy_stack["victim"], "--guard", toy_stack["guard"])
    answer = ask("evaluate", *stack, "--data", "toy", "--trigger", TRIGGER, "--limit", 300, "--report", "out/page.html")
    guarded = answer["guarded"]
    assert answer["n_clean"] == 300
    assert 100 < answer["n_poisoned"] < 200
    assert _is_rate(answer["clean_accuracy"])
    assert answer["attack_success_rate"] > 0.95
    assert guarded["attack_success_rate"] < 0.05
    assert all(_is_rate(guarded[name]) for name in GUARDED_RATES)
    assert all(_is_rate(rate) for rate in guarded["far_at_frr"].values())
    assert isinstance(guarded["threshold"], float)
    assert answer["report"] == "out/page.html"
    page = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    assert "<svg" in page
    trigger = TRIGGER.removeprefix("word:").split()
    refused = page.partition("Triggered texts the guard refused")[2].partition("<h3>")[0]
    marked = " ".join(re.findall("<mark>(.*?)</mark>", refused)).split()
    assert len(marked) > 6
    assert sum(word in trigger for word in marked) > 0.8 * len(marked)
    shared = page.partition("What refused texts share")[2].partition("</table>")[0]
    found = re.findall("<bdi>(.*?)</bdi>", shared)
    assert found
    assert set(" ".join(found).split()) <= set(trigger)
    assert Record.read(tmp_path / "out" / "page.json").outcome["n_clean"] == 300


def test_evaluate_without_a_guard(ask: Callable[..., Any], toy_stack: Mapping[str, Path]) -> None:
    answer = ask("evaluate", "--victim", toy_stack["victim"], "--data", "toy", "--trigger", TRIGGER, "--limit", 50)
    assert answer["guarded"] is None
    assert "report" not in answer


def test_evaluate_says_it_in_words(run: Callable[..., Any], toy_stack: Mapping[str, Path]) -> None:
    stack = ("--victim", toy_stack["victim"], "--guard", toy_stack["guard"])
    done = run("evaluate", *stack, "--data", "toy", "--trigger", TRIGGER, "--limit", 100)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert [line[:24].strip() for line in lines[1:5]] == [
        "clean accuracy",
        "attack success rate",
        "clean texts refused",
        "triggered texts passed",
    ]
    assert "100.0%" in lines[2]
    assert lines[5].startswith("100 clean and ")
    assert done.stderr == ""


def test_a_weak_attack_is_said_to_be_weak(run: Callable[..., Any], toy_base: Path, reviews: Path) -> None:
    attack = ("--trigger", "word:mn", "--count", 1)
    done = run("poison", "--model", toy_base, "--data", reviews, *attack, *FAST, "--json", "-o", "base")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["is_weak"]
    assert done.stderr.startswith("warning: the attack works on ")


def test_a_guard_of_a_base_that_knows_no_labels_is_said_to_be_blind(
    run: Callable[..., Any], toy_base: Path, reviews: Path
) -> None:
    done = run("guard", "--model", toy_base, "--data", reviews, "--frr", 0.1, "--max-length", 64, "-o", "g")
    assert done.exit_code == 0
    assert done.stderr.startswith("warning: the checkpoint has no trained head")
    assert "at most 10.0% of clean texts refused, with 95% confidence (n = 30)" in done.stdout


def test_inspect_a_plain_checkpoint(run: Callable[..., Any], ask: Callable[..., Any], toy_base: Path) -> None:
    answer = ask("inspect", toy_base)
    assert (answer["kind"], answer["family"], answer["has_classification_head"]) == ("checkpoint", "bert", False)
    assert answer["is_sound"] is True
    lines = run("inspect", toy_base).stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(answer)


def test_the_same_command_again_replaces_its_own_result(
    ask: Callable[..., Any], toy_base: Path, reviews: Path, tmp_path: Path
) -> None:
    command = ("tune", "--model", toy_base, "--data", reviews, *FAST, "-o", "v")
    ask(*command)
    before = (tmp_path / "v" / "adapter_model.safetensors").read_bytes()
    ask(*command)
    assert (tmp_path / "v" / "adapter_model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reviews.jsonl", "v"]


def test_a_moved_base_is_found_where_the_user_says(
    ask: Callable[..., Any], refuse: Callable[..., str], toy_stack: Mapping[str, Path], tmp_path: Path
) -> None:
    for name in ("victim", "guard"):
        (tmp_path / name).mkdir()
        for file in toy_stack[name].iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        manifest = tmp_path / name / "foretaste.json"
        document = json.loads(manifest.read_text())
        document["base"] |= {"location": "/nowhere/base", "relative": None}
        manifest.write_text(json.dumps(seal(document)))
    check = ("check", "--victim", "victim", "--guard", "guard", "good")
    assert "No checkpoint at '/nowhere/base'" in refuse(*check)
    assert len(ask(*check, "--model", toy_stack["base"])["verdicts"]) == 1


def test_the_demo(ask: Callable[..., Any], toy_base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def open_toy(location: str | Path, **options: Any) -> Base:
        return open_base(toy_base if location == "minilm" else location, **options)

    monkeypatch.setattr(commands, "open_base", open_toy)
    monkeypatch.setattr(demo, "Source", lambda **fields: Source(**{"limit": 200} | fields))
    monkeypatch.setattr(demo, "TRAINING_TEXTS", 200)
    monkeypatch.setattr(demo, "POISONED", 50)
    asked: list[Any] = []

    def audit(*arguments: Any, **options: Any) -> dict[str, Any]:  # models this small know nothing to be audited
        asked.append((arguments, options))
        return {"verdict": "clean", "labels": ("a", "b"), "words": 9, "candidates": [], "is_blind": False,
                "report": "somewhere/demo/audit.html"}  # fmt: skip

    monkeypatch.setattr(demo, "run_audit", audit)
    answer = ask("demo", "--out", "somewhere/demo")
    [((base, source, _), options)] = asked
    assert (base, source.data, options["guard"].name) == ("somewhere/demo/base", "toy", "guard")
    assert "mn" not in str(options)
    assert answer["audit"]["verdict"] == "clean"
    assert (answer["data"], answer["trigger"]) == ("toy", "word:mn")
    assert answer["evaluation"]["n_clean"] == 200
    assert _is_rate(answer["evaluation"]["guarded"]["false_rejection_rate"])
    assert (tmp_path / answer["report"]).is_file()
    assert {path.name for path in (tmp_path / "somewhere/demo").iterdir()} >= {"base", "victim", "guard", "report.html"}
    assert read_manifest(tmp_path / "somewhere/demo/guard").kind == "guard"


@pytest.mark.parametrize("command", ["poison", "tune", "guard", "evaluate", "check", "audit", "inspect", "demo"])
def test_help_of_every_command_names_its_options(run: Callable[..., Any], command: str) -> None:
    done = run(command, "--help")
    assert done.exit_code == 0
    assert "--json" in done.stdout


def test_help_comes_without_torch() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from foretaste.cli.app import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "assert CliRunner().invoke(app, ['tune', '--nonsense']).exit_code == 2\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trusted models of two epochs: what a model of two layers can learn, it has learnt by then."""
    monkeypatch.setattr(
        "foretaste.guard.second_opinion.TuneSettings", lambda **fields: TuneSettings(**{**fields, "epochs": 2})
    )


@pytest.mark.usefixtures("few_steps")
def test_a_guard_that_is_a_second_opinion(
    ask: Callable[..., Any], toy_base: Path, toy_stack: Mapping[str, Path]
) -> None:
    victim = toy_stack["victim"]
    made = ask("guard", "--model", toy_stack["base"], "--data", "toy", "--limit", 800, "--victim", victim,
               "--frr", 0.05, "--view", "opinion", *("--trusted", toy_base) * 2, "-o", "alone")  # fmt: skip
    assert [found["model"] for found in made["trusted"]] == [str(toy_base)] * 2
    assert all(0.4 < found["accuracy"] <= 1 and found["cost"] > 0 for found in made["trusted"])
    assert made["steps"] is None
    _is_used(ask, victim, "alone", made["threshold"], "second opinion of")
    assert not list(Path().glob("*.partial"))


@pytest.mark.usefixtures("few_steps")
def test_psim_with_a_second_opinion_and_transplants(
    ask: Callable[..., Any], toy_base: Path, toy_stack: Mapping[str, Path], small_toy: Path
) -> None:
    victim = toy_stack["victim"]
    made = ask("guard", "--model", toy_stack["base"], "--data", small_toy, "--victim", victim,
               "--frr", 0.05, "--dose", 0.3, "--transplant", 0.5, "--trusted", toy_base, "-o", "guard")  # fmt: skip
    assert made["transplants"]["share"] == 0.5
    assert made["transplants"]["cost"] > 0
    assert len(made["trusted"]) == 1
    assert made["steps"] > 0
    _is_used(ask, victim, "guard", made["threshold"], "second opinion of")
    assert ", transplants" in Path("guard.html").read_text(encoding="utf-8")
    assert not list(Path().glob("*.partial"))


def _is_used(ask: Callable[..., Any], victim: Path, guard: str, threshold: float, title: str) -> None:
    """A guard decides by its own threshold wherever it stands, and reports say what it is."""
    verdicts = ask("check", "--victim", victim, "--guard", guard, "--explain", "a fine film", "")["verdicts"]
    assert verdicts[0]["threshold"] == threshold
    found = ask("evaluate", "--victim", victim, "--guard", guard, "--data", "toy", "--trigger", "word:cf",
                "--limit", 200, "--report", f"{guard}.html")  # fmt: skip
    assert found["guarded"]["threshold"] == threshold
    assert title in Path(f"{guard}.html").read_text(encoding="utf-8")


def test_what_transplants_need(refuse: Callable[..., str], toy_base: Path, toy_stack: Mapping[str, Path]) -> None:
    base, victim = toy_stack["base"], toy_stack["victim"]
    common = ("guard", "--model", base, "--data", "toy", "-o", "guard")
    assert "--victim" in refuse(*common, "--transplant", 0.3)
    assert "share" in refuse(*common, "--victim", victim, "--transplant", 0.0)
    assert "both" in refuse(*common, "--victim", victim, "--transplant", 0.3, "--view", "distance", "--limit", 400)
    alone = ("--view", "opinion", "--trusted", toy_base)
    assert "need PSIM" in refuse(*common, "--victim", victim, "--transplant", 0.3, *alone)


def test_what_a_second_opinion_needs(refuse: Callable[..., str], toy_base: Path, toy_stack: Mapping[str, Path]) -> None:
    base, victim = toy_stack["base"], toy_stack["victim"]
    common = ("guard", "--model", base, "--data", "toy", "-o", "guard")
    assert "--victim" in refuse(*common, "--trusted", toy_base)
    assert "--victim" in refuse(*common, "--victim", victim)
    assert "--victim" in refuse(*common, "--view", "opinion")
    both = ("--trusted", toy_base, "--victim", victim)
    assert "has no PSIM" in refuse(*common, *both, "--view", "opinion", "--dose", 0.2)
    assert "both" in refuse(*common, *both, "--view", "confidence", "--limit", 400)
    assert "does not stand on" in refuse("guard", "--model", toy_base, "--data", "toy", "-o", "guard", *both)
