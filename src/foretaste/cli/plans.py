"""A PSIM plan from the options of `foretaste guard`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from foretaste.errors import PlanError
from foretaste.guard.psim import Psim
from foretaste.spec import Registry, build
from foretaste.victim.strategy import STRATEGIES

__all__ = ["RECIPES", "psim_plan"]

RECIPES = Registry("recipe", {"default": Psim, "paper": Psim.paper})


def psim_plan(recipe: str, strategy: str | None, strategy_fields: Mapping[str, Any], given: Mapping[str, Any]) -> Psim:
    """Start from a recipe and replace what was given; `--frr` and `--threshold` exclude each other.

    Raises:
        PlanError: unknown recipe, strategy or field, or both bars given.
    """
    if "frr" in given and "threshold" in given:
        raise PlanError("Give --frr (a promise, calibrated) or --threshold (a fixed bar), not both.")
    start = RECIPES[recipe]()
    settings = {field.name: getattr(start, field.name) for field in fields(start)} | dict(given)
    if "frr" in given:
        settings["threshold"] = None
    if strategy is not None:
        settings["strategy"] = build(STRATEGIES[strategy], strategy_fields)
    elif strategy_fields:
        raise PlanError("--set changes a field of the strategy; name the --strategy too.")
    return build(Psim, settings)
