"""Guards on disk: the artefact format of `victim.artefact` plus how the threshold was found."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from foretaste.errors import GuardError
from foretaste.evaluate.threshold import Calibration
from foretaste.guard.psim import PsimGuard
from foretaste.record import Record
from foretaste.victim.artefact import load_classifier, save_classifier

__all__ = ["load_guard", "save_guard"]


class _CalibrationFields(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    threshold: float
    n: int
    allowed_above: int
    frr: float
    confidence: float


class _GuardFields(BaseModel):
    """The `guard` entry of the manifest: which method, its bar, and how the bar was found (null: given)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    method: str
    threshold: float
    calibration: _CalibrationFields | None


def save_guard(guard: PsimGuard, path: Path, record: Record) -> None:
    """Write a guard as a directory, all or nothing; its adapter is a plain PEFT directory.

    Raises:
        PlanError: the directory is somebody else's, or the disk refuses.
    """
    entry: dict[str, Any] = {
        "method": "psim",
        "threshold": guard.threshold,
        "calibration": None if guard.calibration is None else asdict(guard.calibration),
    }
    save_classifier(guard.classifier, Path(path), "guard", record, guard=entry)


def load_guard(path: Path | str, base: str | Path | None = None) -> PsimGuard:
    """Load a guard after every check of the artefact format; `base` overrides where its base is looked for.

    Raises:
        ModelError: the artefact was refused (see `victim.artefact`).
        GuardError: its threshold entry is missing, unknown or contradicts itself (code `bad_threshold`).
    """
    classifier, manifest = load_classifier(Path(path), "guard", base)
    try:
        fields = _GuardFields.model_validate(manifest.guard)
    except ValidationError as error:
        raise GuardError(f"{path}: guard entry: {error.errors()[0]['msg']}.", code="bad_threshold") from None
    calibration = None if fields.calibration is None else Calibration(**fields.calibration.model_dump())
    if fields.method != "psim" or (calibration is not None and calibration.threshold != fields.threshold):
        raise GuardError(f"{path}: unknown method or contradicting thresholds.", code="bad_threshold")
    return PsimGuard(classifier, fields.threshold, calibration)
