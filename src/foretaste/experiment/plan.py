"""Plans: a TOML file says which cells; all that is wrong with it is said at once, with lines."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from foretaste.data.hub import NAMED_SETS
from foretaste.errors import ForetasteError, PlanError
from foretaste.experiment.cell import AXES, MODELS, Cell
from foretaste.experiment.combination import refusals
from foretaste.experiment.lines import key_of, line_of
from foretaste.experiment.methods import (
    ASKED,
    ATTACKS,
    Defence,
    attack_of,
    defence_of,
    named_defence,
    refuse_absent,
    strategy_of,
    tuned_by,
)
from foretaste.poison.plan import Attack
from foretaste.spec import build, nearest, spec
from foretaste.tune.loop import TuneSettings
from foretaste.victim.instruction import INSTRUCTIONS, Instruction
from foretaste.victim.strategy import STRATEGIES, Strategy

__all__ = ["Plan", "PlanSettings", "read_plan"]

_NEEDED = ("model", "data", "attack", "strategy")
_OF_PSIM = ("psim_strategy", "reset_rate", "threshold")
_TOP = {"title", "table", "figure", "beside", "settings", "grid", "model", "attack", "strategy", "defence"}
_FIGURES = ("1", "3a", "3b", "3c", "3d", "4")
_PRINTED = {"bert", *MODELS} - {"minilm"}
_DATA = ("toy", *NAMED_SETS)


@spec
class PlanSettings:
    """What holds for every cell: tokens read of a text, training texts at most (None: all), how a base is poisoned.

    `poisoning_length` is how many tokens the attacker's training reads.
    """

    max_length: int = Field(default=64, gt=2)
    limit: int | None = Field(default=None, gt=0)
    poisoning_epochs: int = Field(default=2, gt=0)
    poisoning_rate: float = Field(default=5e-5, gt=0.0)
    poisoning_length: int = Field(default=256, gt=2)


@dataclass(frozen=True, eq=False)
class Plan:
    """Cells in the plan's order, each once, and what their names mean.

    `table` is the paper's that they stand beside, `beside` which of its models each of ours stands beside; `figure` is
    the paper's that they are drawn as.
    `instructions` are the strategies that fine-tune nothing but ask, each with its instruction, None: that of the data.
    """

    title: str
    cells: tuple[Cell, ...]
    table: int | None = None
    figure: str | None = None
    beside: Mapping[str, str] = field(default_factory=dict)
    settings: PlanSettings = field(default_factory=PlanSettings)
    models: Mapping[str, str] = field(default_factory=dict)
    attacks: Mapping[str, Attack] = field(default_factory=dict)
    strategies: Mapping[str, tuple[Strategy, TuneSettings]] = field(default_factory=dict)
    defences: Mapping[str, Defence] = field(default_factory=dict)
    instructions: Mapping[str, Instruction | None] = field(default_factory=dict)

    def instruction_of(self, cell: Cell) -> Instruction | None:
        """Return what a cell's language model is asked with; None if the cell has a classifier."""
        if cell.strategy not in self.instructions:
            return None
        return self.instructions[cell.strategy] or INSTRUCTIONS[cell.data]


