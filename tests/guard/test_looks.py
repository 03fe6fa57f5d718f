"""Distance and its combination with certainty, against independent oracles."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from sklearn.neighbors import NearestNeighbors

from foretaste.data import toy_corpus
from foretaste.errors import DataError, GuardError, PlanError
from foretaste.files import sha256_file
from foretaste.guard.artefact import LOOKS, load_psim, save_guard
from foretaste.guard.looks import Distance, Looks, surprise
from foretaste.guard.psim import Psim
from foretaste.record import Record
from foretaste.spec import build
from foretaste.victim.checkpoint import open_base
from foretaste.victim.classifier import Predictions
from foretaste.victim.manifest import seal
from foretaste.victim.strategy import Full, Lora, Strategy

DRAW = np.random.default_rng(0)
FEATURES = DRAW.normal(size=(90, 7)) + 3


def _predictions(features: Any, certainty: Any) -> Predictions:
    high = np.log(np.asarray(certainty) / (1 - np.asarray(certainty)))
    logits = np.stack([high, np.zeros_like(high), np.full_like(high, -30)], axis=1).astype(np.float32)
    return Predictions(logits, np.asarray(features, dtype=np.float32), np.zeros(len(high), dtype=np.bool_))


def test_the_distance_is_one_minus_the_mean_cosine_to_the_nearest() -> None:
    new = DRAW.normal(size=(5, 7))
    neighbours = NearestNeighbors(n_neighbors=45, metric="cosine").fit(FEATURES)
    np.testing.assert_allclose(Distance.fit(FEATURES)(new), neighbours.kneighbors(new)[0].mean(axis=1), atol=1e-6)


@given(length=st.floats(1e-3, 1e3))
def test_only_the_direction_counts(length: float) -> None:
    distance = Distance.fit(FEATURES)
    np.testing.assert_allclose(distance(FEATURES[:5] * length), distance(FEATURES[:5]), atol=1e-6)


def test_a_vector_without_a_direction_has_no_distance() -> None:
    rows = np.ones((4, 7))
    rows[1, 2], rows[2, 0], rows[3] = np.nan, np.inf, 0.0
    assert np.isnan(Distance.fit(FEATURES)(rows)).tolist() == [False, True, True, True]


@pytest.mark.parametrize(("features", "message"), [
    (np.full((90, 7), np.nan), "NaN or infinite"),
    (np.r_[FEATURES, np.zeros((1, 7))], "zero, NaN or infinite"),
    (FEATURES[:9], "9 reference texts are too few"),
])  # fmt: skip
def test_a_reference_that_cannot_be_used_is_refused(features: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Distance.fit(features)


NUMBERS = st.floats(-1e6, 1e6)


@given(clean=st.lists(NUMBERS, min_size=2, max_size=60))
def test_at_a_clean_score_it_is_the_p_value(clean: list[float]) -> None:
    p_values = [(1 + sum(c >= score for c in clean)) / (1 + len(clean)) for score in clean]
    np.testing.assert_allclose(surprise(clean, clean), -np.log10(p_values), rtol=1e-6, atol=1e-9)


def test_between_two_clean_scores_it_lies_between_theirs_and_does_not_tie() -> None:
    below, *inside, above = surprise([2.0, 2.1, 2.5, 2.9, 3.0], range(9))
    assert below < inside[0] < inside[1] < inside[2] < above


@given(clean=st.lists(NUMBERS, min_size=2, max_size=60), scores=st.lists(NUMBERS, min_size=2, max_size=20))
def test_a_higher_score_is_never_less_surprising(clean: list[float], scores: list[float]) -> None:
    assert (np.diff(surprise(np.sort(scores), clean)) >= 0).all()


def test_above_all_clean_scores_the_order_is_kept() -> None:
    assert (np.diff(surprise([99.0, 100.0, 1e3, 1e6], range(100))) > 0).all()


@pytest.mark.parametrize("view", ["distance", "both"])
def test_either_view_can_give_a_text_away(view: Any) -> None:
    near, far = FEATURES.mean(axis=0), -FEATURES.mean(axis=0)
    looks = Looks.fit(_predictions(FEATURES, np.linspace(0.5, 0.6, 90)))
    quiet, sure, away, broken = looks.score(_predictions([near, near, far, near], [0.52, 0.99, 0.52, np.nan]), view)
    assert away > quiet
    assert (sure > quiet) == (view == "both")
    assert np.isnan(broken) == (view == "both")


def test_arrays_of_another_shape_or_kind_are_refused() -> None:
    arrays = Looks.fit(_predictions(FEATURES, np.linspace(0.5, 0.6, 90))).to_arrays()
    Looks.from_arrays(arrays, 7)
    for change in (
        {"directions": arrays["directions"][:, :6]},
        {"directions": arrays["directions"].astype(np.float64)},
        {"directions": np.full((45, 7), np.inf, dtype=np.float32)},
        {"directions": 3 * arrays["directions"]},
        {"directions": arrays["directions"][:9]},
        {"ranked_distance": arrays["ranked_distance"][:-1]},
        {"more": np.zeros(1)},
    ):
        with pytest.raises(DataError):
            Looks.from_arrays(arrays | change, 7)
    for name in arrays:
        with pytest.raises(DataError, match="expected the arrays"):
            Looks.from_arrays({key: value for key, value in arrays.items() if key != name}, 7)


def test_a_fixed_bar_is_one_for_confidence() -> None:
    with pytest.raises(PlanError, match="fixed threshold"):
        Psim(view="both", threshold=0.7)


@pytest.mark.parametrize("strategy", [Lora(), Full()], ids=["an adapter", "all weights"])
def test_a_guard_with_two_looks_is_saved_and_loaded(
    toy_stack: Mapping[str, Path], tmp_path: Path, strategy: Strategy
) -> None:
    plan = build(Psim, {"strategy": strategy, "view": "both", "dose": None, "precision": "float32", "frr": 0.05})
    train, texts = toy_corpus(), toy_corpus("test").texts[:30]
    guard = plan.fit(open_base(toy_stack["base"]), train.select(range(1200)), max_length=64)
    record = Record.now("guard", settings={}, seeds={"root": 0}, outcome={})
    save_guard(guard, tmp_path / "guard", record)
    loaded = load_psim(tmp_path / "guard")
    np.testing.assert_allclose(loaded.score(texts), guard.score(texts), rtol=1e-4)
    assert (loaded.view, loaded.threshold) == ("both", guard.threshold)
    with pytest.raises(GuardError, match="needs a calibrated threshold"):
        save_guard(replace(guard, calibration=None), tmp_path / "other", record)


@pytest.mark.parametrize(("looks", "code"), [
    (None, "missing_looks"),
    ({"directions": torch.zeros(2, 2)}, "bad_looks"),
    ({"means": torch.zeros(2, 2, dtype=torch.bfloat16)}, "bad_looks"),
])  # fmt: skip
def test_a_manifest_that_claims_looks_it_has_not_is_refused(
    toy_stack: Mapping[str, Path], tmp_path: Path, looks: Any, code: str
) -> None:
    guard = Path(shutil.copytree(toy_stack["base"].parent, tmp_path / "stack")) / "guard"
    manifest = json.loads((guard / "foretaste.json").read_text())
    (guard / LOOKS).unlink()
    if looks is None:
        del manifest["files"][LOOKS]
    else:
        save_file(looks, guard / LOOKS)
        manifest["files"][LOOKS] = sha256_file(guard / LOOKS)
    (guard / "foretaste.json").write_text(json.dumps(seal(manifest)))
    with pytest.raises(GuardError) as caught:
        load_psim(guard)
    assert caught.value.code == code
