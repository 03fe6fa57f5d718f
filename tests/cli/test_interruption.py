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
from foretaste.tune.loop import _Run
from foretaste.victim.artefact import load_victim

COMMAND = [sys.executable, "-c", "from foretaste.cli import main; main()"]
WEIGHTS = "adapter_model.safetensors"


def _start(arguments: list[str], where: Path, **environment: str) -> subprocess.Popen[bytes]:
    # One thread here as in this process, or sums would differ in the last bits.
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=where,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_an_interrupted_training_is_finished_by_the_same_command(
    ask: Callable[..., Any], toy_base: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["tune", "--model", str(toy_base), "--data", str(reviews), "--epochs", "20", "--batch-size", "10"]
    arguments += ["--learning-rate", "1e-2", "--max-length", "64", "--precision", "float32", "--json", "-o"]
    processes = {how: _start([*arguments, how.name], tmp_path) for how in (signal.SIGINT, signal.SIGKILL)}
    _signal_once_saved(processes, tmp_path)
    answers = {how: process.communicate(timeout=60) for how, process in processes.items()}

    (out, err), (killed_out, _) = answers.values()
    assert (out, killed_out) == (b"", b"")
    assert [process.returncode for process in processes.values()] == [130, -signal.SIGKILL]
    assert err.decode().startswith("interrupted: ")
    assert err.count(b"\n") == 1
    steps: list[int] = []
    take_step = _Run.step

    def counted(run: _Run, batch: Any, step: int, total: int) -> float:
        steps.append(step)
        return take_step(run, batch, step, total)

    monkeypatch.setattr(_Run, "step", counted)
    ask(*arguments[:-2], "-o", "reference")
    for how in processes:
        path, partial = tmp_path / how.name, tmp_path / f"{how.name}.partial"
        assert not path.exists()
        saved = json.loads((partial / "foretaste.json").read_text())["state"]["step"]
        assert 0 < saved < 280
        steps.clear()
        answer = ask(*arguments[:-2], "-o", how.name)
        assert (answer["steps"], len(steps)) == (280, 280 - saved)
        assert not partial.exists()
        load_victim(path)
        assert (path / WEIGHTS).read_bytes() == (tmp_path / "reference" / WEIGHTS).read_bytes()


def _signal_once_saved(processes: Mapping[signal.Signals, subprocess.Popen[bytes]], where: Path) -> None:
    waiting, deadline = dict(processes), time.monotonic() + 120
    while waiting:
        for how, process in list(waiting.items()):
            if (where / f"{how.name}.partial").exists():
                process.send_signal(how)
                del waiting[how]
            assert process.poll() is None or how not in waiting, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


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


def test_of_two_processes_one_writes_and_answers(toy_base: Path, reviews: Path, tmp_path: Path) -> None:
    """As `torchrun` and `accelerate launch` start them."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = str(found.getsockname()[1])
    arguments = ["tune", "--model", str(toy_base), "--data", str(reviews), "--epochs", "2", "--patience", "1"]
    arguments += ["--max-length", "64", "--precision", "float32", "--json", "-o", "victim"]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    processes = [_start(arguments, tmp_path, RANK=rank, LOCAL_RANK=rank, **place) for rank in ("0", "1")]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    (first, _), (second, _) = outputs
    assert json.loads(first)["path"] == "victim"
    assert second == b""
    load_victim(tmp_path / "victim")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reviews.jsonl", "victim"]
