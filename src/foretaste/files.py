"""Nothing half written under a final name: write beside, flush, rename."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foretaste.errors import PlanError, WriteError

__all__ = ["new_directory", "refuse_foreign_directory", "sha256_file", "write_json", "write_text"]


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text so that `path` holds either its old content or all of the new.

    Raises:
        PlanError: the file cannot be written (no permission, disk full), with the system's reason.
    """
    path = Path(path)
    beside = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except OSError as error:
        if beside:
            Path(beside).unlink(missing_ok=True)
        raise WriteError(f"Cannot write {path}: {error.strerror or error}.") from error


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document (UTF-8, sorted keys, no NaN) the way `write_text` does."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


@contextmanager
def new_directory(path: Path, kind: str = "") -> Iterator[Path]:
    """Yield an empty directory beside `path` that becomes `path` when the block ends without an error.

    An existing `path` is replaced only if it is empty or was written by Foretaste (it holds a
    `foretaste.json` or `record.json`), of this `kind` if one is given, so that a mistyped `-o` never deletes
    somebody's work.

    Raises:
        PlanError: `path` exists and is not ours, or the disk refuses (full, read-only, no permission).
    """
    path = Path(path)
    refuse_foreign_directory(path, kind)
    beside = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.")
        os.chmod(beside, 0o755)
        yield Path(beside)
        _replace_directory(Path(beside), path)
    except OSError as error:
        raise WriteError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        if beside:
            shutil.rmtree(beside, ignore_errors=True)


def refuse_foreign_directory(path: Path, kind: str = "") -> None:
    """Raise PlanError now, before hours of work, if `path` could not be written at the end or holds another `kind`."""
    try:
        if path.exists() and not path.is_dir():
            raise PlanError(f"{path} is a file; give the name of a directory.")
        above = next(parent for parent in path.absolute().parents if parent.exists())
        if not above.is_dir():
            raise WriteError(f"Cannot write {path}: {above} is a file.")
        if not os.access(above, os.W_OK | os.X_OK):
            raise WriteError(f"Cannot write {path}: Permission denied in {above}.")
        if not path.exists():
            return
        is_ours = any((path / name).is_file() for name in ("foretaste.json", "record.json"))
        if not is_ours and any(path.iterdir()):
            raise PlanError(f"{path} is not empty and was not written by Foretaste; choose another directory.")
    except OSError as error:
        raise WriteError(f"Cannot write {path}: {error.strerror or error}.") from error
    there = _kind_of(path) if kind else ""
    if there not in ("", kind):
        raise PlanError(f"{path} holds a {there}, which a {kind} would replace; delete it or choose another directory.")


def _kind_of(path: Path) -> str:
    """What was written there: a base, a victim, a site, a record if nothing else; nothing if that cannot be told."""
    try:
        return str(json.loads((path / "foretaste.json").read_text(encoding="utf-8"))["kind"])
    except FileNotFoundError:
        return "record" if (path / "record.json").is_file() else ""
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return ""


def _replace_directory(source: Path, target: Path) -> None:
    if target.exists():
        old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
        os.rename(target, old / "gone")
        os.rename(source, target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(source, target)


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes, read in blocks."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