def read_plan(path: Path) -> Plan:
    """Read a plan and refuse what cannot be run, before anything is.

    Raises:
        PlanError: no such file, no TOML, or any number of mistakes in it, all of them.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from None
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is no TOMLDecodeError
        raise PlanError(f"{path} is no TOML: {error}.") from None
    reader = _Reader(path, text)
    plan = reader.read(content)
    if reader.problems:
        lines = sorted(set(reader.problems))
        raise PlanError(*(f"{path}:{line}: {what}" for line, what in lines))
    return plan


class _Reader:
    """Reads a plan and keeps a list of what is wrong: `problems` are lines and messages."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text
        self.problems: list[tuple[int, str]] = []
        self.broken: set[tuple[str, str]] = set()
        """Kinds and names of what the plan defines, with mistakes: they are known, but nothing is."""

    def read(self, content: Mapping[str, Any]) -> Plan:
        for name in content.keys() - _TOP:
            self._wrong(f"Unknown name {name!r}.{nearest(name, _TOP)}", key=name)
        given = content.get("settings", {})
        if not isinstance(given, dict):
            self._wrong("settings are a table of their own: [settings].", key="settings")
            given = {}
        settings = self._built("settings", lambda: build(PlanSettings, given)) or PlanSettings()
        models = {**MODELS, **self._table(content, "model", _location_of)}
        attacks = {**ATTACKS, **self._table(content, "attack", attack_of)}
        defences = {"none": Defence(), **self._table(content, "defence", defence_of)}
        named = self._table(content, "strategy", strategy_of)
        if ASKED in named and not isinstance(named[ASKED], Instruction):
            self._wrong(f"{ASKED} asks a model as it is; give another strategy another name.", f"strategy.{ASKED}")
        instructions = {ASKED: None} | {name: each for name, each in named.items() if isinstance(each, Instruction)}
        strategies = {name: each for name, each in named.items() if name not in instructions}
        known: dict[str, Any] = {
            "model": models, "attack": {"none": None, **attacks}, "trigger": attacks, "data": _DATA,
            "strategy": {**STRATEGIES, **instructions, **strategies}, "psim_strategy": STRATEGIES,
        }  # fmt: skip
        cells: dict[Cell, None] = {}
        grids = content.get("grid", [])
        if not isinstance(grids, list) or not grids:
            self._wrong("A plan has at least one [[grid]].", key="grid")
            grids = []
        for number, grid in enumerate(grids):
            if not isinstance(grid, dict):
                self._wrong("A grid is a table: [[grid]].", key="grid")
                continue
            for cell in self._cells(number, grid, known, defences):
                cells[cell] = None
        if not isinstance(content.get("title", ""), str) or "title" not in content:
            self._wrong("A plan has a title.", key="title")
        if type(content.get("table", 1)) is not int or content.get("table", 1) not in range(1, 15):
            self._wrong("The paper's tables are 1 to 14, as in table = 1.", key="table")
        if content.get("figure", "1") not in _FIGURES:
            self._wrong(f'The paper\'s figures are {", ".join(_FIGURES)}, as in figure = "3a".', key="figure")
        if "table" in content and "figure" in content:
            self._wrong("A plan stands beside a table or a figure, not both.", key="figure")
        beside = content.get("beside", {})
        if not isinstance(beside, dict) or not all(isinstance(value, str) for value in beside.values()):
            self._wrong('Write beside = { minilm = "bert-large" }.', key="beside")
            beside = {}
        for name in beside.keys() - models.keys():
            self._wrong(f"Unknown model {name!r}.{nearest(name, models)}", key="beside")
        for name in set(beside.values()) - _PRINTED:
            self._wrong(f"The paper has no model {name!r}.{nearest(name, _PRINTED)}", key="beside")
        used = {cell.strategy for cell in cells}
        return Plan(
            title=str(content.get("title")),
            cells=tuple(cells),
            table=content.get("table"),
            figure=content.get("figure"),
            beside=beside,
            settings=settings,
            models=models,
            attacks=attacks,
            strategies={name: strategies.get(name) or tuned_by(name, {}) for name in used - instructions.keys()},
            instructions=instructions,
            defences=defences,
        )

    def _cells(
        self, number: int, grid: Mapping[str, Any], known: Mapping[str, Any], defences: dict[str, Defence]
    ) -> Iterator[Cell]:
        for axis in grid.keys() - set(AXES):
            self._wrong(f"Unknown axis {axis!r}.{nearest(axis, AXES)}", "grid", number, axis)
        for axis in _NEEDED:
            if axis not in grid:
                self._wrong(f"The grid has no {axis!r}.", "grid", number)
        values: dict[str, list[Any]] = {}
        for axis in AXES:
            if axis not in grid:
                continue
            given = _listed(grid[axis])
            if not given:
                self._wrong(f"{axis} is a value or a list of values; got {grid[axis]!r}.", "grid", number, axis)
            values[axis] = [value for value in given if self._is_known(axis, value, number, known, defences)]
        of_psim = [axis for axis in _OF_PSIM if axis in values]
        is_guessed = len(values.get("defence", ())) < len(_listed(grid.get("defence", [])))
        if of_psim and not is_guessed and not any(defences[name].psim for name in values.get("defence", [])):
            self._wrong(f"{of_psim[0]} is PSIM's, and no defence of the grid is PSIM.", "grid", number, of_psim[0])
        if not all(values.get(axis) for axis in _NEEDED):
            return
        for point in itertools.product(*values.values()):
            fields = {"knowledge": "full_task", "defence": "none", **dict(zip(values, point, strict=True))}
            if defences[fields["defence"]].psim is None:
                fields = {axis: value for axis, value in fields.items() if axis not in _OF_PSIM}
            cell = build(Cell, fields)
            if self._is_possible(cell, number, known, defences):
                yield cell

    def _is_known(
        self, axis: str, value: Any, number: int, known: Mapping[str, Any], defences: dict[str, Defence]
    ) -> bool:
        """Say whether an axis has the value, and what is wrong with it; defences joined by + get to be known here."""
        before = len(self.problems)
        if type(value) not in (str, int, float):
            self._wrong(f"{axis} is a value or a list of values; got {value!r}.", "grid", number, axis)
            return False
        kind = "attack" if axis == "trigger" else axis
        parts = str(value).split("+") if axis == "defence" else [str(value)]
        if any((kind, part) in self.broken for part in parts):
            return False
        if axis == "defence":
            made = self._built("grid", lambda: named_defence(str(value), defences), number, axis, value)
            defences |= {} if made is None else {str(value): made}
        # A file has no splits: it would be trained and tested on the same texts.
        elif axis in known and value not in known[axis] and not (axis == "data" and Path(str(value)).is_dir()):
            hint = " Texts of your own are a directory with a file per split." if Path(str(value)).is_file() else ""
            hint = hint or nearest(str(value), known[axis])
            self._wrong(f"Unknown {axis} {value!r}.{hint}", "grid", number, axis, value)
        if len(self.problems) == before:
            one = {**dict.fromkeys(_NEEDED, "any"), "knowledge": "full_data", axis: value}
            self._built("grid", lambda: build(Cell, one), number, axis, value)
        return len(self.problems) == before

    def _is_possible(self, cell: Cell, number: int, known: Mapping[str, Any], defences: Mapping[str, Defence]) -> bool:
        before, defence = len(self.problems), defences[cell.defence]
        for axis, what in refusals(cell, known["attack"], known["strategy"][cell.strategy], defence):
            self._wrong(what, "grid", number, axis, getattr(cell, axis))
        psim = defence.psim
        if psim is not None:
            asked = [axis for axis in _OF_PSIM if getattr(cell, axis) is not None]
            axis = asked[0] if asked else "defence"
            self._built("grid", lambda: psim.with_axes(cell), number, axis, getattr(cell, axis))
        return len(self.problems) == before

    def _table(self, content: Mapping[str, Any], kind: str, make: Any) -> dict[str, Any]:
        found = {}
        tables = content.get(kind, {})
        if not isinstance(tables, dict) or not all(isinstance(fields, dict) for fields in tables.values()):
            self._wrong(f"{kind} is defined in tables of its own: [{kind}.NAME].", key=kind)
            return {}
        for name, fields in tables.items():
            if name == "none" and kind in ("attack", "defence"):
                self._wrong(f"A cell without any {kind} calls it none; give yours another name.", f"{kind}.none")
                continue
            made = self._built(f"{kind}.{name}", partial(make, name, fields), fields=fields)
            if made is None:
                self.broken.add((kind, name))
            else:
                found[name] = made
        return found

    def _built(
        self, table: str, make: Any, number: int = 0, key: str = "", value: object = None,
        fields: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        try:
            return make()
        except PlanError as error:
            for problem in error.args:
                self._wrong(problem, table, number, key or key_of(problem, fields or {}), value)
        except (ForetasteError, KeyError, TypeError, AttributeError) as error:
            message = f"{error} is missing." if isinstance(error, KeyError) else str(error)
            self._wrong(message, table, number, key, value)
        return None

    def _wrong(self, message: str, table: str = "", number: int = 0, key: str = "", value: object = None) -> None:
        self.problems.append((line_of(self.text, table, number, key, value), message))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _location_of(name: str, fields: Mapping[str, Any]) -> str:
    if fields.keys() != {"location"} or not isinstance(fields["location"], str):
        raise PlanError(f'A model has a location, as in [model.{name}] location = "some/checkpoint".')
    location = fields["location"]
    refuse_absent("location", location)
    return str(Path(location).expanduser()) if location.startswith("~") else location
