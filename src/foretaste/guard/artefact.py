"""Guards on disk: the artefact format of `victim.artefact` plus how the threshold was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from foretaste.errors import DataError, GuardError
from foretaste.evaluate.threshold import Calibration, allowed_above
from foretaste.guard.looks import Looks, View
from foretaste.guard.psim import PsimGuard, Scoring
from foretaste.record import Record
from foretaste.victim.artefact import load_classifier, save_classifier
from foretaste.victim.checkpoint import Base
from foretaste.victim.classifier import Classifier

__all__ = ["Bar", "load_guard", "read_bar", "save_guard"]

METHOD = "psim"
LOOKS = "looks.safetensors"


class _CalibrationFields(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
    threshold: float
    n: int = Field(ge=1)
    allowed_above: int = Field(ge=0)
    frr: float = Field(gt=0, lt=1)
    confidence: float = Field(gt=0, lt=1)


class _GuardFields(BaseModel):
    """The `guard` entry of the manifest: which method, its bar, and how the bar was found (null: given)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
    method: str
    scoring: Scoring
    view: View
    threshold: float = Field(gt=0)
    calibration: _CalibrationFields | None


def save_guard(guard: PsimGuard, path: Path, record: Record) -> None:
    """Write a guard as a directory, all or nothing; its adapter is a plain PEFT directory.

    Raises:
        PlanError: the directory is somebody else's, or the disk refuses.
        GuardError: its threshold would be refused when it is loaded (see `read_bar`).
    """
    entry: dict[str, Any] = {
        "method": METHOD,
        "scoring": guard.scoring,
        "view": guard.view,
        "threshold": guard.threshold,
        "calibration": None if guard.calibration is None else asdict(guard.calibration),
    }
    read_bar(entry, path)  # what could not be loaded is not saved
    attachments = {} if guard.looks is None else {LOOKS: guard.looks.to_arrays()}
    save_classifier(guard.classifier, Path(path), "guard", record, guard=entry, attachments=attachments)


def load_guard(path: Path | str, base: Base | str | Path | None = None) -> PsimGuard:
    """Load a guard after every check of the artefact format; `base` overrides where its base, or victim, is looked for.

    Raises:
        ModelError: the artefact was refused (see `victim.artefact`).
        GuardError: its threshold was refused (see `read_bar`), or the arrays of its view are absent (`missing_looks`)
            or not what they should be (`bad_looks`).
    """
    classifier, manifest = load_classifier(Path(path), "guard", base)
    bar = read_bar(manifest.guard, path)
    looks = None if bar.view == "confidence" else _load_looks(Path(path) / LOOKS, classifier)
    return PsimGuard(classifier, bar.threshold, bar.calibration, bar.scoring, bar.view, looks)


class Bar(NamedTuple):
    """A guard's threshold, how it was calibrated (None: given), and the arithmetic and view of the scores it is for."""

    threshold: float
    calibration: Calibration | None
    scoring: Scoring
    view: View


def read_bar(entry: Mapping[str, Any] | None, path: Path | str) -> Bar:
    """Read the `guard` entry of the manifest in `path`.

    Raises:
        GuardError: an entry that is missing, of the wrong kind or contradicts itself (code `bad_threshold`), with a
            key (`unknown_key`) or a method (`unknown_method`) of another Foretaste.
    """
    try:
        fields = _GuardFields.model_validate({} if entry is None else entry)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["guard", *map(str, first["loc"])])
        code = "unknown_key" if first["type"] == "extra_forbidden" else "bad_threshold"
        raise GuardError(f"{path}: {where}: {first['msg']}.", code=code) from None
    if fields.method != METHOD:
        raise GuardError(f"{path}: guard.method: expected {METHOD!r}, got {fields.method!r}.", code="unknown_method")
    if fields.view == "confidence" and fields.threshold > 1:
        raise GuardError(f"{path}: guard.threshold: {fields.threshold} is no probability.", code="bad_threshold")
    if fields.calibration is None and fields.view != "confidence":
        raise GuardError(f"{path}: guard.view: {fields.view} needs a calibrated threshold.", code="bad_threshold")
    if fields.calibration is None:
        return Bar(fields.threshold, None, fields.scoring, fields.view)
    found = Calibration(**fields.calibration.model_dump())
    if found.threshold != fields.threshold or found.allowed_above != allowed_above(
        found.n, found.frr, found.confidence
    ):
        raise GuardError(f"{path}: guard.calibration contradicts itself or the threshold.", code="bad_threshold")
    return Bar(fields.threshold, found, fields.scoring, fields.view)


def _load_looks(path: Path, classifier: Classifier) -> Looks:
    try:
        return Looks.from_arrays(load_file(path), classifier.module.classifier.config.hidden_size)
    except FileNotFoundError:
        raise GuardError(f"{path} is missing: this guard's view needs it.", code="missing_looks") from None
    except (DataError, SafetensorError, KeyError, TypeError, ValueError) as error:  # types that numpy lacks, too
        raise GuardError(f"{path}: {error}", code="bad_looks") from error
