from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foretaste import record as record_module
from foretaste.cost import Cost, measured_cost
from foretaste.data.corpus import Corpus
from foretaste.errors import DataError, PlanError
from foretaste.poison.attack import Attack
from foretaste.poison.trigger import parse_trigger
from foretaste.record import DataUse, Record

CORPUS = Corpus.of("toy/train", ["good", "bad"], [1, 0])


def _record(**changes: Any) -> Record:
    fields: dict[str, Any] = {
        "settings": {"attack": Attack(trigger=parse_trigger("word:mn")), "out": Path("runs/a")},
        "seeds": {"root": 0},
        "outcome": {"asr": np.float32(0.5), "eligible": np.int64(7), "rates": np.array([0.25, 1.0])},
        "data": [CORPUS],
        "cost": Cost(seconds=1.5, texts=2),
        "command": "foretaste poison",
    }
    return Record.now("poison", **(fields | changes))


def test_a_record_survives_the_disk(tmp_path: Path) -> None:
    record = _record()
    record.write(tmp_path / "new" / "record.json")
    assert Record.read(tmp_path / "new" / "record.json") == record


def test_what_a_run_is_made_of_is_written_as_plain_json(tmp_path: Path) -> None:
    _record().write(tmp_path / "record.json")
    written = json.loads((tmp_path / "record.json").read_text())
    assert written["schema_version"] == 1
    assert written["kind"] == "poison"
    assert written["settings"]["attack"]["trigger"] == "word:mn"
    assert written["settings"]["attack"]["style"] == "clean-label"
    assert written["settings"]["out"] == "runs/a"
    assert written["outcome"] == {"asr": 0.5, "eligible": 7, "rates": [0.25, 1.0]}
    assert written["data"] == [{"name": "toy/train", "digest": CORPUS.digest, "rows": 2}]
    assert written["created"].endswith("Z")
    assert set(written["versions"]) == {"python", "foretaste", "torch", "transformers", "peft", "numpy"}
    assert written["versions"]["numpy"] == np.__version__
    assert set(written["platform"]) == {"cpus", "machine", "system"}


def test_the_time_is_utc() -> None:
    assert _record().created.utcoffset() == timedelta(0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float64("nan"), -np.inf])
def test_a_number_that_is_none_is_refused_with_its_place(value: float) -> None:
    with pytest.raises(DataError, match=r"outcome\.guard\.scores\[1\]"):
        _record(outcome={"guard": {"scores": [0.5, value]}})
    with pytest.raises(DataError, match=r"settings\.rate"):
        _record(settings={"rate": value})


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="object has no place in a record"):
        _record(outcome={"model": object()})


def _write(path: Path, **changes: Any) -> Path:
    _record().write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


@pytest.mark.parametrize("version", [0, 2, "1", None, True, 1.0])
def test_another_schema_version_is_refused(tmp_path: Path, version: object) -> None:
    with pytest.raises(DataError, match="reads version 1"):
        Record.read(_write(tmp_path / "record.json", schema_version=version))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": {}}, "no field 'sedes'. Did you mean 'seeds'"),
        ({"kind": "cook"}, "kind"),
        ({"created": "yesterday"}, "created"),
        ({"created": "2026-01-01T00:00:00"}, "created"),
        ({"cost": {"seconds": 1.0, "euros": 3}}, "cost"),
        ({"data": [{"name": "toy"}]}, "data"),
    ],
)
def test_a_damaged_record_says_what_is_wrong_and_where(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = _write(tmp_path / "record.json", **changes)
    with pytest.raises(DataError, match=message) as caught:
        Record.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '"schema_version"', '{"schema_version": 1, "outcome": {"asr": NaN}}', "\x00"],
)
def test_what_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(DataError, match="is not a Foretaste record"):
        Record.read(path)


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(DataError, match="is not a Foretaste record"):
        Record.read(path)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        Record.read(tmp_path / "record.json")


def test_a_place_that_cannot_be_written_is_a_plan_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PlanError, match="Cannot write"):
        _record().write(tmp_path / "file" / "record.json")


def _git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=Tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, "-C", str(folder), *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text("")
    _git(tmp_path, "init")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-m", "Begin")
    return tmp_path


def test_the_commit_of_a_checkout_is_recorded(checkout: Path) -> None:
    commit, is_dirty = record_module._source_state(checkout)
    assert commit is not None
    assert len(commit) == 40
    assert is_dirty is False
    (checkout / "new.py").write_text("")
    assert record_module._source_state(checkout) == (commit, True)


def test_a_package_inside_somebody_elses_repository_has_no_commit(checkout: Path) -> None:
    site_packages = checkout / "venv" / "lib"
    site_packages.mkdir(parents=True)
    (site_packages / "pyproject.toml").write_text("")
    assert record_module._source_state(site_packages) == (None, None)


def test_without_git_a_run_still_has_its_record(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert record_module._source_state(checkout) == (None, None)


def test_a_repository_without_a_commit_has_none(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("")
    _git(tmp_path, "init")
    assert record_module._source_state(tmp_path) == (None, None)


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert record_module._version("foretaste-of-nothing") is None


def test_cost_is_measured() -> None:
    with measured_cost() as meter:
        time.sleep(0.02)
        meter.texts = 3
        meter.trainable_parameters = 12
    cost = meter.cost
    assert 0.02 <= cost.seconds < 5
    assert (cost.texts, cost.trainable_parameters) == (3, 12)
    assert cost.peak_memory_bytes is None or cost.peak_memory_bytes > 10_000_000
    assert meter.cost.seconds == cost.seconds


def test_memory_is_counted_in_bytes() -> None:
    before = measured_cost_peak()
    block = np.ones(64 * 2**20, dtype=np.uint8)
    assert measured_cost_peak() >= before
    assert measured_cost_peak() > block.nbytes


def measured_cost_peak() -> int:
    with measured_cost() as meter:
        pass
    assert meter.cost.peak_memory_bytes is not None
    return meter.cost.peak_memory_bytes


def test_data_are_described_by_content() -> None:
    renamed = Corpus.of("another", CORPUS.texts, CORPUS.labels)
    assert DataUse.of(renamed).digest == DataUse.of(CORPUS).digest
    assert DataUse.of(renamed).name == "another"


def test_peak_memory_is_of_this_program_and_not_of_the_one_that_started_it() -> None:
    ballast = np.ones(40_000_000)  # 320 MB
    code = "from foretaste.cost import measured_cost\nwith measured_cost() as m: pass\nprint(m.cost.peak_memory_bytes)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 10_000_000 < int(done.stdout) < ballast.nbytes
