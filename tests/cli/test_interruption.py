"""Commands that are stopped, run out of disk or run in several processes: nothing half written, nothing lost."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from foretaste.cli.app import app
from foretaste.data import toy_corpus
from foretaste.tune.loop import _Run
from foretaste.victim.artefact import load_victim

WEIGHTS = "adapter_model.safetensors"
OPTIONS = ["--max-length", "64", "--precision", "float32", "--json"]
LONG = ["--epochs", "8", "--batch-size", "10", "--learning-rate", "1e-2", *OPTIONS]
SHORT = ["--epochs", "2", "--patience", "1", *OPTIONS]

# Processes of their own, forked from one that has done the imports, which take seconds and are the same for all.
LAUNCHER = """
import json, os, signal, sys
import foretaste.cli.commands
from foretaste.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the tests themselves run in the background
children = {}
for name, (arguments, environment) in json.loads(sys.argv[1]).items():
    child = os.fork()
    if not child:
        os.environ.update(environment)
        for number, kind in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{name}.{kind}", os.O_CREAT | os.O_WRONLY), number)
        sys.argv = ["foretaste", *arguments]
        main()
    children[child] = name
print(json.dumps({name: child for child, name in children.items()}), flush=True)
print(json.dumps({children.pop(child): os.waitstatus_to_exitcode(status)
                  for child, status in (os.wait() for _ in range(len(children)))}))
"""


class _Ended:
    """What came of commands in processes of their own: the directory they wrote to, exit codes, outputs."""

    def __init__(self, where: Path, exits: Mapping[str, int]) -> None:
        self.where, self.exits = where, exits

    def out(self, name: str) -> str:
        return (self.where / f"{name}.out").read_text()

    def err(self, name: str) -> str:
        return (self.where / f"{name}.err").read_text()


@pytest.fixture(scope="module")
def ended(toy_base: Path, tmp_path_factory: pytest.TempPathFactory) -> _Ended:
    """Two trainings that were stopped after some epochs, and one that was started as two processes."""
    where = tmp_path_factory.mktemp("processes")
    texts = toy_corpus().select(range(200))
    rows = [{"text": text, "label": int(label)} for text, label in zip(texts.texts, texts.labels, strict=True)]
    (where / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = str(found.getsockname()[1])
    # As `torchrun` and `accelerate launch` start them.
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    jobs: dict[str, tuple[list[str], dict[str, str]]] = {
        how: (["tune", "--model", str(toy_base), "--data", "reviews.jsonl", *LONG, "-o", how], {})
        for how in ("SIGINT", "SIGKILL")
    }
    for rank in ("0", "1"):
        arguments = ["tune", "--model", str(toy_base), "--data", "reviews.jsonl", *SHORT, "-o", "shared"]
        jobs[f"rank {rank}"] = arguments, place | {"RANK": rank, "LOCAL_RANK": rank}
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, json.dumps(jobs)],
        cwd=where,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # as in this process, or sums would differ in the last bits
        stdout=subprocess.PIPE,
        text=True,
    )
    assert launcher.stdout is not None
    children = json.loads(launcher.stdout.readline())
    deadline, waiting = time.monotonic() + 120, {"SIGINT", "SIGKILL"}
    while waiting:
        for how in sorted(waiting):
            if (where / f"{how}.partial").exists():
                os.kill(children[how], signal.Signals[how])
                waiting.remove(how)
        assert time.monotonic() < deadline
        time.sleep(0.02)
    exits, _ = launcher.communicate(timeout=120)
    return _Ended(where, json.loads(exits))


def test_an_interrupted_command_says_so_and_leaves_no_result(ended: _Ended) -> None:
    assert ended.exits["SIGINT"] == 130
    assert ended.exits["SIGKILL"] == -signal.SIGKILL
    assert ended.out("SIGINT") == ended.out("SIGKILL") == ""
    assert ended.err("SIGINT").startswith("interrupted: ")
    assert ended.err("SIGINT").count("\n") == 1
    assert not (ended.where / "SIGINT").exists()
    assert not (ended.where / "SIGKILL").exists()


def test_the_same_command_finishes_what_was_interrupted(
    ask: Callable[..., Any], ended: _Ended, toy_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    take_step = _Run.step

    def counted(run: _Run, batch: Any, step: int, total: int) -> float:
        steps.append(step)
        return take_step(run, batch, step, total)

    monkeypatch.setattr(_Run, "step", counted)
    monkeypatch.chdir(ended.where)
    command = ("tune", "--model", toy_base, "--data", "reviews.jsonl", *LONG[:-1], "-o")
    ask(*command, "reference")
    for name in ("SIGINT", "SIGKILL"):
        partial = Path(f"{name}.partial")
        saved = json.loads((partial / "foretaste.json").read_text())["state"]["step"]
        assert 0 < saved < 112
        steps.clear()
        assert ask(*command, name)["steps"] == 112
        assert len(steps) == 112 - saved
        assert not partial.exists()
        load_victim(name)
        assert Path(name, WEIGHTS).read_bytes() == Path("reference", WEIGHTS).read_bytes()


def test_of_two_processes_one_writes_and_answers(ended: _Ended) -> None:
    assert (ended.exits["rank 0"], ended.exits["rank 1"]) == (0, 0), ended.err("rank 0") + ended.err("rank 1")
    assert ended.out("rank 0").count("\n") == 1
    assert json.loads(ended.out("rank 0"))["path"] == "shared"
    assert ended.out("rank 1") == ""
    load_victim(ended.where / "shared")
    assert not (ended.where / "shared.partial").exists()


def test_the_progress_of_other_settings_is_not_continued(
    ask: Callable[..., Any],
    refuse: Callable[..., str],
    toy_base: Path,
    reviews: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ("tune", "--model", toy_base, "--data", reviews, "--max-length", 64, "--epochs", 1, "-o", "victim")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("foretaste.cli.commands.save_classifier", stop)
        assert CliRunner().invoke(app, [str(argument) for argument in command]).exit_code == 130
    assert (tmp_path / "victim.partial").exists()
    assert "other settings, data or model; delete it" in refuse(*command, "--seed", 1)
    assert ask(*command)["texts"] == 140
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reviews.jsonl", "victim"]


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [1_000, 60_000])
@pytest.mark.parametrize("command", [("poison", "--trigger", "word:mn", "--count", "9", "--epochs", "1"), ("guard",)])
def test_a_full_disk_leaves_nothing_behind(
    refuse: Callable[..., str], toy_base: Path, reviews: Path, tmp_path: Path, command: tuple[str, ...], size: int
) -> None:
    strategy = ("--strategy", "full", "--threshold", 0.7) if command == ("guard",) else ()
    with _largest_file(size):
        message = refuse(*command, *strategy, "--model", toy_base, "--data", reviews, "--max-length", 64, "-o", "out")
    assert message.startswith("error: Cannot write out")
    assert [path.name for path in tmp_path.iterdir()] == ["reviews.jsonl"]


def test_a_page_on_a_full_disk(
    ask: Callable[..., Any], refuse: Callable[..., str], toy_stack: Mapping[str, Path], tmp_path: Path
) -> None:
    command = ("evaluate", "--victim", toy_stack["victim"], "--data", "toy", "--limit", 30, "--trigger", "word:mn")
    with _largest_file(3_000):
        assert "error: Cannot write page." in refuse(*command, "--report", "page.html")
    assert not (tmp_path / "page.html").exists()
    assert ask(*command, "--report", "page.html")["report"] == "page.html"
