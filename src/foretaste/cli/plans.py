"""What is to be done, from the options of a command: specs with some of their fields changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foretaste.errors import PlanError
from foretaste.guard.psim import Psim
from foretaste.guard.recipes import psim_plan
from foretaste.guard.second_opinion import SecondOpinion
from foretaste.spec import build

__all__ = ["guard_plan"]

OPINION_OPTIONS = ("frr", "scoring", "batch_size", "learning_rate", "precision")


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
