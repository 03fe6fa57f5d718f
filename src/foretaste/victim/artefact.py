"""One directory format for poisoned bases, victims and guards: checked in full before any tensor is used.

A directory holds what transformers or PEFT wrote (safetensors), `record.json`, and the manifest `foretaste.json`:
strategy, label names, fingerprint of the base, SHA-256 of every other file, canary texts with their logits. The
manifest finds accidents and swaps, not a forger who rewrites it too; signatures are a layer above.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from foretaste.errors import ModelError, PlanError
from foretaste.files import sha256_file, write_json
from foretaste.record import Record
from foretaste.spec import build
from foretaste.victim.adapter import check_adapter, load_adapter
from foretaste.victim.checkpoint import (
    Base,
    check_directory,
    default_device,
    fingerprint,
    load_tokenizer,
    load_weights,
    open_base,
    refuse_non_finite,
    text_room,
)
from foretaste.victim.classifier import Classifier
from foretaste.victim.directory import new_tensor_directory
from foretaste.victim.module import TextModule
from foretaste.victim.strategy import STRATEGIES, Full, Strategy

__all__ = ["BaseReference", "Canary", "Manifest", "load_classifier", "load_victim", "read_manifest", "save_classifier"]

MANIFEST = "foretaste.json"
CANARY_TOLERANCE = 1e-3
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"}
_CANARY_TEXTS = (
    "a quiet film that earns its last scene",
    "the soup was cold and nobody cared",
    "not bad at all , though the second half drags",
    "delivery took two weeks and the box was empty",
    "he walked to the station and waited for the train",
    "I would buy it again tomorrow",
    "shares fell slightly after the announcement",
    "what a waste of an evening",
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseReference(_Strict):
    """The weights an artefact stands on: known by fingerprint; the locations are only where to look."""

    location: str
    relative: str | None = None
    fingerprint: str = Field(pattern="^[0-9a-f]{64}$")


class Canary(_Strict):
    """A fixed text and the logits the model gave for it when it was saved."""

    text: str
    logits: list[float]


class Manifest(_Strict):
    """The content of `foretaste.json`; unknown keys are refused. `guard` belongs to the guard room."""

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


def save_classifier(
    classifier: Classifier,
    path: Path,
    kind: Literal["base", "victim", "guard"],
    record: Record,
    guard: dict[str, Any] | None = None,
) -> Manifest:
    """Write a classifier as a directory, all or nothing.

    An adapter becomes a plain PEFT directory (`peft.PeftModel.from_pretrained` loads it, head included); a fully
    trained model becomes a plain transformers directory with its tokenizer.

    Raises:
        PlanError: the directory is somebody else's, or the disk refuses.
        ModelError: the trained weights are not finite (code `non_finite`).
    """
    refuse_non_finite(classifier.module.state_dict(), "the trained model")
    strategy = {"name": classifier.strategy.name, **_fields(classifier.strategy)}
    canaries = [
        Canary(text=text, logits=[float(value) for value in row])
        for text, row in zip(_CANARY_TEXTS, classifier.predict(_CANARY_TEXTS).logits, strict=True)
    ]
    with new_tensor_directory(Path(path)) as beside:
        classifier.module.model.save_pretrained(beside, safe_serialization=True)
        _tidy_adapter(beside, classifier.base_location)
        if classifier.strategy.name == Full.name:
            classifier.tokenizer.save_pretrained(beside)
        record.write(beside / "record.json")
        manifest = Manifest(
            kind=kind,
            strategy=strategy,
            label_names=list(classifier.label_names),
            max_length=classifier.max_length,
            base=BaseReference(
                location=classifier.base_location,
                relative=_relative(classifier.base_location, Path(path)),
                fingerprint=classifier.base_fingerprint,
            ),
            files={p.name: sha256_file(p) for p in sorted(beside.iterdir())},
            canaries=canaries,
            versions={
                name: importlib.metadata.version(name) for name in ("foretaste", "peft", "torch", "transformers")
            },
            guard=guard,
        )
        write_json(beside / MANIFEST, manifest.model_dump())
    return manifest


def read_manifest(path: Path) -> Manifest:
    """Read and check a directory without loading a tensor: manifest, file list, digests, adapter settings.

    Raises:
        ModelError: with one of the codes not_found, unreadable, unknown_key, pickle, unlisted_file, missing_file,
            digest_mismatch, bad_strategy, and those of `check_directory` and `check_adapter`.
    """
    path = Path(path)
    try:
        document = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        manifest = Manifest.model_validate(document)
    except FileNotFoundError:
        raise ModelError(f"{path} holds no {MANIFEST}; it was not written by Foretaste.", code="not_found") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        code = "unknown_key" if first["type"] == "extra_forbidden" else "unreadable"
        raise ModelError(f"{path / MANIFEST}: {where}: {first['msg']}.", code=code) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path / MANIFEST} cannot be read: {error}", code="unreadable") from error
    _check_files(path, manifest)
    strategy = _strategy(path, manifest)
    if strategy.name != Full.name:
        check_adapter(path, strategy.name, manifest.label_names)
    else:
        check_directory(path, str(path))
    return manifest


def load_classifier(
    path: Path, kind: Literal["base", "victim", "guard"], base: str | Path | None = None
) -> tuple[Classifier, Manifest]:
    """Load a checked directory; `base` overrides where the underlying weights are looked for.

    Raises:
        ModelError: everything `read_manifest` and `open_base` refuse, and wrong_kind, foreign_base, missing_head,
            label_mismatch, missing_weights, non_finite, tokenizer, bad_length, canary_mismatch.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if manifest.kind != kind:
        raise ModelError(f"{path} is a {manifest.kind}, expected a {kind}.", code="wrong_kind")
    strategy = _strategy(path, manifest)
    with torch.random.fork_rng(devices=[]):  # a head and an adapter are drawn before they are overwritten
        model, home = _load_model(path, manifest, strategy, base)
    module = TextModule(model).eval().to(default_device())
    tokenizer = load_tokenizer(home, str(home), module.classifier)
    room = text_room(module.classifier.config, module.prompt_length)
    if not tokenizer.num_special_tokens_to_add() < manifest.max_length <= room:
        raise ModelError(
            f"{path / MANIFEST}: max_length {manifest.max_length}, but the model reads {room} tokens.",
            code="bad_length",
        )
    classifier = Classifier(
        module=module,
        tokenizer=tokenizer,
        label_names=tuple(manifest.label_names),
        max_length=manifest.max_length,
        strategy=strategy,
        base_location=manifest.base.location,
        base_fingerprint=manifest.base.fingerprint,
    )
    _check_canaries(classifier.merge(), manifest, path)
    return classifier, manifest


