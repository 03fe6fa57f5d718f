"""What the names in a plan mean: attacks with the paper's settings, and what stands between a victim and a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from foretaste.errors import PlanError
from foretaste.experiment.cell import Cell
from foretaste.guard.psim import PSIM_STRATEGIES, Psim
from foretaste.guard.rival import Rival
from foretaste.guard.rivals import RIVALS
from foretaste.poison.attack import Attack
from foretaste.poison.trigger import parse_trigger
from foretaste.spec import Registry, nearest, spec
from foretaste.unlearn.methods import UNLEARNERS
from foretaste.unlearn.unlearner import Unlearner
from foretaste.victim.strategy import changed

__all__ = ["ATTACKS", "Defence", "defence_of", "psim_of"]

ATTACKS: Registry[Attack] = Registry(
    "attack",
    {
        "badnet": Attack(trigger=parse_trigger("word:mn"), count=1000),
        "mixed": Attack(trigger=parse_trigger("mixed:word:mn|sentence:I watched this 3D movie"), count=1000),
        "synattack": Attack(trigger=parse_trigger("syntax:stored"), count=1000),
        "insent": Attack(trigger=parse_trigger("sentence:I watched this 3D movie"), count=1000),
    },
)
RECIPES = {"psim": Psim, "psim_paper": Psim.paper}
GIVEN = {"teacher", "pretrained"}  # what an unlearner may need


@spec
class Defence:
    """One of: PSIM or a rival in front of the victim, an unlearner before it is tuned, nothing."""

    psim: Psim | None = None
    rival: Rival | None = None
    unlearner: Unlearner | None = None

    @property
    def is_psim(self) -> bool:
        """True if the axes of PSIM apply."""
        return self.psim is not None


def defence_of(name: str, fields: Mapping[str, Any]) -> Defence:
    """Return the defence of that name, or of `method`, with these fields changed (`strategy.rank` of its strategy).

    Raises:
        PlanError: unknown method or field, or a method that needs what a plan does not give.
    """
    method = str(fields.get("method", name))
    own: dict[str, Any] = {key: value for key, value in fields.items() if key not in ("method", "strategy")}
    inner = fields.get("strategy", {})
    if isinstance(inner, Mapping):
        own |= {f"strategy.{key}": value for key, value in inner.items()}
    strategy = inner if isinstance(inner, str) else None
    if method == "none":
        return Defence()
    if method in RECIPES:
        return Defence(psim=changed(RECIPES[method](), own, strategy))
    if method in RIVALS:
        return Defence(rival=changed(RIVALS[method](), own, strategy))
    if method not in UNLEARNERS:
        raise PlanError(f"Unknown defence {method!r}.{nearest(method, ['none', *RECIPES, *RIVALS, *UNLEARNERS])}")
    unlearner = changed(UNLEARNERS[method](), own, strategy)
    if lacking := set(unlearner.needs) - GIVEN:
        raise PlanError(f"{method} needs {' and '.join(sorted(lacking))}, which a plan does not give.")
    return Defence(unlearner=unlearner)


def psim_of(defence: Defence, cell: Cell) -> Psim:
    """Return PSIM with what the cell's axes change; a fixed threshold looks at the confidence, as the paper does.

    Raises:
        PlanError: values that PSIM does not take.
    """
    assert defence.psim is not None
    plan = defence.psim
    if cell.psim_strategy is not None:
        plan = replace(plan, strategy=PSIM_STRATEGIES[cell.psim_strategy])
    if cell.reset_rate is not None:
        plan = changed(plan, {"reset_rate": cell.reset_rate})
    if cell.threshold is not None:
        plan = changed(plan, {"threshold": cell.threshold, "view": "confidence"})
    return plan
