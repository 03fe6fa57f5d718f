"""PSIM as it is asked for by name: a recipe, with some of its settings replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, cast

from foretaste.errors import PlanError
from foretaste.guard.psim import PSIM_STRATEGIES, Psim
from foretaste.spec import Registry, all_of, build, values_of
from foretaste.victim.strategy import STRATEGIES, Strategy

__all__ = ["RECIPES", "psim_plan"]

RECIPES = Registry("recipe", {"default": Psim, "paper": Psim.paper})


def psim_plan(recipe: str, strategy: str | None, strategy_fields: Mapping[str, Any], given: Mapping[str, Any]) -> Psim:
    """Start from a recipe and replace what was given; a strategy's other fields are the recipe's.

    The default recipe knows them for every strategy, the printed one for its own; else they are the strategy's own.

    Raises:
        PlanError: unknown recipe, strategy or field, both `frr` and `threshold` given: all of it.
    """

    def one_bar() -> None:
        if "frr" in given and "threshold" in given:
            raise PlanError("Give frr (a promise, calibrated) or threshold (a fixed bar), not both.")

    start = RECIPES[recipe]()
    settings = values_of(start) | dict(given)
    if "frr" in given:
        settings["threshold"] = None
    if "threshold" in given and "view" not in given:
        settings["view"] = None  # the recipe's may be one that is calibrated only; Psim chooses

    def own() -> Strategy:
        kind = STRATEGIES[start.strategy.name if strategy is None else strategy]
        known = PSIM_STRATEGIES[kind.name] if recipe == "default" else start.strategy
        fields: dict[str, Any] = asdict(cast(Any, known)) if type(known) is kind else {}
        return build(kind, fields | dict(strategy_fields))

    made, *_ = all_of(own, partial(build, Psim, settings), one_bar)
    return build(Psim, settings | {"strategy": made})
