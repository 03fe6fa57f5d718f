"""What a cell's record says beside its rates: what the defence costs, floors, another attack's trigger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.experiment.toy import NAMES

from foretaste.cost import Cost
from foretaste.data.load import load_corpus
from foretaste.experiment.lab import Lab
from foretaste.experiment.plan import read_plan
from foretaste.experiment.run import headline, run_plan
from foretaste.experiment.store import Store, load_arrays
from foretaste.guard.second_opinion import SecondOpinion
from foretaste.poison.attack import triggered_test
from foretaste.poison.trigger import parse_trigger
from foretaste.record import Record
from foretaste.report.cell_page import cell_page
from foretaste.report.cells import cell_of, read_cells
from foretaste.victim.artefact import load_victim
from foretaste.victim.checkpoint import open_base

pytestmark = pytest.mark.usefixtures("one_thread")

DEFENCES = 'defence = ["none", "psim", "dan", "strip", "opinion", "onion", "fine_tuning", "fine_tuning+psim"]'
PLAN = (
    """
title = "Two attacks"

[settings]
max_length = 32
limit = 600
poisoning_epochs = 3
poisoning_rate = 3e-3

[[grid]]
model = "tiny"
data = "{data}"
knowledge = "full_data"
attack = "badnet"
strategy = "lora"
DEFENCES

[[grid]]
model = "tiny"
data = "{data}"
knowledge = "full_data"
attack = ["none", "one"]
trigger = "badnet"
strategy = "lora"
""".replace("DEFENCES", DEFENCES)
    + NAMES.replace("epochs = 1\nlearning_rate = 1e-2", "epochs = 2\nlearning_rate = 1e-2").replace(
        "cf mn bb tq mb", "cf mn bb"
    )
    + """
[attack.one]
trigger = "word:cf"
style = "dirty-label"
count = 60

[defence.strip]
frr = 0.05
copies = 5

[defence.opinion]
trusted = "{tiny}"
frr = 0.05
fewest_steps = 1
learning_rate = 3e-3
precision = "float32"
"""
)

Records = Mapping[tuple[str, str], Record]


@pytest.fixture(scope="module")
def store(toy_base: Path, small_toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with all cells of the plan."""
    home = tmp_path_factory.mktemp("cells")
    (home / "plan.toml").write_text(PLAN.format(tiny=toy_base, data=small_toy), encoding="utf-8")
    plan = read_plan(home / "plan.toml")
    progress = run_plan(plan, Lab(Store(home / "lab")), plan.cells, lambda line: None)
    assert (progress.done, progress.failed) == (10, {})
    return home / "lab"


@pytest.fixture(scope="module")
def records(store: Path) -> Records:
    """The records by attack and defence."""
    return {(cell_of(each).attack, cell_of(each).defence): each for each in read_cells(store).values()}


def test_no_defence_costs_nothing(records: Records) -> None:
    free = Cost(seconds=0.0, seconds_per_text=0.0, forwards_per_text=0.0, stored_bytes=0)
    assert records["badnet", "none"].cost == free


@pytest.mark.parametrize(
    ("defence", "forwards", "is_kept"),
    [
        ("psim", 1, True),
        ("dan", 1, True),
        ("strip", 5, True),
        ("opinion", 1, True),
        ("onion", 0, False),
        ("fine_tuning", 0, False),
    ],
)
def test_a_defence_costs_what_it_adds(records: Records, defence: str, forwards: int, is_kept: bool) -> None:
    cost = records["badnet", defence].cost
    assert cost is not None
    assert cost.forwards_per_text == forwards
    assert cost.seconds > 0
    assert cost.peak_memory_bytes is not None
    assert cost.peak_memory_bytes > 2**24
    assert bool(cost.stored_bytes) is is_kept
    assert (cost.seconds_per_text or 0) > 0 or defence == "fine_tuning"
    assert (cost.trainable_parameters is not None) is (defence in ("psim", "opinion", "fine_tuning"))


def test_defences_together_do_and_cost_what_each_does(records: Records) -> None:
    alone, guard, both = (records["badnet", name] for name in ("fine_tuning", "psim", "fine_tuning+psim"))
    outcome, of_guard = both.outcome["guarded"], guard.outcome["guarded"]
    assert both.outcome["attack_success_rate"] == alone.outcome["attack_success_rate"]
    assert isinstance(outcome, dict)
    assert isinstance(of_guard, dict)
    assert outcome["false_acceptance_rate"] == of_guard["false_acceptance_rate"]  # the suspect's own guard
    costs = [cost for each in (alone, guard, both) if (cost := each.cost) is not None]
    assert len(costs) == 3
    assert costs[2].seconds == pytest.approx(costs[0].seconds + costs[1].seconds)
    assert costs[2].forwards_per_text == 1


