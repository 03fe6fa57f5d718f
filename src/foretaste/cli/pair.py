"""A victim and its guard, loaded as they belong together."""

from __future__ import annotations

from pathlib import Path

from foretaste.guard.artefact import load_guard
from foretaste.guard.opinion import OpinionGuard
from foretaste.guard.psim_guard import PsimGuard
from foretaste.victim.artefact import load_victim
from foretaste.victim.checkpoint import open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.manifest import read_manifest

__all__ = ["load_pair"]


def load_pair(
    victim: Path, guard: Path | None, model: str | None = None
) -> tuple[Classifier, PsimGuard | OpinionGuard | None]:
    """Load a victim and, if there is one, its guard; `model` is where the victim's base is now, if it was moved.

    A guard that was trained from this very victim is told where the victim is, wherever that was before.

    Raises:
        ModelError, GuardError: one of them was refused.
    """
    found = load_victim(victim, model)
    if guard is None:
        return found, None
    reference = read_manifest(guard).base
    if reference.fingerprint == found.base_fingerprint or reference.fingerprint != found.own_fingerprint:
        return found, load_guard(guard, model)
    is_adapter = found.strategy.name != "full"
    return found, load_guard(guard, open_base(victim, base=model if is_adapter else None))
