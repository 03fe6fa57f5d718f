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
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel

from foretaste.errors import ModelError, PlanError
from foretaste.files import sha256_file, write_json
from foretaste.record import Record
from foretaste.victim.canary import check_saved, make_canaries
from foretaste.victim.checkpoint import (
    Base,
    default_device,
    find_base,
    load_on,
    refuse_non_finite,
)
from foretaste.victim.classifier import Classifier
from foretaste.victim.directory import new_tensor_directory
from foretaste.victim.manifest import (
    MANIFEST,
    BaseReference,
    Manifest,
    Place,
    instruction_of,
    read_manifest,
    seal,
    strategy_of,
)
from foretaste.victim.prompted import read_by
from foretaste.victim.source import EMBEDDED
from foretaste.victim.strategy import Full, Strategy

__all__ = ["load_classifier", "load_victim", "save_classifier"]


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
    canaries = make_canaries(classifier)
    with new_tensor_directory(Path(path)) as beside:
        # PEFT would look at the base's place, or even on the hub, for whether words were added.
        options: dict[str, Any] = {} if classifier.strategy.name == Full.name else {"save_embedding_layers": False}
        classifier.module.model.save_pretrained(beside, safe_serialization=True, **options)
        _tidy_adapter(beside, classifier.base_location)
        if classifier.strategy.name == Full.name:
            classifier.plain_tokenizer.save_pretrained(beside)
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
                adapter_base=_place(classifier.adapter_base, Path(path)),
            ),
            files={p.relative_to(beside).as_posix(): sha256_file(p) for p in sorted(beside.rglob("*")) if p.is_file()},
            canaries=canaries,
            versions={
                name: importlib.metadata.version(name) for name in ("foretaste", "peft", "torch", "transformers")
            },
            guard=guard,
            instruction=None if classifier.instruction is None else asdict(classifier.instruction),
        )
        sealed = seal(manifest.model_dump())
        write_json(beside / MANIFEST, sealed)
    return Manifest.model_validate(sealed)


def load_classifier(
    path: Path, kind: Literal["base", "victim", "guard"], base: Base | str | Path | None = None
) -> tuple[Classifier, Manifest]:
    """Load a checked directory; `base` overrides where the underlying weights are looked for.

    Raises:
        ModelError: everything `read_manifest` and `open_base` refuse, and wrong_kind, foreign_base, missing_head,
            label_mismatch, missing_weights, bad_instruction, non_finite, tokenizer, bad_length, canary_mismatch.
    """
    path = Path(path)
    manifest = read_manifest(path)
    is_used_as_is = manifest.instruction is not None and (manifest.kind, kind) == ("base", "victim")
    if manifest.kind != kind and not is_used_as_is:
        raise ModelError(f"{path} is a {manifest.kind}, expected a {kind}.", code="wrong_kind")
    strategy = strategy_of(path, manifest)
    with torch.random.fork_rng(devices=[]):  # a head and an adapter are drawn before they are overwritten
        model, home = _load_model(path, manifest, strategy, base)
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    module, tokenizer = read_by(instruction_of(path, manifest), model, plain, home, str(home))
    classifier = Classifier(
        module=module.to(default_device()),
        tokenizer=tokenizer,
        label_names=tuple(manifest.label_names),
        max_length=manifest.max_length,
        strategy=strategy,
        base_location=manifest.base.location,
        base_fingerprint=manifest.base.fingerprint,
        adapter_base=None if manifest.base.adapter_base is None else manifest.base.adapter_base.location,
    )
    check_saved(classifier.merge(), manifest, path)
    return classifier, manifest


def load_victim(path: str | Path, base: Base | str | Path | None = None) -> Classifier:
    """Load a fine-tuned victim, or a language model that is used as it is.

    `base` overrides where its underlying weights are looked for.

    Raises:
        ModelError: the directory was refused (see `load_classifier`).
    """
    return load_classifier(Path(path), "victim", base)[0]


def _load_model(path: Path, manifest: Manifest, strategy: Strategy, base: Base | str | Path | None) -> tuple[Any, Path]:
    """Return the model with its trained weights, and the directory that holds its tokenizer."""
    count = len(manifest.label_names)
    instruction = instruction_of(path, manifest)
    if strategy.name == Full.name:
        model, has_own_head = Base(str(path), path, instruction=instruction).weights(count)
        if not has_own_head:
            raise ModelError(f"{path} has no classification head for {count} classes.", code="missing_head")
        return model, path
    found = find_base(manifest.base, path, base).asked(instruction)
    return load_on(found, path, count, manifest)[0], found.plain_path


def _fields(strategy: Any) -> dict[str, Any]:
    return {name: getattr(strategy, name) for name in type(strategy).__dataclass_fields__}


def _place(location: str | None, path: Path) -> Place | None:
    return None if location is None else Place(location=location, relative=_relative(location, path))


def _relative(location: str, path: Path) -> str | None:
    return os.path.relpath(location, path) if location not in EMBEDDED and Path(location).is_dir() else None


def _tidy_adapter(path: Path, location: str) -> None:
    config_path = path / "adapter_config.json"
    if not config_path.exists():
        return
    (path / "README.md").unlink(missing_ok=True)  # an empty form that names a directory of this machine
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = location
    if config["modules_to_save"] is not None:
        config["modules_to_save"] = sorted(set(config["modules_to_save"]))  # PEFT lists the head twice
    write_json(config_path, config)