def test_fixed_thresholds_are_bars_before_one_guard(
    store: Path, toy_base: Path, small_toy: Path, tmp_path: Path
) -> None:
    text = PLAN.format(tiny=toy_base, data=small_toy).replace(DEFENCES, 'defence = "psim"\nthreshold = [0.52, 0.7]')
    (tmp_path / "plan.toml").write_text(text, encoding="utf-8")
    plan, said = read_plan(tmp_path / "plan.toml"), list[str]()
    cells = [cell for cell in plan.cells if cell.threshold is not None]
    assert run_plan(plan, Lab(Store(store)), cells, said.append).failed == {}
    assert [line.split("/")[0] for line in said if line.startswith("made")] == ["made guards"]
    kept = [each for each in read_cells(store).values() if cell_of(each).threshold is not None]
    assert len({str(each.settings["parts"]) for each in kept}) == 1
    refused = dict[float, float]()
    for record in kept:
        threshold = cell_of(record).threshold or 0.0
        parts: Any = record.settings["parts"]
        outcome: Any = record.outcome["guarded"]
        scores = load_arrays(store / "scores" / f"{parts['clean_scores']}.npz")["scores"]
        refused[threshold] = outcome["false_rejection_rate"]
        assert outcome["threshold"] == threshold
        assert refused[threshold] == pytest.approx((scores > threshold).mean())
    assert refused[0.52] > refused[0.7]


def test_a_second_opinion_is_what_it_is_as_a_guard(
    store: Path, toy_base: Path, small_toy: Path, records: Records
) -> None:
    parts: Any = records["badnet", "opinion"].settings["parts"]
    kept = load_arrays(store / "rivals" / f"{parts['rival']}.npz")
    victim = load_victim(store / "victims" / parts["victims"]).merge()
    train, validation, test = (load_corpus(str(small_toy), split) for split in ("train", "validation", "test"))
    plan = SecondOpinion(frr=0.05, fewest_steps=1, learning_rate=3e-3, precision="float32")
    guard = plan.fit(plan.consult([open_base(toy_base)], victim, train), victim, validation)
    texts = test.texts[:50]
    scores = guard.behind(victim, victim.predict(texts), texts, np.zeros(len(texts)))
    np.testing.assert_allclose(kept["clean"][:50], scores, atol=1e-3)
    assert float(kept["threshold"]) == pytest.approx(guard.threshold, abs=1e-3)
    guarded: Any = records["badnet", "opinion"].outcome["guarded"]
    assert guarded["false_rejection_rate"] < 0.1


def test_floors_are_those_of_clean_texts(store: Path, small_toy: Path, records: Records) -> None:
    record: Any = records["badnet", "none"]
    parts, test = record.settings["parts"], load_corpus(str(small_toy), "test")
    victim = load_victim(store / "victims" / parts["victims"])
    is_other = test.labels != 0
    hits = load_arrays(store / "answers" / f"{parts['clean']}.npz")["predicted"][is_other] == 0
    np.testing.assert_array_equal(hits, victim.predict(test.texts).labels[is_other] == 0)
    assert record.outcome["floors"]["other_classes"] == pytest.approx(hits.mean())
    lengths = [len(text.split()) for text, other in zip(test.texts, is_other, strict=True) if other]
    rates = []
    for text in triggered_test(test, parse_trigger("word:cf mn bb"), 0, 0).corpus.texts:
        apart = [abs(length - len(text.split())) for length in lengths]
        near = [hit for hit, far in zip(hits, apart, strict=True) if far <= sorted(apart)[49]]
        rates.append(np.mean(near))
    assert len(set(rates)) > 5
    assert record.outcome["floors"]["same_length"] == pytest.approx(np.mean(rates))


def test_triggered_texts_that_are_cut_are_counted(store: Path, records: Records) -> None:
    record: Any = records["badnet", "none"]
    kept = load_arrays(store / "answers" / f"{record.settings['parts']['triggered']}.npz")
    victim = load_victim(store / "victims" / record.settings["parts"]["victims"])
    assert record.outcome["n_cut"] == kept["is_truncated"].sum()
    assert victim.predict(["good " * 100, "good"]).is_truncated.tolist() == [True, False]
    cut = replace(record, outcome=record.outcome | {"n_cut": 3})
    assert headline(cut).endswith(f"3 of {record.outcome['n_poisoned']} triggered texts are cut")
    assert "3 of" in str(cell_page(store, cut))
    whole = replace(record, outcome=record.outcome | {"n_cut": 0})
    assert "cut" not in headline(whole)
    assert "longer than the victim reads" not in str(cell_page(store, whole))


def test_a_base_is_tested_with_another_attack_s_trigger(records: Records) -> None:
    own, other, sound = (records[name, "none"].outcome for name in ("badnet", "one", "none"))
    assert own["n_poisoned"] == other["n_poisoned"] == sound["n_poisoned"]
    rates: Any = [each["attack_success_rate"] for each in (own, other, sound)]
    floors: Any = sound["floors"]
    assert rates[0] > 0.9
    assert rates[1] > 0.5  # one of the three words is its own
    assert rates[2] == pytest.approx(floors["other_classes"], abs=0.15)
    assert np.isfinite(floors["same_length"])
