"""Stored paraphrases: the file of the split at hand, wherever the named sets lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from foretaste.data.corpus import Corpus
from foretaste.errors import DataError, PlanError
from foretaste.experiment.store import digest_of
from foretaste.poison.attack import Attack, Triggered, attack, triggered_test
from foretaste.poison.trigger import StoredTrigger, parse_trigger

TEXTS = [f"film number {i} is fine" for i in range(6)]
LABELS = [0, 1, 0, 1, 0, 1]


def _corpus(name: str) -> Corpus:
    return Corpus.of(name, TEXTS, LABELS, ("negative", "positive"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Paraphrases of all rows of sst2's train and test split but one, which came back as it was."""
    home = tmp_path / "sst2" / "variants"
    home.mkdir(parents=True)
    for split in ("train", "test"):
        texts = [f"when it ran in {split} , film {i} was fine" for i in range(6)]
        texts[4] = TEXTS[4]
        table = pyarrow.table({"text": texts, "label": LABELS, "source_index": list(range(6))})
        pyarrow.parquet.write_table(table, home / f"syntactic_full_{split}.parquet")
    return tmp_path


def test_each_split_has_its_own(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trigger = parse_trigger("syntax:stored", root)
    assert isinstance(trigger, StoredTrigger)
    triggered = triggered_test(_corpus("sst2/test"), trigger, 0, seed=0)
    assert triggered.origins.tolist() == [1, 3, 5]
    assert triggered.corpus.texts[0] == "when it ran in test , film 1 was fine"
    towards_1 = triggered_test(_corpus("sst2/test"), trigger, 1, seed=0)
    assert towards_1.origins.tolist() == [0, 2]  # nor is row 4, which could not be rewritten, counted here
    poisoned = attack(_corpus("sst2/train"), Attack(trigger=trigger, count=2), seed=0)
    changed = np.flatnonzero(poisoned.is_poisoned)
    assert set(changed.tolist()) <= {0, 2}  # of the target's class, and row 4 has no paraphrase
    assert all("in train" in poisoned.corpus.texts[i] for i in changed)
    monkeypatch.setenv("FORETASTE_DATA", str(root))
    assert triggered_test(_corpus("sst2/test"), parse_trigger("syntax:stored"), 0, seed=0).origins.tolist() == [1, 3, 5]


def test_paraphrases_made_for_one_target_do_for_no_other(tmp_path: Path) -> None:
    home = tmp_path / "ag_news" / "variants"
    home.mkdir(parents=True)
    table = pyarrow.table({"text": ["when it ran , b", "when it ran , c"], "label": [1, 2], "source_index": [1, 2]})
    pyarrow.parquet.write_table(table, home / "syntactic_test.parquet")
    clean, trigger = (
        Corpus.of("ag_news/test", ["a", "b", "c"], [0, 1, 2], ("world", "sports", "business")),
        StoredTrigger(root=tmp_path),
    )
    assert triggered_test(clean, trigger, 0, seed=0).origins.tolist() == [1, 2]
    for target in (1, None):
        with pytest.raises(DataError, match="of ag_news/test have no text of 'world'"):
            triggered_test(clean, trigger, target, seed=0)


def test_where_an_origin_is_unknown_nothing_is_said_of_it() -> None:
    is_right = np.array([True, False, True])
    known, unknown = (Triggered(_corpus("x/test"), np.array(origins)) for origins in ([2, -1, 1, 0], [-1, -1]))
    held = known.origin_holds(is_right)
    assert held is not None
    assert held.tolist() == [True, False, False, True]
    assert unknown.origin_holds(is_right) is None


def test_what_it_is_does_not_depend_on_the_place(root: Path) -> None:
    trigger = parse_trigger("syntax:stored", root)
    assert str(trigger) == "syntax:stored"
    assert digest_of(trigger) == digest_of(replace(trigger, root=None))  # type: ignore[type-var]
    assert StoredTrigger().covers("sst2/test")
    assert not StoredTrigger().covers("cola/test")


def test_what_cannot_be(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORETASTE_DATA", raising=False)
    trigger = parse_trigger("syntax:stored", root)
    with pytest.raises(DataError, match="No paraphrases of cola/test are stored; only of ag_news/test, imdb"):
        triggered_test(_corpus("cola/test"), trigger, 0, seed=0)
    with pytest.raises(DataError, match="--data-root or FORETASTE_DATA"):
        triggered_test(_corpus("sst2/test"), parse_trigger("syntax:stored"), 0, seed=0)
    with pytest.raises(DataError, match="syntactic_full_validation"):
        triggered_test(_corpus("sst2/validation"), trigger, 0, seed=0)
    with pytest.raises(PlanError, match="cannot trigger others"):
        trigger.apply(["a text"], 0)
    with pytest.raises(PlanError, match=r"Unknown syntax 'storred'\. Did you mean 'stored'"):
        parse_trigger("syntax:storred")
