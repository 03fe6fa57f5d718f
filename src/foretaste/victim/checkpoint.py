"""Open a stranger's checkpoint safely: safetensors only, no remote code, every tensor finite, a fingerprint.

A checkpoint may be an adapter, too: a victim that Foretaste wrote, or a plain PEFT directory with LoRA in it. It is
folded into the weights it stands on, and both together are the suspect.
"""

from __future__ import annotations

from pathlib import Path

from foretaste.errors import ModelError, PlanError
from foretaste.victim.adapter import check_foreign_adapter, named_base, refuse_soft_prompt
from foretaste.victim.base import TEXT_LENGTH, Base, Loaded, load_on
from foretaste.victim.directory import check_directory
from foretaste.victim.manifest import BaseReference, instruction_of, read_suspect
from foretaste.victim.source import EMBEDDED, find_directory
from foretaste.victim.weights import (
    default_device,
    fingerprint,
    load_tokenizer,
    load_weights,
    refuse_non_finite,
    text_room,
)

__all__ = [
    "TEXT_LENGTH",
    "Base",
    "Loaded",
    "default_device",
    "find_base",
    "fingerprint",
    "load_on",
    "load_tokenizer",
    "load_weights",
    "open_base",
    "refuse_non_finite",
    "text_room",
]

# More than anybody stacks, and an end to adapters that name each other.
_DEEPEST = 8


def open_base(location: str | Path, *, base: str | Path | None = None, may_download: bool = True) -> Base:
    """Find a checkpoint: `minilm`, a local directory, or a Hugging Face hub id (from the cache alone, if so wished).

    `minilm-l3` is the first three of MiniLM's six layers: half the price, a few points of accuracy less.

    A directory with a LoRA adapter stands for the adapter folded into its base; `base` says where that is, otherwise
    the adapter's own word is taken, as long as nothing has to be downloaded for it.

    Raises:
        ModelError: not found (`not_found`), weights only as pickles (`pickle`), code of its own (`remote_code`),
            an altered MiniLM or victim (`digest_mismatch`), soft prompts (`soft_prompt`), other kinds of adapter or
            unusual settings (`unsafe_adapter`), a guard (`wrong_kind`), and what `read_manifest` refuses.
        PlanError: `base` was given for a model that is no adapter.
    """
    return _open(str(location), None if base is None else str(base), may_download, 0)


def find_base(reference: BaseReference, path: Path, override: Base | str | Path | None = None, depth: int = 0) -> Base:
    """Find what the artefact in `path` stands on, in `override` or where the manifest says; nothing is downloaded.

    Raises:
        ModelError: as `open_base`.
    """
    if isinstance(override, Base):
        return override
    under = None if reference.adapter_base is None else reference.adapter_base.seen_from(path)
    if override is not None:
        is_adapter = (Path(override) / "adapter_config.json").exists()
        return _open(str(override), under if is_adapter else None, True, depth)
    return _open(reference.seen_from(path), under, False, depth)


def _open(location: str, base: str | None, may_download: bool, depth: int) -> Base:
    path = find_directory(location, may_download=may_download)
    manifest = read_suspect(path)
    instruction = None if manifest is None else instruction_of(path, manifest)
    is_adapter = (path / "adapter_config.json").exists() and not (path / "config.json").exists()
    if not is_adapter and base is not None:
        raise PlanError(f"{location} is a model, not an adapter; leave out the base {base}.")
    if depth == _DEEPEST:
        raise ModelError(f"{location}: more than {_DEEPEST} adapters stand on each other.", code="too_deep")
    if not is_adapter:
        check_directory(path, location)
        return Base(location, path, EMBEDDED.get(location), manifest=manifest, instruction=instruction)
    if manifest is not None:
        refuse_soft_prompt(path, location)
    else:
        check_foreign_adapter(path, location)
    if base is not None:
        under = _open(base, None, may_download, depth + 1).asked(instruction)
        return Base(location, path, None, under, manifest, base, instruction)
    if manifest is not None:
        under = find_base(manifest.base, path, depth=depth + 1).asked(instruction)
        return Base(location, path, None, under, manifest, instruction=instruction)
    named = named_base(path)
    try:
        return Base(location, path, None, _open(named, None, False, depth + 1).asked(None))
    except ModelError as error:
        if error.code != "not_found":
            raise
        raise ModelError(
            f"{location} is an adapter on {named!r}, which is neither a directory here nor in the hub's local cache; "
            "name its base (--base).",
            code="not_found",
        ) from error
