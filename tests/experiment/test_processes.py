"""One training in several processes: they end together, however one of them ends, and train what one would."""

from __future__ import annotations

import json
import multiprocessing
import os
import textwrap
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.experiment.toy import NAMES

from foretaste.errors import ModelError, PlanError
from foretaste.experiment.lab import Lab
from foretaste.experiment.plan import read_plan
from foretaste.experiment.processes import in_processes
from foretaste.experiment.run import run_plan
from foretaste.experiment.store import Store
from foretaste.record import Record

pytestmark = pytest.mark.usefixtures("one_thread")

PLAN = """
title = "One cell"

[settings]
max_length = 32
limit = 100
poisoning_epochs = 1
poisoning_rate = 1e-3

[[grid]]
model = "tiny"
data = "{data}"
knowledge = "full_data"
attack = "badnet"
strategy = "lora"
defence = "psim"
psim_strategy = "lora"
""" + NAMES.replace("count = 60", "count = 40").replace("[strategy.lora]", "[strategy.lora]\ndropout = 0.0")
MEET = """
    import os
    from accelerate import PartialState
    from accelerate.utils import gather_object
    PartialState(cpu=True)
    ranks = gather_object([os.environ["RANK"]])
    (out / os.environ["RANK"]).write_text(" ".join(ranks))
    """
PART = """
    import os
    from accelerate import PartialState
    from foretaste.errors import ModelError
    if os.environ["RANK"] == "1":
        raise ModelError("no such weights", code="not_found")
    PartialState(cpu=True).wait_for_everyone()
    """
SLEEP = """
    import os, time
    (out / os.environ["RANK"]).write_text(str(os.getpid()))
    time.sleep(600)
    """


def _run(code: str, **names: object) -> partial[None]:
    return partial(exec, textwrap.dedent(code), names)


def test_the_processes_meet(tmp_path: Path) -> None:
    in_processes(2, _run(MEET, out=tmp_path))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": "0 1", "1": "0 1"}


def test_one_that_fails_ends_the_other_that_waits_for_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such weights") as caught:
        in_processes(2, _run(PART))
    assert caught.value.code == "not_found"


def test_they_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    runner = multiprocessing.get_context("forkserver").Process(target=in_processes, args=(2, _run(SLEEP, out=tmp_path)))
    runner.start()
    deadline = time.monotonic() + 120
    while len(found := [path.read_text() for path in tmp_path.iterdir()]) < 2 or "" in found:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert all(_is_alive(int(process)) for process in found)
    runner.kill()
    runner.join()
    while any(_is_alive(int(process)) for process in found):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_gpu_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(PlanError, match="2 processes need a GPU each; there are 1"):
        in_processes(2, os.getpid)


def test_a_plan_in_two_processes_gives_what_it_gives_in_one(toy_base: Path, small_toy: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"  # without dropout, which each process draws for itself
    base.mkdir()
    for file in toy_base.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    config = json.loads((base / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (base / "config.json").write_text(json.dumps(config))
    (tmp_path / "plan.toml").write_text(PLAN.format(tiny=base, data=small_toy), encoding="utf-8")
    plan, said = read_plan(tmp_path / "plan.toml"), list[str]()
    assert run_plan(plan, Lab(Store(tmp_path / "one")), plan.cells, said.append).done == 1
    assert run_plan(plan, Lab(Store(tmp_path / "two"), processes=2), plan.cells, said.append).done == 1
    assert sorted(line.split("/")[0] for line in said if line.startswith("made")) == [
        *["made bases"] * 2,
        *["made guards"] * 2,
        *["made victims"] * 2,
    ]
    for path in (tmp_path / "two").glob("*/*/record.json"):
        other = Record.read(tmp_path / "one" / path.relative_to(tmp_path / "two"))
        settings = Record.read(path).settings
        assert settings.pop("processes") == 2
        of_weights: Any = settings.pop("sources")  # whose last bits two processes change
        theirs: Any = other.settings.pop("sources")
        assert of_weights.keys() == theirs.keys()
        assert settings == other.settings
    for kind, name in (("bases", "model"), ("victims", "adapter_model")):  # a guard's adapter has dropout
        (ours,), (theirs,) = (
            [load_file(path) for path in (tmp_path / store / kind).glob(f"*/{name}.safetensors")]
            for store in ("one", "two")
        )
        assert ours.keys() == theirs.keys()
        # In the mean: Adam makes much of the last bit of a gradient near 0. Training moves them by 3e-3.
        assert all(float((ours[name] - theirs[name]).abs().mean()) <= 1e-5 for name in ours)
    assert not list((tmp_path / "two" / "partial").glob("*"))


def test_what_fails_in_the_processes_is_said(toy_base: Path, small_toy: Path, tmp_path: Path) -> None:
    text = PLAN.format(tiny=toy_base, data=small_toy).replace("learning_rate = 1e-2", "learning_rate = 1e30")
    text = text.replace('attack = "badnet"', 'attack = "none"').replace('"psim"\npsim_strategy = "lora"', '"none"')
    (tmp_path / "plan.toml").write_text(text, encoding="utf-8")
    plan = read_plan(tmp_path / "plan.toml")
    progress = run_plan(plan, Lab(Store(tmp_path / "lab"), processes=2), plan.cells, lambda line: None)
    assert "lower the learning rate" in progress.failed[str(plan.cells[0])]
