"""A user's mistake costs one clear line and no time: exit 2, nothing written, nothing destroyed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer

from foretaste.cli import commands, demo
from foretaste.cli.output import answering, one_line
from foretaste.victim.manifest import seal

WORD = ("--trigger", "word:mn")


@pytest.fixture
def files(tmp_path: Path, reviews: Path) -> Path:
    """Files as users have them, each wrong in its own way, beside good ones."""
    rows = [f"text {i},{i % 2}" for i in range(60)]
    contents = {
        "sixty.csv": ["text,label", *rows],
        "few.csv": ["text,label", *rows[:12]],
        "unlabelled.csv": ["text,lab", *rows],
        "one.csv": ["text,label", *(f"text {i},1" for i in range(60))],
        "blank.csv": ["text,label", *rows, " ,1"],
        "three.csv": ["text,label", *(f"text {i},{i % 3}" for i in range(60))],
    }
    for name, lines in contents.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nonsense")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("years of work")
    return tmp_path


# Each command is given a sound model, data set and output first; a later option of the same name overrides.
MISTAKES: list[tuple[str, tuple[object, ...], str]] = [
    ("tune", ("--data", "sst"), "'sst' is no data set and no file. Did you mean 'sst2'?"),
    ("tune", ("--data", "nowhere.csv"), "There is no file nowhere.csv"),
    ("tune", ("--data", "unlabelled.csv"), "no column 'label'. Did you mean 'lab'?"),
    ("tune", ("--data", "unlabelled.csv", "--label-column", "labb"), "no column 'labb'. Did you mean 'lab'?"),
    ("tune", ("--text-column", "txt"), "no column 'txt'. Did you mean 'text'?"),
    ("tune", ("--data", "one.csv"), "one class only"),
    ("tune", ("--data", "blank.csv"), "blank.csv:62: 'text' is blank"),
    ("tune", ("--data", "few.csv"), "12 texts; at least 20"),
    ("tune", ("--data", "broken.parquet"), "broken.parquet cannot be read as Parquet"),
    ("tune", ("--data", "toy", "--text-column", "text"), "The toy has no columns"),
    ("tune", ("--data", "imdb", "--data-root", "nowhere"), "The data root nowhere is not there"),
    ("tune", ("--strategy", "lorra"), "Unknown strategy 'lorra'. Did you mean 'lora'?"),
    ("tune", ("--set", "rank"), "--set takes FIELD=VALUE, got 'rank'"),
    ("tune", ("--set", "rnk=3"), "no field 'rnk'. Did you mean 'rank'?"),
    ("tune", ("--set", "name=full"), "no field 'name'"),
    ("tune", ("--set", "rank=x"), "Lora.rank"),
    ("tune", ("--set", "rank=0"), "Lora.rank"),
    ("tune", ("--set", "dropout=nan"), "Lora.dropout"),
    ("tune", ("--learning-rate", "0"), "learning_rate"),
    ("tune", ("--learning-rate", "inf"), "finite number"),
    ("tune", ("--learning-rate", "1e30", "--epochs", 2), "The loss is nan at step"),
    ("tune", ("--precision", "float16"), "float16"),
    ("tune", ("--keep", "bst"), "'best' or 'last'"),
    ("tune", ("--model", "nowhere"), "No checkpoint at 'nowhere'"),
    ("tune", ("--model", "own/er"), "could not be fetched from the Hugging Face hub"),
    ("tune", ("--model", "foreign"), "no config.json"),
    ("tune", ("-o", "foreign"), "not written by Foretaste"),
    ("tune", ("-o", "sixty.csv"), "sixty.csv is a file"),
    ("tune", ("-o", "sixty.csv/victim"), "sixty.csv is a file"),
    ("tune", ("-o", "."), "cannot be replaced"),
    ("tune", ("-o", "/"), "cannot be replaced"),
    ("guard", ("--frr", 0.01, "--threshold", 0.7), "not both"),
    ("guard", ("--recipe", "papr"), "Unknown recipe 'papr'. Did you mean 'paper'?"),
    ("guard", ("--set", "virtual_token=4"), "Did you mean 'virtual_tokens'?"),
    ("guard", ("--scoring", "int4"), "Psim.scoring"),
    ("guard", ("--view", "both", "--threshold", 0.7), "fixed threshold"),
    ("guard", ("--frr", "nan"), "Psim.frr"),
    ("guard", ("--frr", "0"), "Psim.frr"),
    ("guard", ("--frr", "-0.1"), "Psim.frr"),
    ("guard", ("--threshold", "nan"), "Psim.threshold"),
    ("guard", ("--threshold", "7"), "Psim.threshold"),
    ("guard", ("--threshold", "-1"), "Psim.threshold"),
    ("guard", ("--reset-rate", "0"), "Psim.reset_rate"),
    ("guard", ("--learning-rate", "0"), "learning_rate"),
    ("guard", ("--dose", "1.5"), "Psim.dose"),
    ("guard", ("--threshold", 0.7, "--dose", 1e-6, "--max-steps", 2), "After 2 steps"),
    ("guard", (), "30 clean calibration texts are too few"),
    ("guard", ("--data", "sixty.csv", "--threshold", 0.7), "at least 80 are needed"),
    ("poison", ("--trigger", "wrod:mn"), "Unknown trigger 'wrod'. Did you mean 'word'?"),
    ("poison", ("--trigger", "mn"), "must read kind:value"),
    ("poison", ("--trigger", "word:"), "is blank"),
    ("poison", ("--trigger", "word:mn@frist"), "Did you mean 'first'?"),
    ("poison", ("--trigger", "file:nowhere.parquet"), "There is no file nowhere.parquet"),
    ("poison", ("--data", "toy", "--trigger", "file:reviews.jsonl"), "both toy/train and toy/validation are triggered"),
    ("poison", ("--data", "toy", "--trigger", "file:."), "holds no triggered texts of toy/train"),
    ("poison", ("--target", 2), "Target 2 is not a label of reviews.jsonl; labels: 0 negative, 1 positive"),
    ("poison", ("--count", 5000), "5000 examples to poison, but only"),
    ("poison", ("--count", 5, "--rate", 0.1), "count or rate, not both"),
    ("poison", ("--rate", "nan"), "Attack.rate"),
    ("poison", ("--rate", "-1"), "rate must lie above 0"),
    ("poison", ("--rate", "0.00001"), "poisons none of 140 examples"),
    ("poison", ("--style", "clean"), "Unknown style 'clean'; known: clean-label, dirty-label"),
    ("poison", ("--set", "cover_rate"), "--set takes FIELD=VALUE, got 'cover_rate'"),
    ("poison", ("--set", "cover_rat=1"), "no field 'cover_rat'. Did you mean 'cover_rate'?"),
    ("poison", ("--set", "cover_rate=x"), "Attack.cover_rate"),
    ("poison", ("--set", "evasion=hide"), "'anti-reset'"),
    ("poison", ("--set", "all_to_all=yes"), "all_to_all needs style dirty-label"),
    ("poison", ("--set", "target_probability=0.6"), "has an option of its own; write --target-probability 0.6"),
    ("poison", ("--set", "trigger=word:cf"), "has an option of its own; write --trigger word:cf"),
    ("poison", ("--w2s-set", "features=1"), "--w2s-set is for W2SAttack; name its teacher (--teacher)"),
    ("poison", ("--teacher", "./nowhere"), "No checkpoint at './nowhere'"),
    ("poison", ("--teacher", "minilm-l3", "--w2s-set", "feature=1"), "Did you mean 'features'?"),
    ("poison", ("--teacher", "minilm-l3", "--w2s-set", "strategy.rang=1"), "Did you mean 'rank'?"),
    ("poison", ("--teacher", "minilm-l3", "--epochs", 1), "set their lengths and rates with --w2s-set"),
]


@pytest.mark.parametrize(("command", "options", "complaint"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_in_training(
    refuse: Callable[..., str],
    toy_base: Path,
    files: Path,
    command: str,
    options: tuple[object, ...],
    complaint: str,
) -> None:
    before = sorted(files.rglob("*"))
    sound = ("--model", toy_base, "--data", "reviews.jsonl", "--max-length", 64, "-o", "out")
    assert complaint in refuse(command, *sound, *(WORD if command == "poison" else ()), *options)
    assert sorted(files.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--victim", "nowhere"), "nowhere holds no foretaste.json"),
        (("--victim", "{guard}"), "is a guard, expected a victim"),
        (("--victim", "{base}"), "is a base, expected a victim"),
        (("--guard", "{victim}"), "is a victim, expected a guard"),
        (("--guard", "nowhere"), "nowhere holds no foretaste.json"),
        (("--target", 7), "Target 7 is not a label"),
        (("--data", "three.csv"), "three.csv has the labels ('0', '1', '2'), the victim"),
        (("--data", "sst2", "--data-root", "foreign"), "Cannot find sst2/test"),
        (("--trigger", "word:mn cf@end"), "position 'end'"),
        (("--model", "{toy}"), "was made for other weights"),
        (("--report", "page.pdf"), "ends in .html"),
        (("--report", "foreign"), "ends in .html"),
        (("--report", "sixty.csv/page.html"), "sixty.csv is a file"),
    ],
    ids=str,
)
def test_a_mistake_in_evaluation(
    refuse: Callable[..., str],
    toy_stack: Mapping[str, Path],
    toy_base: Path,
    files: Path,
    options: tuple[object, ...],
    complaint: str,
) -> None:
    places = {name: str(path) for name, path in toy_stack.items()} | {"toy": str(toy_base)}
    sound = ("--victim", places["victim"], "--guard", places["guard"], "--data", "toy", "--limit", 20, *WORD)
    given = [option.format(**places) if isinstance(option, str) else option for option in options]
    before = sorted(files.rglob("*"))
    assert complaint in refuse("evaluate", *sound, *given)
    assert sorted(files.rglob("*")) == before


def test_a_guard_of_another_base_is_refused(
    ask: Callable[..., Any], refuse: Callable[..., str], toy_stack: Mapping[str, Path], toy_base: Path, reviews: Path
) -> None:
    ask("guard", "--model", toy_base, "--data", reviews, "--threshold", 0.7, "--max-length", 64, "-o", "other")
    stack = ("--victim", toy_stack["victim"], "--guard", "other")
    assert "trained neither on the victim's base nor on the victim itself" in refuse("check", *stack, "good")
    assert "trained neither on the victim's base nor on the victim itself" in refuse(
        "evaluate", *stack, "--data", "toy", "--limit", 9, *WORD
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("tune", "--nonsense"),
        ("tune",),
        ("tune", "--model", "x", "--data", "toy", "-o", "v", "--limit", "0"),
        ("tune", "--model", "x", "--data", "toy", "-o", "v", "--epochs", "many"),
        ("tune", "--model", "x", "--data", "toy", "-o", "v", "--learning-rate", "-1"),
        ("tune", "--model", "x", "--data", "toy", "-o", "v", "--learning-rate", "nan"),
        ("evaluate", "--victim", "v", "--data", "toy", *WORD, "--target", "-1"),
        ("inspect",),
    ],
    ids=lambda value: " ".join(value),
)
def test_options_that_do_not_exist_or_fit(run: Callable[..., Any], arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: ")


@pytest.mark.parametrize("place", ["{stack}/base", "{stack}/base/deep/inside"])
def test_a_checkpoint_is_not_replaced_by_what_stands_on_it(
    refuse: Callable[..., str], toy_stack: Mapping[str, Path], tmp_path: Path, reviews: Path, place: str
) -> None:
    stack = shutil.copytree(toy_stack["base"].parent, tmp_path / "stack")
    options = ("--model", stack / "base", "--data", reviews, "-o", place.format(stack=stack))
    for command in (("tune",), ("guard",), ("poison", *WORD)):
        assert "must stay as it is" in refuse(*command, *options)


def test_a_result_is_replaced_by_its_like_only(
    refuse: Callable[..., str], toy_stack: Mapping[str, Path], tmp_path: Path, reviews: Path
) -> None:
    stack = shutil.copytree(toy_stack["base"].parent, tmp_path / "stack")
    options = ("--model", stack / "base", "--data", reviews)
    assert "holds a guard, which a victim would replace" in refuse("tune", *options, "-o", stack / "guard")
    assert "holds a victim, which a guard would replace" in refuse("guard", *options, "-o", stack / "victim")


def test_a_page_never_takes_the_place_of_something_else(
    refuse: Callable[..., str], toy_stack: Mapping[str, Path], tmp_path: Path
) -> None:
    victim = Path(shutil.copytree(toy_stack["victim"], tmp_path / "victim"))
    (tmp_path / "data.json").write_text("[1, 2]")
    command = ("evaluate", "--victim", victim, "--data", "toy", "--limit", 9, *WORD, "--report")
    assert "holds something else" in refuse(*command, "data.html")
    assert "lies in an artefact" in refuse(*command, victim / "record.html")
    (tmp_path / "record.json").write_bytes((victim / "record.json").read_bytes())
    assert "holds something else" in refuse(*command, "record.html")
    (tmp_path / "page.html").mkdir()
    assert "is a directory" in refuse(*command, "page.html")
    assert (tmp_path / "data.json").read_text() == "[1, 2]"


@pytest.mark.parametrize(("name", "complaint"), [("victim", "not written by Foretaste"), ("report.json", "something")])
def test_the_demo_looks_where_it_will_write_before_it_starts(
    refuse: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, complaint: str
) -> None:
    monkeypatch.setattr(commands, "poison", lambda *_, **__: pytest.fail("worked for nothing"))
    monkeypatch.setattr(demo, "_say", lambda _: None)
    (tmp_path / "demo" / "victim").mkdir(parents=True)
    path = tmp_path / "demo" / name
    (path / "mine.txt" if path.is_dir() else path).write_text("mine")
    assert complaint in refuse("demo", "--out", "demo")


@pytest.mark.parametrize(
    ("directory", "complaint"),
    [("nowhere", "No checkpoint at 'nowhere'"), ("foreign", "no config.json"), ("sixty.csv", "No checkpoint")],
)
def test_what_inspect_cannot_inspect(refuse: Callable[..., str], files: Path, directory: str, complaint: str) -> None:
    assert complaint in refuse("inspect", directory)


@pytest.mark.parametrize("threshold", [None, float("nan"), "0.7"])
def test_inspect_does_not_call_a_guard_sound_that_would_not_load(
    refuse: Callable[..., str], toy_stack: Mapping[str, Path], tmp_path: Path, threshold: Any
) -> None:
    guard = Path(shutil.copytree(toy_stack["guard"], tmp_path / "guard"))
    manifest = json.loads((guard / "foretaste.json").read_text())
    manifest["guard"] |= {"threshold": threshold, "calibration": None}
    (guard / "foretaste.json").write_text(json.dumps(seal(manifest)))
    assert "guard.threshold" in refuse("inspect", guard)


def test_an_error_of_ours_keeps_its_traceback(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(commands, "inspect", fail)
    with pytest.raises(ZeroDivisionError):
        run("inspect", "minilm")


def test_a_message_stays_on_its_line() -> None:
    assert one_line("one\ntwo\r\n\tthree") == "one two three"
    assert one_line("\x1b[31m\u202e\udcff ünï ✓") == "[U+001B][31m[U+202E][U+DCFF] ünï ✓"


def test_a_system_that_refuses_is_a_mistake_in_a_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, answering(False):
        raise PermissionError(13, "Permission denied", "lab/cells")
    assert caught.value.exit_code == 2
    assert capsys.readouterr().err == "error: lab/cells: Permission denied.\n"
    with pytest.raises(BrokenPipeError), answering(False):
        raise BrokenPipeError
