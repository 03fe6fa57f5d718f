"""A directory of artefacts, each at the digest of everything that made it, that any number of runners share.

STORE/<kind>/<key>/      a model or a guard         STORE/<kind>/<key>.npz    answers and scores
STORE/cells/<key>.json   one record per cell        STORE/partial/<key>/      a training that was interrupted
STORE/locks/<key>        held by who makes it; the system lets go when that process ends, however it ends
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretaste.errors import DataError, PlanError, WriteError

__all__ = ["Store", "digest_of", "load_arrays", "save_arrays", "sources_of"]

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Store:
    """The directory at `root`; it is made when something is first written."""

    root: Path

    def place(self, kind: str, key: str) -> Path:
        """Where the directory of an artefact lies or will lie."""
        return self.root / kind / key

    def cell(self, key: str) -> Path:
        """Where a cell's record lies or will lie."""
        return self.root / "cells" / f"{key}.json"

    def partial(self, key: str) -> Path:
        """Where an unfinished training keeps its progress."""
        return self.root / "partial" / key

    def begun(self) -> set[str]:
        """Return the keys of trainings that keep their progress here."""
        return {path.name.partition(".")[0] for path in (self.root / "partial").glob("[!.]*")}

    def forget_partial(self, key: str) -> None:
        """Delete the progress of a training that is finished, in all its stages."""
        for path in self.partial(key).parent.glob(f"{key}*"):
            shutil.rmtree(path, ignore_errors=True)

    def sweep(self, kind: str, key: str) -> None:
        """Clear away what a writer left that was killed: to be called by who holds the lock of the key.

        What was moved aside to be replaced comes back if nothing took its place.
        """
        for left in [*(self.root / "partial").glob(f".{key}*"), *(self.root / kind).glob(f".{key}.*")]:
            name, is_old, _ = left.name[1:].rpartition(".old.")
            if is_old and (left / "gone").is_dir() and not left.with_name(name).exists():
                os.rename(left / "gone", left.with_name(name))
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)

    @contextmanager
    def locked(self, key: str) -> Iterator[bool]:
        """Yield True to one process at a time, False to all others, without waiting.

        Raises:
            WriteError: the directory cannot be written.
            PlanError: its file system has no locks.
        """
        place = self.root / "locks" / key
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise WriteError(f"Cannot write {place}: {error.strerror or error}.") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_mine = True
            except BlockingIOError:
                is_mine = False
            except OSError as error:
                raise PlanError(
                    f"Cannot lock {place}: {error.strerror or error}. The store's file system gives no locks (flock); "
                    "have it mounted with them, or take another one."
                ) from error
            yield is_mine
        finally:
            os.close(descriptor)


def digest_of(value: Any) -> str:
    """Return 24 hex digits that stand for a value: specs by class and fields, whatever has a `key` by that.

    A class whose fields have come to mean something else says so by a `version`, 2 and up.

    >>> digest_of({"a": 1, "b": (2.0, None)}) == digest_of({"b": [2.0, None], "a": 1})
    True
    """
    text = json.dumps(_plain(value), sort_keys=True, allow_nan=False, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def save_arrays(path: Path, arrays: Arrays) -> None:
    """Write named arrays as one file, all or nothing.

    Raises:
        WriteError: the file cannot be written.
    """
    beside = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
            beside = stream.name
            np.savez(stream, allow_pickle=False, **dict(arrays))
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except OSError as error:
        if beside:
            Path(beside).unlink(missing_ok=True)
        raise WriteError(f"Cannot write {path}: {error.strerror or error}.") from error


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read what `save_arrays` wrote.

    Raises:
        DataError: the file is not there or was not written by it.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except Exception as error:  # what zipfile and numpy make of a damaged file is no closed list
        raise DataError(f"Cannot read {path}: {error}. If it is there, it is damaged: delete it.") from error


def sources_of(arrays: Arrays) -> dict[str, str]:
    """Return the digests of the weights that arrays were read from, by step; none where they do not say it.

    Raises:
        DataError: they say something else.
    """
    try:
        found = json.loads(str(arrays["sources"])) if "sources" in arrays else {}
        return {str(step): str(digest) for step, digest in found.items()}
    except (ValueError, RecursionError, AttributeError) as error:
        raise DataError(f"Arrays that do not say what they were read from ({error!r}): delete them.") from None


def _plain(value: Any) -> Any:
    key = getattr(value, "key", None)
    if isinstance(key, str):
        return {"key": key}
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        own = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
        version = getattr(value, "version", 1)
        return {"is": type(value).__name__, **own} | ({} if version == 1 else {"version": version})
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, Path):
        return str(value)
    return value
