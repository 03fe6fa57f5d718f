"""What is to be done, from the options of a command: specs with some of their fields changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar, cast

from foretaste.errors import PlanError
from foretaste.guard.psim import PSIM_STRATEGIES, Psim
from foretaste.guard.second_opinion import SecondOpinion
from foretaste.spec import Registry, build
from foretaste.victim.strategy import STRATEGIES

__all__ = ["RECIPES", "changed", "fields_of", "guard_plan", "psim_plan"]

OPINION_OPTIONS = ("frr", "scoring", "batch_size", "learning_rate", "precision")
T = TypeVar("T")

RECIPES = Registry("recipe", {"default": Psim, "paper": Psim.paper})


def changed(start: T, fields: Mapping[str, Any], strategy: str | None = None) -> T:
    """Return a spec with these fields, and with this strategy; a strategy's own fields are written `strategy.rank`.

    Raises:
        PlanError: unknown field or strategy, or no strategy to choose.
    """
    own = {name: value for name, value in fields.items() if not name.startswith("strategy.")}
    inner = {name.removeprefix("strategy."): value for name, value in fields.items() if name.startswith("strategy.")}
    known = fields_of(start)
    if strategy is not None or inner:
        usual: Any = known.get("strategy")
        if usual is None:
            raise PlanError(f"{type(start).__name__} has no strategy to choose: it trains all weights.")
        kind: Any = STRATEGIES[strategy or usual.name]
        own["strategy"] = build(kind, (fields_of(usual) if type(usual) is kind else {}) | inner)
    return build(type(start), known | own)


def fields_of(spec: Any) -> dict[str, Any]:
    """A spec's fields, those that are specs as they are."""
    return {field.name: getattr(spec, field.name) for field in fields(spec)}


def guard_plan(
    recipe: str, strategy: str | None, strategy_fields: Mapping[str, Any], given: Mapping[str, Any]
) -> Psim | SecondOpinion:
    """Return the plan for PSIM, or for the view `opinion` that of a second opinion without it.

    Raises:
        PlanError: unknown recipe, strategy or field, or options that contradict each other.
    """
    if given.get("view") != "opinion":
        return psim_plan(recipe, strategy, strategy_fields, given)
    theirs = {name: value for name, value in given.items() if name in OPINION_OPTIONS}
    others = given.keys() - theirs.keys() - {"view"}
    if others or strategy is not None or strategy_fields or recipe != "default":
        raise PlanError(f"--view opinion has no PSIM; of its options it takes {', '.join(OPINION_OPTIONS)} only.")
    return build(SecondOpinion, theirs)


def psim_plan(recipe: str, strategy: str | None, strategy_fields: Mapping[str, Any], given: Mapping[str, Any]) -> Psim:
    """Start from a recipe and replace what was given; a strategy's other fields are the recipe's.

    The default recipe knows them for every strategy, the printed one for its own; else they are the strategy's own.

    Raises:
        PlanError: unknown recipe, strategy or field, or both `frr` and `threshold` given.
    """
    if "frr" in given and "threshold" in given:
        raise PlanError("Give --frr (a promise, calibrated) or --threshold (a fixed bar), not both.")
    start = RECIPES[recipe]()
    settings = fields_of(start) | dict(given)
    if "frr" in given:
        settings["threshold"] = None
    if "threshold" in given and "view" not in given:
        settings["view"] = None  # the recipe's may be one that is calibrated only; Psim chooses
    kind = STRATEGIES[start.strategy.name if strategy is None else strategy]
    known = PSIM_STRATEGIES[kind.name] if recipe == "default" else start.strategy
    own: dict[str, Any] = asdict(cast(Any, known)) if type(known) is kind else {}
    settings["strategy"] = build(kind, own | dict(strategy_fields))
    return build(Psim, settings)
