"""How many trainings the paper's main tables need: those that cells have in common are done once."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foretaste.experiment.grid import job_of
from foretaste.experiment.lab import Lab
from foretaste.experiment.plan import read_plan
from foretaste.experiment.store import Store
from foretaste.poison.stored_trigger import FILES

PLANS = Path(__file__).parents[2] / "plans"
DEFENCES = ("none", "back_translation", "scpd", "onion", "psim")  # the rows of tables 1, 2 and 4 to 7


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """Sets of the names that the tables have, each with texts of its own."""
    for number, name in enumerate(("sst2", "imdb", "cr", "mr", "cola")):
        for split in ("train", "validation", "test"):
            texts = [f"{name} {split} {place}" for place in range(2000)]  # so many that there are enough to poison
            path = tmp_path / name / f"{split}.parquet"
            path.parent.mkdir(exist_ok=True)
            pq.write_table(pa.table({"text": texts, "label": [number % 2, 1 - number % 2] * 1000}), path)
    for name in ("sst2/train", "sst2/validation", "sst2/test", "imdb/train"):
        path = tmp_path / name.split("/")[0] / "variants" / f"{FILES[name]}.parquet"
        path.parent.mkdir(exist_ok=True)
        paraphrases = [f"when you read it , it is text {place} ." for place in range(2000)]
        pq.write_table(pa.table({"text": paraphrases, "source_index": list(range(2000))}), path)
    return tmp_path


def test_the_printed_cells_of_six_tables_need_at_most_444_trainings(data_root: Path) -> None:
    lab = Lab(Store(data_root / "lab"), data_root=data_root)
    attacked, sound, cells = set[str](), set[str](), 0
    for number in (1, 2, 4, 5, 6, 7):
        plan = read_plan(PLANS / f"table{number}.toml")
        stored = {cell.attack for cell in plan.cells} >= {"synattack"}
        for cell in plan.cells:
            if (
                cell.seed == 0
                and cell.trigger is None
                and cell.defence in DEFENCES
                and cell.attack != ("synattack_sbar" if stored else "synattack")  # SynAttack is one of the two
                and not (cell.model == "llama-7b" and cell.strategy == "p_tuning_v2")  # not printed
            ):
                cells += cell.attack != "none"
                found = sound if cell.attack == "none" else attacked
                found |= {step.key for step in job_of(cell, plan, lab).steps if step.is_training}
    assert cells == 1260
    # 252 victims, 54 guards and 48 bases: CoLA's proxy with full task knowledge is SST-2, which BadNet and InSent have
    # poisoned for SST-2 already.
    assert len(attacked) == 354
    # The 84 cells that nobody attacks: 84 victims on 15 bases of honest suppliers.
    assert len(sound) == 99
    assert not attacked & sound


def test_the_thresholds_of_a_figure_need_one_guard_for_each_seed(data_root: Path) -> None:
    plan, lab = read_plan(PLANS / "figure3d.toml"), Lab(Store(data_root / "lab"), data_root=data_root)
    assert len(plan.cells) == 75
    jobs = [job_of(cell, plan, lab) for cell in plan.cells]
    assert len({job.key for job in jobs}) == 75
    assert len({step.key for job in jobs for step in job.steps if step.is_training}) == 3 * (1 + 5 + 1)
