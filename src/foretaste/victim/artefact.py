"""One directory format for poisoned bases, victims and guards: checked in full before any tensor is used.

A directory holds what transformers or PEFT wrote (safetensors), `record.json`, and the manifest `foretaste.json`:
strategy, label names, fingerprint of the base, SHA-256 of every other file and of the manifest itself, canary texts
with their logits. It finds accidents and swaps, not a forger who seals it anew; signatures are a layer above.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from foretaste.errors import ModelError, PlanError
from foretaste.files import sha256_file, write_json
from foretaste.record import Record
from foretaste.victim.adapter import load_adapter
from foretaste.victim.checkpoint import (
    Base,
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
from foretaste.victim.manifest import MANIFEST, BaseReference, Canary, Manifest, read_manifest, seal, strategy_of
from foretaste.victim.module import TextModule
from foretaste.victim.strategy import Full, Strategy

__all__ = ["load_classifier", "load_victim", "save_classifier"]

CANARY_TOLERANCE = 1e-3
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


def save_classifier(
    classifier: Classifier,
    path: Path,
    kind: Literal["base", "victim", "guard"],
    record: Record,
    guard: dict[str, Any] | None = None,
    attach: Callable[[Path], None] = lambda beside: None,
) -> Manifest:
    """Write a classifier as a directory, all or nothing; `attach` writes further files into the one it is given.

    An adapter becomes a plain PEFT directory (`peft.PeftModel.from_pretrained` loads it, head included); a fully
    trained model becomes a plain transformers directory with its tokenizer.

    Raises:
        PlanError: the directory is somebody else's, the disk refuses, or the classifier is a copy in int8.
        ModelError: the trained weights are not finite (code `non_finite`).
    """
    if classifier.is_int8:
        raise PlanError("This classifier is a copy in int8, for scoring; save the one it was made from.")
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
        attach(beside)
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
            files={p.relative_to(beside).as_posix(): sha256_file(p) for p in sorted(beside.rglob("*")) if p.is_file()},
            canaries=canaries,
            versions={
                name: importlib.metadata.version(name) for name in ("foretaste", "peft", "torch", "transformers")
            },
            guard=guard,
        )
        sealed = seal(manifest.model_dump())
        write_json(beside / MANIFEST, sealed)
    return Manifest.model_validate(sealed)


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
    strategy = strategy_of(path, manifest)
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


def _load_model(path: Path, manifest: Manifest, strategy: Strategy, base: str | Path | None) -> tuple[Any, Path]:
    """Return the model with its trained weights, and the directory that holds its tokenizer."""
    count = len(manifest.label_names)
    if strategy.name == Full.name:
        model, has_own_head = load_weights(path, str(path), count)
        if not has_own_head:
            raise ModelError(f"{path} has no classification head for {count} classes.", code="missing_head")
        return model, path
    found = _find_base(manifest, path, base)
    model, _ = load_weights(found.path, found.location, count, found.layers)
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


def _find_base(manifest: Manifest, path: Path, override: str | Path | None) -> Base:
    if override is not None:
        return open_base(override)
    reference = manifest.base
    if reference.relative and (path / reference.relative).is_dir():
        return open_base((path / reference.relative).resolve())
    return open_base(reference.location, may_download=False)  # a manifest must not send anybody to the network


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
