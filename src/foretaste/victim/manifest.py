"""The manifest of an artefact, `foretaste.json`: read and checked before any tensor is used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from foretaste.errors import ModelError, PlanError
from foretaste.files import sha256_file
from foretaste.spec import build
from foretaste.victim.adapter import check_adapter
from foretaste.victim.directory import check_directory
from foretaste.victim.instruction import Instruction
from foretaste.victim.strategy import STRATEGIES, Full, Strategy

__all__ = [
    "MANIFEST",
    "BaseReference",
    "Canary",
    "Manifest",
    "Place",
    "instruction_of",
    "read_manifest",
    "read_suspect",
    "seal",
    "strategy_of",
]

MANIFEST = "foretaste.json"
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Place(_Strict):
    """Where to look: a name or directory, and if it was a directory the way there from the artefact."""

    location: str
    relative: str | None = None

    def seen_from(self, path: Path) -> str:
        """Return where to look, given that the artefact is in `path` now."""
        if self.relative is not None and (path / self.relative).is_dir():
            return str((path / self.relative).resolve())
        return self.location


class BaseReference(Place):
    """The weights an artefact stands on: known by fingerprint; the locations are only where to look.

    `adapter_base` is where the base of an adapter was, if that was named by hand.
    """

    fingerprint: str = Field(pattern="^[0-9a-f]{64}$")
    adapter_base: Place | None = None


class Canary(_Strict):
    """A fixed text and the logits the model gave for it when it was saved."""

    text: str
    logits: list[float]


class Manifest(_Strict):
    """The content of `foretaste.json`; unknown keys are refused. `guard` belongs to the guard room.

    `instruction` is what a language model is asked with; None for a classifier with a head.
    """

    schema_version: Literal[1] = 1
    kind: Literal["base", "victim", "guard"]
    strategy: dict[str, Any]
    label_names: list[str] = Field(min_length=2)
    max_length: int = Field(gt=0)
    base: BaseReference
    files: dict[str, str]
    canaries: list[Canary] = Field(min_length=1)
    versions: dict[str, str]
    guard: dict[str, Any] | None = None
    instruction: dict[str, Any] | None = None
    digest: str = ""

    @field_validator("label_names")
    @classmethod
    def _distinct(cls, names: list[str]) -> list[str]:
        if len(set(names)) < len(names):
            raise ValueError(f"two classes have the same name: {names}")
        return names


def seal(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest with `digest`, the hex SHA-256 of all its other fields as sorted JSON."""
    body = {key: value for key, value in document.items() if key != "digest"}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return {**body, "digest": digest}


def read_manifest(path: Path) -> Manifest:
    """Read and check a directory without loading a tensor: manifest, file list, digests, adapter settings.

    Raises:
        ModelError: with one of the codes not_found, unreadable, unknown_key, pickle, unlisted_file, missing_file,
            digest_mismatch, bad_strategy, bad_instruction, and those of `check_directory` and `check_adapter`.
    """
    path = Path(path)
    try:
        document = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        manifest = Manifest.model_validate(document)
        is_sealed = document == seal(document)
    except FileNotFoundError:
        raise ModelError(f"{path} holds no {MANIFEST}; it was not written by Foretaste.", code="not_found") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        code = "unknown_key" if first["type"] == "extra_forbidden" else "unreadable"
        raise ModelError(f"{path / MANIFEST}: {where}: {first['msg']}.", code=code) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path / MANIFEST} cannot be read: {error}", code="unreadable") from error
    if not is_sealed:
        raise ModelError(f"{path / MANIFEST} was altered: its digest does not fit.", code="digest_mismatch")
    _check_files(path, manifest)
    strategy, instruction = strategy_of(path, manifest), instruction_of(path, manifest)
    if strategy.name != Full.name:
        check_adapter(path, strategy.name, manifest.label_names, has_head=instruction is None)
    else:
        check_directory(path, str(path))
    return manifest


def read_suspect(path: Path) -> Manifest | None:
    """Check a directory that may be a victim and return its manifest; None for a base of ours, or anybody's model.

    A language model that was tuned with an instruction is a victim as it is, also where it was written as a base.

    Raises:
        ModelError: a guard (`wrong_kind`), and what `read_manifest` refuses.
    """
    if not (path / MANIFEST).is_file():
        return None
    try:
        document = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        is_plain = document["kind"] == "base" and document["strategy"]["name"] == Full.name
        is_plain = is_plain and document.get("instruction") is None
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        is_plain = False  # read_manifest says what is wrong
    if is_plain:
        return None
    manifest = read_manifest(path)
    if manifest.kind == "guard":
        raise ModelError(f"{path} is a guard; name the checkpoint or the victim that is suspect.", code="wrong_kind")
    return manifest


def strategy_of(path: Path, manifest: Manifest) -> Strategy:
    """Return the strategy that the manifest in `path` names; ModelError (`bad_strategy`) if there is none."""
    fields = dict(manifest.strategy)
    try:
        return build(STRATEGIES[str(fields.pop("name", ""))], fields)
    except PlanError as error:
        raise ModelError(f"{path / MANIFEST}: {error}", code="bad_strategy") from None


def instruction_of(path: Path, manifest: Manifest) -> Instruction | None:
    """Return what the model in `path` is asked with, if it is a language model.

    Raises:
        ModelError: an instruction that is none, or has not a word for each class (code `bad_instruction`).
    """
    if manifest.instruction is None:
        return None
    try:
        found = build(Instruction, manifest.instruction)
        found.refuse_others(len(manifest.label_names))
    except PlanError as error:
        raise ModelError(f"{path / MANIFEST}: {error}", code="bad_instruction") from None
    return found


def _check_files(path: Path, manifest: Manifest) -> None:
    found = {p.relative_to(path).as_posix(): p for p in path.rglob("*")}
    present = {name: entry for name, entry in found.items() if name != MANIFEST and not name.startswith(".")}
    homes = {parent.as_posix() for name in manifest.files for parent in PurePosixPath(name).parents}
    for name, entry in sorted(present.items()):
        if entry.suffix.lower() in _PICKLES:
            raise ModelError(f"{entry} may run code when loaded; only safetensors are accepted.", code="pickle")
        is_home = name in homes and entry.is_dir()
        if entry.is_symlink() or not (is_home or (entry.is_file() and name in manifest.files)):
            raise ModelError(f"{entry} is not a file that the manifest lists.", code="unlisted_file")
    for name, digest in manifest.files.items():
        if name not in present:
            raise ModelError(f"{path / name} is missing.", code="missing_file")
        if sha256_file(present[name]) != digest:
            raise ModelError(f"{path / name} was altered or cut off (sha256 differs).", code="digest_mismatch")
