"""What is to be done, from the options of a command: specs with some of their fields changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

from foretaste.errors import PlanError
from foretaste.guard.psim import PSIM_STRATEGIES, Psim
from foretaste.guard.second_opinion import SecondOpinion
from foretaste.spec import Registry, build, values_of
from foretaste.victim.strategy import STRATEGIES

__all__ = ["RECIPES", "guard_plan", "psim_plan"]

OPINION_OPTIONS = ("frr", "scoring", "batch_size", "learning_rate", "precision")

RECIPES = Registry("recipe", {"default": Psim, "paper": Psim.paper})


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
    settings = values_of(start) | dict(given)
    if "frr" in given:
        settings["threshold"] = None
    if "threshold" in given and "view" not in given:
        settings["view"] = None  # the recipe's may be one that is calibrated only; Psim chooses
    kind = STRATEGIES[start.strategy.name if strategy is None else strategy]
    known = PSIM_STRATEGIES[kind.name] if recipe == "default" else start.strategy
    own: dict[str, Any] = asdict(cast(Any, known)) if type(known) is kind else {}
    settings["strategy"] = build(kind, own | dict(strategy_fields))
    return build(Psim, settings)