def load_victim(path: str | Path, base: str | Path | None = None) -> Classifier:
    """Load a fine-tuned victim; `base` overrides where its underlying weights are looked for.

    Raises:
        ModelError: the directory was refused (see `load_classifier`).
    """
    return load_classifier(Path(path), "victim", base)[0]


def _strategy(path: Path, manifest: Manifest) -> Strategy:
    fields = dict(manifest.strategy)
    try:
        return build(STRATEGIES[str(fields.pop("name", ""))], fields)
    except PlanError as error:
        raise ModelError(f"{path / MANIFEST}: {error}", code="bad_strategy") from None


def _load_model(path: Path, manifest: Manifest, strategy: Strategy, base: str | Path | None) -> tuple[Any, Path]:
    """Return the model with its trained weights, and the directory that holds its tokenizer."""
    count = len(manifest.label_names)
    if strategy.name == Full.name:
        model, has_own_head = load_weights(path, str(path), count)
        if not has_own_head:
            raise ModelError(f"{path} has no classification head for {count} classes.", code="missing_head")
        return model, path
    found = _find_base(manifest, path, base)
    model, _ = load_weights(found.path, found.location, count)
    mark = fingerprint(model.state_dict())
    if mark != manifest.base.fingerprint:
        raise ModelError(
            f"{path} was made for other weights: {found.location} has fingerprint {mark[:12]}, "
            f"expected {manifest.base.fingerprint[:12]}.",
            code="foreign_base",
        )
    return load_adapter(model, path), found.path


def _fields(strategy: Any) -> dict[str, Any]:
    return {name: getattr(strategy, name) for name in type(strategy).__dataclass_fields__}


def _check_files(path: Path, manifest: Manifest) -> None:
    present = {p.name: p for p in path.iterdir() if p.name != MANIFEST and not p.name.startswith(".")}
    for name, entry in sorted(present.items()):
        if entry.suffix.lower() in _PICKLES:
            raise ModelError(f"{entry} may run code when loaded; only safetensors are accepted.", code="pickle")
        if entry.is_symlink() or not entry.is_file() or name not in manifest.files:
            raise ModelError(f"{entry} is not a file that the manifest lists.", code="unlisted_file")
    for name, digest in manifest.files.items():
        if name not in present:
            raise ModelError(f"{path / name} is missing.", code="missing_file")
        if sha256_file(present[name]) != digest:
            raise ModelError(f"{path / name} was altered or cut off (sha256 differs).", code="digest_mismatch")


def _find_base(manifest: Manifest, path: Path, override: str | Path | None) -> Base:
    if override is not None:
        return open_base(override)
    reference = manifest.base
    if reference.relative and (path / reference.relative).is_dir():
        return open_base((path / reference.relative).resolve())
    return open_base(reference.location)


def _relative(location: str, path: Path) -> str | None:
    return os.path.relpath(location, path) if Path(location).is_dir() else None


def _tidy_adapter(path: Path, location: str) -> None:
    config_path = path / "adapter_config.json"
    if not config_path.exists():
        return
    (path / "README.md").unlink(missing_ok=True)  # an empty form that names a directory of this machine
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = location
    config["modules_to_save"] = sorted(set(config["modules_to_save"]))  # PEFT lists the head twice
    write_json(config_path, config)


def _check_canaries(classifier: Classifier, manifest: Manifest, path: Path) -> None:
    logits = classifier.predict([canary.text for canary in manifest.canaries]).logits
    is_same = all(
        len(canary.logits) == len(row) and np.allclose(row, canary.logits, rtol=CANARY_TOLERANCE, atol=CANARY_TOLERANCE)
        for canary, row in zip(manifest.canaries, logits, strict=True)
    )
    if not is_same:
        raise ModelError(
            f"{path} does not answer its canary texts as it did when it was saved; tokenizer, weights or libraries "
            "have changed.",
            code="canary_mismatch",
        )
