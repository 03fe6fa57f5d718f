"""Guards on disk: the artefact format of `victim.artefact` plus how the threshold was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from foretaste.errors import DataError, GuardError
from foretaste.evaluate.threshold import Calibration, allowed_above
from foretaste.guard.looks import Looks, View
from foretaste.guard.opinion import Opinion, OpinionGuard, Trusted
from foretaste.guard.psim_guard import PsimGuard
from foretaste.guard.transplant import Transplant
from foretaste.record import Record
from foretaste.victim.artefact import load_classifier, load_victim, save_classifier
from foretaste.victim.checkpoint import Base
from foretaste.victim.classifier import Classifier, Scoring

__all__ = ["Bar", "load_guard", "load_psim", "read_bar", "save_guard"]

PSIM, SECOND_OPINION = "psim", "second_opinion"
LOOKS = "looks.safetensors"
OPINION = "opinion.safetensors"
TRANSPLANT = "transplant.safetensors"


class _CalibrationFields(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
    threshold: float
    n: int = Field(ge=1)
    allowed_above: int = Field(ge=0)
    frr: float = Field(gt=0, lt=1)
    confidence: float = Field(gt=0, lt=1)


class _TrustedFields(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
    directory: str = Field(pattern="^trusted-[0-9]+$")
    temperature: float = Field(gt=0)
    accuracy: float = Field(ge=0, le=1)


class _OpinionFields(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
    victim: str = Field(pattern="^[0-9a-f]{64}$")
    trusted: list[_TrustedFields] = Field(min_length=1)


class _TransplantFields(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
    victim: str = Field(pattern="^[0-9a-f]{64}$")
    gate: float = Field(ge=-1)
    hosts: list[list[str]] = Field(min_length=2)


class _GuardFields(BaseModel):
    """The `guard` entry of the manifest: which method, its bar, and how the bar was found (null: given)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
    method: str
    scoring: Scoring
    view: View
    threshold: float = Field(gt=0)
    calibration: _CalibrationFields | None
    opinion: _OpinionFields | None = None
    transplant: _TransplantFields | None = None


def save_guard(guard: PsimGuard | OpinionGuard, path: Path, record: Record) -> None:
    """Write a guard as a directory, all or nothing; its adapter is a plain PEFT directory.

    Trusted models lie in `trusted-0`, `trusted-1` and so on, each a complete artefact; a guard without PSIM has the
    first of them in its own place.

    Raises:
        PlanError: the directory is somebody else's, or the disk refuses.
        GuardError: its threshold would be refused when it is loaded (see `read_bar`).
    """
    psim = guard if isinstance(guard, PsimGuard) else None
    opinion = guard.opinion
    members = () if opinion is None else opinion.members
    transplant = None if psim is None else psim.transplant
    entry: dict[str, Any] = {
        "method": SECOND_OPINION if psim is None else PSIM,
        "scoring": guard.scoring,
        "view": "both" if psim is None else psim.view,
        "threshold": guard.threshold,
        "calibration": None if guard.calibration is None else asdict(guard.calibration),
        "opinion": None
        if opinion is None
        else {
            "victim": opinion.victim,
            "trusted": [
                {"directory": f"trusted-{number}", "temperature": member.temperature, "accuracy": member.accuracy}
                for number, member in enumerate(members)
            ],
        },
        "transplant": None
        if transplant is None
        else {"victim": transplant.victim, "gate": transplant.gate, "hosts": [list(own) for own in transplant.hosts]},
    }
    read_bar(entry, path)  # what could not be loaded is not saved

    def attach(beside: Path) -> None:
        if psim is not None and psim.looks is not None:
            save_file(psim.looks.to_arrays(), beside / LOOKS)
        if opinion is not None:
            save_file({"clean": opinion.clean}, beside / OPINION)
        if transplant is not None:
            save_file({"clean": transplant.clean, "first": transplant.first}, beside / TRANSPLANT)
        for number, member in enumerate(members):
            if psim is not None or number:
                save_classifier(member.classifier, beside / f"trusted-{number}", "victim", record)

    root = members[0].classifier if psim is None else psim.classifier
    save_classifier(root, Path(path), "guard", record, guard=entry, attach=attach)


def load_guard(path: Path | str, base: Base | str | Path | None = None) -> PsimGuard | OpinionGuard:
    """Load a guard after every check of the artefact format; `base` overrides where its base, or victim, is looked for.

    Raises:
        ModelError: the artefact was refused (see `victim.artefact`).
        GuardError: its threshold was refused (see `read_bar`), or arrays it needs are absent (`missing_looks`) or not
            what they should be (`bad_looks`).
    """
    path = Path(path)
    classifier, manifest = load_classifier(path, "guard", base)
    bar = read_bar(manifest.guard, path)
    is_psim = bar.method == PSIM
    opinion = None if bar.opinion is None else _load_opinion(path, bar, None if is_psim else classifier)
    if not is_psim:
        assert opinion is not None  # read_bar saw to it
        assert bar.calibration is not None
        return OpinionGuard(opinion, bar.threshold, bar.calibration)
    looks = None if bar.view == "confidence" else _load_looks(path / LOOKS, classifier)
    transplant = None if bar.transplant is None else _load_transplant(path, bar.transplant, len(classifier.label_names))
    return PsimGuard(
        classifier,
        bar.threshold,
        bar.calibration,
        bar.scoring,
        bar.view,
        looks,
        opinion=opinion,
        transplant=transplant,
    )


