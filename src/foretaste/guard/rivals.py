"""Every rival detector by name: the one list that plans and the contract tests read."""

from __future__ import annotations

from foretaste.guard.badacts import BadActs
from foretaste.guard.dan import Dan
from foretaste.guard.rap import Rap
from foretaste.guard.rival import Rival
from foretaste.guard.strip import Strip
from foretaste.spec import Registry

__all__ = ["RIVALS"]

RIVALS: Registry[type[Rival]] = Registry("rival", {kind.name: kind for kind in (Strip, Rap, Dan, BadActs)})
