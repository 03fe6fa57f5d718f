"""Plans with strategy instruction: the supplier's model is the victim as it is; what cannot be asked is told first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from foretaste.errors import PlanError
from foretaste.experiment.grid import job_of
from foretaste.experiment.lab import Lab
from foretaste.experiment.plan import Plan, read_plan
from foretaste.experiment.run import run_plan
from foretaste.experiment.steps import Poisoned, Taster, Tuned
from foretaste.experiment.store import Store
from foretaste.report.cells import read_cells
from foretaste.report.printed import printed_value
from foretaste.victim.artefact import load_victim
from foretaste.victim.instruction import INSTRUCTIONS

pytestmark = pytest.mark.usefixtures("one_thread")

PLAN = """
title = "Asked"
[settings]
max_length = 32
limit = 300
poisoning_epochs = 4
poisoning_rate = 3e-3
poisoning_length = 48

[[grid]]
model = "tiny"
data = "toy"
knowledge = "full_data"
attack = "none"
strategy = "instruction"
defence = ["none", "psim_paper"]

[[grid]]
model = "tiny"
data = "toy"
knowledge = "full_data"
attack = "badnet"
strategy = ["instruction", "mine"]
defence = ["none", "psim_paper"]

[[grid]]
model = "tiny"
data = "toy"
knowledge = "full_data"
attack = "badnet"
strategy = "instruction"
defence = "dan"

[model.tiny]
location = "{tiny}"

[attack.badnet]
trigger = "word:cf mn bb tq mb"
style = "dirty-label"
count = 100

[strategy.mine]
method = "instruction"
template = "{{text}} {{mask}}"
verbalizer = ["bad", "good"]

[defence.dan]
frr = 0.05
"""


@pytest.fixture(scope="module")
def plan(toy_language_models: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Plan:
    path = tmp_path_factory.mktemp("asking") / "plan.toml"
    path.write_text(PLAN.format(tiny=toy_language_models["bert"]), encoding="utf-8")
    return read_plan(path)


def test_the_suppliers_model_is_the_victim_and_what_psim_stands_on(plan: Plan, tmp_path: Path) -> None:
    lab = Lab(Store(tmp_path))
    jobs = {str(cell): job_of(cell, plan, lab) for cell in plan.cells}
    assert len(jobs) == len({job.key for job in jobs.values()}) == 7
    for job in jobs.values():
        trainings = [step for step in job.steps if step.is_training and not isinstance(step, Taster)]
        assert trainings == [job.clean.victim]
        assert isinstance(job.clean.victim, Tuned if job.cell.attack == "none" else Poisoned)
        if job.clean_scores is not None:
            assert job.clean_scores.guard.base == job.clean.victim
            assert job.clean_scores.guard.max_length == plan.settings.poisoning_length
    victims = {job.cell.strategy: job.clean.victim for job in jobs.values() if job.cell.attack != "none"}
    assert victims["instruction"].key != victims["mine"].key


def test_cells_are_run_to_the_end_and_what_is_made_answers_in_words(plan: Plan, tmp_path: Path) -> None:
    lab, said = Lab(Store(tmp_path)), list[str]()
    progress = run_plan(plan, lab, plan.cells, said.append)
    assert (progress.done, progress.failed, progress.missing) == (7, {}, {})
    rates = [record.outcome.get("attack_success_rate") for record in read_cells(tmp_path).values()]
    known = [rate for rate in rates if isinstance(rate, float)]
    assert len(known) == 5  # those with an attack
    assert min(known) > 0.9
    (cell,) = (each for each in plan.cells if (each.attack, each.strategy, each.defence) == ("badnet", "mine", "none"))
    victim = load_victim(job_of(cell, plan, lab).clean.victim.place(lab.store))
    assert victim.instruction == plan.instructions["mine"]


def test_a_plan_without_instructions_keeps_its_steps(plan: Plan, toy_base: Path, tmp_path: Path) -> None:
    """An instruction of None is no part of a checkpoint's key: what was made before is found again."""
    lab = Lab(Store(tmp_path))
    plain, asked = lab.checkpoint(str(toy_base)), lab.checkpoint(str(toy_base), INSTRUCTIONS["toy"])
    assert plain.key == plain.mark
    assert asked.key != plain.key


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'defence = ["none", "psim_paper"]',
            'defence = "fine_tuning"',
            "fine_tuning is for weights that",
        ),
        ('data = "toy"', 'data = "cola"\nseed = 1', "tuned on sst2 has no answer for cola"),
        ('data = "toy"', 'data = "ag_news"', "no proxy dataset"),
        ('verbalizer = ["bad", "good"]', 'verbalizer = ["bad"]', "two classes or more"),
        ('template = "{{text}} {{mask}}"', 'template = "{{text}}"', "one {mask}"),
        ('verbalizer = ["bad", "good"]', 'verbalizer = ["bad", "good"]\nepochs = 3', "no field 'epochs'"),
    ],
)
def test_what_cannot_be_asked_is_told_before_anything_runs(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "plan.toml"
    text = PLAN.replace(old, new).replace('knowledge = "full_data"', 'knowledge = "full_task"')
    path.write_text(text.format(tiny="tiny"), encoding="utf-8")
    with pytest.raises(PlanError, match=message):
        read_plan(path)


def test_a_set_of_ones_own_needs_an_instruction(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    text = PLAN.replace('data = "toy"', f'data = "{tmp_path}"').replace('"instruction", "mine"', '"mine"')
    path.write_text(text.format(tiny="tiny"), encoding="utf-8")
    with pytest.raises(PlanError, match="No instruction for"):
        read_plan(path)
    path.write_text(text.replace('strategy = "instruction"', 'strategy = "mine"').format(tiny="tiny"))
    assert {cell.strategy for cell in read_plan(path).cells} == {"mine"}


def test_table_11_stands_beside_the_printed_values() -> None:
    plan = read_plan(Path(__file__).parents[2] / "plans" / "table11.toml")
    found = {
        (cell.model, cell.attack, cell.defence): printed_value(11, plan.beside[cell.model], vars(cell))
        for cell in plan.cells
    }
    printed = {name: value for name, value in found.items() if value is not None}
    assert printed["minilm", "badnet", "none"][:2] == (0.8929, 0.9912)
    assert printed["llama-7b", "badnet", "psim"][:2] == (0.9434, 0.0)
    assert printed["roberta-large", "none", "none"][:2] == (0.9566, None)
    assert {name[2] for name in printed} == {"none", "psim", "psim_paper"}
