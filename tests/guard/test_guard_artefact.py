"""Guards on disk: what was saved is what is loaded, and a threshold that cannot be trusted is refused with a code."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foretaste.data import toy_corpus
from foretaste.errors import GuardError, ModelError
from foretaste.evaluate.threshold import Calibration
from foretaste.guard.artefact import load_psim, read_bar, save_guard
from foretaste.guard.psim import Psim
from foretaste.record import Record
from foretaste.victim.artefact import load_victim
from foretaste.victim.checkpoint import open_base
from foretaste.victim.manifest import seal
from foretaste.victim.strategy import Full, PTuningV2

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = (*toy_corpus("test").texts[:20], "", "good", "bad " * 200)
RECORD = Record.now("guard", settings={}, seeds={"root": 0}, outcome={})
MISSING = object()
SOUND = {"threshold": 0.7, "n": 872, "allowed_above": 3, "frr": 0.01, "confidence": 0.95}
ENTRY = {"method": "psim", "scoring": "float32", "view": "confidence", "threshold": 0.7, "calibration": SOUND}


@pytest.fixture
def stack(toy_stack: Mapping[str, Path], tmp_path: Path) -> Path:
    """Base, victim and guard in one directory, to be altered."""
    return Path(shutil.copytree(toy_stack["base"].parent, tmp_path / "stack"))


def _alter(path: Path, **changes: Any) -> None:
    manifest = json.loads((path / "foretaste.json").read_text())
    for name, value in changes.items():
        if value is MISSING:
            del manifest["guard"][name]
        else:
            manifest["guard"][name] = value
    (path / "foretaste.json").write_text(json.dumps(seal(manifest)))


def _refusal(path: Path) -> GuardError:
    with pytest.raises(GuardError) as caught:
        load_psim(path)
    assert str(path) in str(caught.value)
    return caught.value


@pytest.mark.parametrize("strategy", [PTuningV2(), Full()], ids=["an adapter", "all weights"])
def test_a_loaded_guard_scores_as_the_saved_one(toy_stack: Mapping[str, Path], tmp_path: Path, strategy: Any) -> None:
    plan = Psim(strategy=strategy, dose=None, learning_rate=5e-3, threshold=0.55, precision="float32")
    guard = plan.fit(open_base(toy_stack["base"]), toy_corpus().select(range(120)), max_length=64)
    save_guard(guard, tmp_path / "guard", RECORD)
    loaded = load_psim(tmp_path / "guard")
    np.testing.assert_allclose(loaded.score(TEXTS), guard.score(TEXTS), rtol=0, atol=1e-6)
    assert (loaded.threshold, loaded.calibration) == (0.55, None)
    assert [v.flagged for v in loaded.check(TEXTS)] == [v.flagged for v in guard.check(TEXTS)]


def test_the_calibration_is_kept(toy_stack: Mapping[str, Path], tmp_path: Path) -> None:
    guard = load_psim(toy_stack["guard"])
    assert guard.calibration is not None
    assert guard.calibration.threshold == guard.threshold
    assert (guard.calibration.n, guard.calibration.allowed_above) == (2500, 16)
    save_guard(guard, tmp_path / "again", RECORD)
    assert load_psim(tmp_path / "again").calibration == guard.calibration


def test_the_arithmetic_of_the_scores_is_kept(toy_stack: Mapping[str, Path], tmp_path: Path) -> None:
    guard = replace(load_psim(toy_stack["guard"]), scoring="int8")
    save_guard(guard, tmp_path / "again", RECORD)
    loaded = load_psim(tmp_path / "again")
    assert loaded.scoring == "int8"
    np.testing.assert_array_equal(loaded.score(TEXTS), guard.score(TEXTS))


@pytest.mark.parametrize("scoring", [None, "int4", MISSING])
def test_scores_of_no_known_arithmetic_are_refused(stack: Path, scoring: Any) -> None:
    _alter(stack / "guard", scoring=scoring)
    assert _refusal(stack / "guard").code == "bad_threshold"


def test_an_unaltered_copy_is_taken(stack: Path) -> None:
    before = load_psim(stack / "guard").threshold
    _alter(stack / "guard")
    assert load_psim(stack / "guard").threshold == before


@pytest.mark.parametrize(
    "threshold", [None, float("nan"), float("inf"), -float("inf"), "0.7", True, [0.7], 1.5, 0, -0.7, MISSING]
)
def test_a_threshold_that_is_none_is_refused(stack: Path, threshold: Any) -> None:
    _alter(stack / "guard", threshold=threshold, calibration=None)
    assert _refusal(stack / "guard").code == "bad_threshold"


def test_a_number_beyond_floating_point_is_refused(stack: Path) -> None:
    path = stack / "guard" / "foretaste.json"
    manifest = json.loads(path.read_text())
    manifest["guard"] |= {"threshold": math.inf, "calibration": None}
    path.write_text(json.dumps(seal(manifest)).replace("Infinity", "1e999"))
    assert _refusal(stack / "guard").code == "bad_threshold"


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 0.9},
        {"threshold": None},
        {"allowed_above": 400},
        {"allowed_above": -1},
        {"n": 0},
        {"n": "872"},
        {"frr": 0},
        {"frr": float("nan")},
        {"confidence": 1},
        {"frr": 0.001, "allowed_above": 0, "n": 10_000_000},
    ],
    ids=str,
)
def test_a_calibration_that_contradicts_itself_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(GuardError, match=r"^somewhere: guard") as caught:
        read_bar(ENTRY | {"calibration": SOUND | change}, "somewhere")
    assert caught.value.code == "bad_threshold"


def test_a_promise_on_too_few_texts_is_refused() -> None:
    with pytest.raises(GuardError) as caught:
        read_bar(ENTRY | {"calibration": SOUND | {"n": 5, "allowed_above": 0}}, "x")
    assert caught.value.code == "too_few_calibration_texts"


def test_a_sound_calibration_is_taken() -> None:
    threshold, calibration, scoring, *_ = read_bar(ENTRY | {"scoring": "int8"}, "somewhere")
    assert (threshold, scoring) == (0.7, "int8")
    assert calibration == Calibration(0.7, 872, 3, 0.01, 0.95)


def test_an_altered_threshold_contradicts_its_calibration(stack: Path) -> None:
    _alter(stack / "guard", threshold=0.999)
    assert _refusal(stack / "guard").code == "bad_threshold"


def test_unknown_keys_and_methods_are_refused(stack: Path) -> None:
    _alter(stack / "guard", gamma=0.7)
    refusal = _refusal(stack / "guard")
    assert refusal.code == "unknown_key"
    assert "guard.gamma" in str(refusal)
    _alter(stack / "guard", gamma=MISSING, method="onion")
    assert _refusal(stack / "guard").code == "unknown_method"


def test_a_guard_without_an_entry_is_refused(stack: Path) -> None:
    path = stack / "guard" / "foretaste.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(seal(manifest | {"guard": None})))
    assert _refusal(stack / "guard").code == "bad_threshold"


def test_a_victim_is_no_guard_and_a_guard_no_victim(toy_stack: Mapping[str, Path]) -> None:
    for load, path in ((load_psim, "victim"), (load_psim, "base"), (load_victim, "guard"), (load_victim, "base")):
        with pytest.raises(ModelError, match="expected a") as caught:
            load(toy_stack[path])
        assert caught.value.code == "wrong_kind"


def test_a_victim_renamed_to_guard_has_no_threshold(stack: Path) -> None:
    path = stack / "victim" / "foretaste.json"
    path.write_text(json.dumps(seal(json.loads(path.read_text()) | {"kind": "guard"})))
    assert _refusal(stack / "victim").code == "bad_threshold"


def test_a_guard_of_another_base_is_refused(stack: Path, toy_base: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_psim(stack / "guard", base=toy_base)
    assert caught.value.code == "foreign_base"


def test_a_guard_without_a_threshold_is_not_saved(toy_stack: Mapping[str, Path], tmp_path: Path) -> None:
    guard = replace(load_psim(toy_stack["guard"]), threshold=float("nan"), calibration=None)
    with pytest.raises(GuardError) as caught:
        save_guard(guard, tmp_path / "guard", RECORD)
    assert caught.value.code == "bad_threshold"
    assert list(tmp_path.iterdir()) == []