def load_psim(path: Path | str, base: Base | str | Path | None = None) -> PsimGuard:
    """Load a guard that must be PSIM, with or without a second opinion.

    Raises:
        GuardError: a second opinion alone (code `unknown_method`), and all that `load_guard` refuses.
    """
    guard = load_guard(path, base)
    if not isinstance(guard, PsimGuard):
        raise GuardError(f"{path} is a second opinion without PSIM; PSIM is needed here.", code="unknown_method")
    return guard


class Bar(NamedTuple):
    """A guard's threshold, how it was calibrated (None: given), and what the scores are that it is for."""

    threshold: float
    calibration: Calibration | None
    scoring: Scoring
    view: View
    opinion: _OpinionFields | None = None
    transplant: _TransplantFields | None = None
    method: str = PSIM


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
    if fields.method not in (PSIM, SECOND_OPINION):
        raise GuardError(
            f"{path}: guard.method: expected {PSIM} or {SECOND_OPINION}, got {fields.method!r}.", code="unknown_method"
        )
    if fields.opinion is None and fields.method == SECOND_OPINION:
        raise GuardError(f"{path}: guard.opinion is missing: the method is nothing without it.", code="bad_threshold")
    asks_victim = fields.opinion is not None or fields.transplant is not None
    if asks_victim and fields.view != "both":
        raise GuardError(
            f"{path}: guard.view: {fields.view} does not combine with what looks at the victim.", code="bad_threshold"
        )
    if fields.transplant is not None and fields.method != PSIM:
        raise GuardError(f"{path}: guard.transplant: only PSIM has transplants.", code="bad_threshold")
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
    return Bar(fields.threshold, found, fields.scoring, fields.view, fields.opinion, fields.transplant, fields.method)


def _load_opinion(path: Path, bar: Bar, first: Classifier | None) -> Opinion:
    """Load the trusted models; `first`, if given, is the one in the guard's own place."""
    assert bar.opinion is not None
    members = []
    for number, fields in enumerate(bar.opinion.trusted):
        model = first if first is not None and number == 0 else load_victim(path / fields.directory)
        members.append(Trusted(model, fields.temperature, fields.accuracy))
    return Opinion(tuple(members), _load_scores(path / OPINION, clean=1)["clean"], bar.opinion.victim, bar.scoring)


def _load_transplant(path: Path, fields: _TransplantFields, classes: int) -> Transplant:
    if len(fields.hosts) != classes:
        raise GuardError(
            f"{path}: guard.transplant: hosts of {len(fields.hosts)} classes, not {classes}.", code="bad_looks"
        )
    arrays = _load_scores(path / TRANSPLANT, clean=2, first=1)
    try:
        return Transplant(tuple(map(tuple, fields.hosts)), fields.gate, arrays["first"], arrays["clean"], fields.victim)
    except DataError as error:
        raise GuardError(f"{path}: guard.transplant: {error}", code="bad_looks") from error


def _load_scores(path: Path, **dimensions: int) -> dict[str, NDArray[np.float64]]:
    """Load the scores of clean texts, by name, that others are held against; each with so many dimensions."""
    try:
        arrays = load_file(path)
        for name, count in dimensions.items():
            scores = arrays[name]
            if (
                scores.ndim != count
                or scores.shape[-1] < 2
                or scores.dtype != np.float64
                or not np.isfinite(scores).all()
            ):
                raise DataError(f"{name} is not a finite float64 array of {count} dimensions.")
    except FileNotFoundError:
        raise GuardError(f"{path} is missing: this guard needs it.", code="missing_looks") from None
    except (DataError, SafetensorError, KeyError, TypeError, ValueError) as error:  # types that numpy lacks, too
        raise GuardError(f"{path}: {error}", code="bad_looks") from error
    return arrays


def _load_looks(path: Path, classifier: Classifier) -> Looks:
    try:
        return Looks.from_arrays(load_file(path), classifier.module.classifier.config.hidden_size)
    except FileNotFoundError:
        raise GuardError(f"{path} is missing: this guard's view needs it.", code="missing_looks") from None
    except (DataError, SafetensorError, KeyError, TypeError, ValueError) as error:  # types that numpy lacks, too
        raise GuardError(f"{path}: {error}", code="bad_looks") from error
