"""What the names in the laboratory's test plans mean: a tiny model, short trainings."""

from __future__ import annotations

from pathlib import Path

from foretaste.experiment.plan import Plan, read_plan

GRID = """
[[grid]]
model = "tiny"
data = "{data}"
knowledge = "full_data"
attack = ["none", "badnet"]
strategy = ["lora", "full"]
defence = ["none", "psim", "fine_tuning", "dan", "onion"]
"""  # twenty cells of two bases
NAMES = """
[model.tiny]
location = "{tiny}"

[attack.badnet]
trigger = "word:cf mn bb tq mb"
style = "dirty-label"
count = 60

[strategy.lora]
epochs = 1
learning_rate = 1e-2
precision = "float32"

[strategy.full]
epochs = 1
learning_rate = 1e-3
precision = "float32"

[defence.psim]
frr = 0.05
dose = 0.1
precision = "float32"

[defence.dan]
frr = 0.05

[defence.fine_tuning]
epochs = 1
least_steps = 1
precision = "float32"
"""


def plan_of(text: str, tiny: Path, data: Path, home: Path) -> Plan:
    """Write a plan into a directory, with where its tiny model and its data lie, and read it."""
    path = home / "plan.toml"
    path.write_text(text.format(tiny=tiny, data=data), encoding="utf-8")
    return read_plan(path)
