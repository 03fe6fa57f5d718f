"""One versioned record per run: what was asked, with which seeds, versions and data, what came out, what it cost.

Everything after a run (tables, pages, comparisons) is a reader of records.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import AwareDatetime, JsonValue, TypeAdapter
from pydantic_core import to_jsonable_python

from foretaste.cost import Cost
from foretaste.data.corpus import Corpus
from foretaste.errors import DataError, PlanError
from foretaste.files import write_json
from foretaste.spec import build, spec

__all__ = ["SCHEMA_VERSION", "DataUse", "Kind", "Record", "parse_json"]

SCHEMA_VERSION: Final = 1
Kind = Literal["poison", "tune", "guard", "evaluate", "audit", "unlearn", "cleanse", "demo", "cell"]

_PACKAGES = ("foretaste", "torch", "transformers", "peft", "numpy")
_PROJECT = Path(__file__).parents[2]


@spec
class DataUse:
    """One corpus a run used: its name, the digest of its content, how many rows."""

    name: str
    digest: str
    rows: int

    @classmethod
    def of(cls, corpus: Corpus) -> DataUse:
        """Describe a corpus."""
        return cls(name=corpus.name, digest=corpus.digest, rows=len(corpus))


@spec
class Record:
    """A finished run. `settings` and `outcome` are free JSON objects without NaN or infinity.

    `commit` and `is_dirty` say which source ran, where Foretaste runs from a checkout; else both are None.

    >>> record = Record.now("poison", settings={"count": 5}, seeds={"root": 0}, outcome={"poisoned": 5})
    >>> record.schema_version, record.outcome["poisoned"]
    (1, 5)
    """

    kind: Kind
    created: AwareDatetime
    command: str
    settings: dict[str, JsonValue]
    seeds: dict[str, int]
    versions: dict[str, str | None]
    commit: str | None
    is_dirty: bool | None
    platform: dict[str, str | int | None]
    data: tuple[DataUse, ...]
    outcome: dict[str, JsonValue]
    cost: Cost | None
    schema_version: Literal[1] = SCHEMA_VERSION

    @classmethod
    def now(
        cls,
        kind: Kind,
        *,
        settings: Any,
        seeds: Mapping[str, int],
        outcome: Any,
        data: Iterable[Corpus | DataUse] = (),
        cost: Cost | None = None,
        command: str = "",
    ) -> Record:
        """Make the record of a run that has just ended, with today's versions, commit and platform.

        `settings` and `outcome` may be mappings or specs and may hold specs, paths and NumPy numbers.

        Raises:
            DataError: a number in `settings` or `outcome` is not finite (the place is named).
        """
        commit, is_dirty = _source_state(_PROJECT)
        return cls(
            kind=kind,
            created=datetime.now(UTC).replace(microsecond=0),
            command=command,
            settings=_to_json(settings, "settings"),
            seeds=dict(seeds),
            versions={"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
            commit=commit,
            is_dirty=is_dirty,
            platform={"cpus": os.cpu_count(), "machine": platform.machine(), "system": platform.system()},
            data=tuple(part if isinstance(part, DataUse) else DataUse.of(part) for part in data),
            outcome=_to_json(outcome, "outcome"),
            cost=cost,
        )

    @property
    def rates(self) -> Mapping[str, Any]:
        """The outcome; of a cell or an evaluation with a guard, its rates behind that guard."""
        guarded = self.outcome.get("guarded")
        return {**self.outcome, **guarded} if isinstance(guarded, dict) else self.outcome

    def write(self, path: Path) -> None:
        """Write the record as one JSON file.

        Raises:
            PlanError: the file cannot be written.
        """
        write_json(Path(path), TypeAdapter(Record).dump_python(self, mode="json"))

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a record that `write` wrote.

        Raises:
            DataError: no such file, not a record, or one of another schema version.
        """
        path = Path(path)
        try:
            fields = parse_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
        except ValueError as error:
            raise DataError(f"{path} is not a Foretaste record: {error}.") from error
        if not isinstance(fields, dict) or "schema_version" not in fields:
            raise DataError(f"{path} is not a Foretaste record: it has no schema_version.")
        version = fields["schema_version"]
        if type(version) is not int or version != SCHEMA_VERSION:
            raise DataError(
                f"{path} has record schema version {version!r}; this Foretaste reads version {SCHEMA_VERSION}. "
                "Use the Foretaste that wrote it, or run again."
            )
        try:
            return build(Record, fields)
        except (PlanError, DataError) as error:
            raise DataError(f"{path}: {error}") from None


def parse_json(text: str) -> Any:
    """Parse JSON that can be written again: no NaN, no half characters, no nesting deeper than Python's own.

    Raises:
        ValueError: anything else.
    """
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return found


def _version(package: str) -> str | None:
    """Look the version up in the package's metadata: importing torch only to name it takes seconds."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _source_state(root: Path) -> tuple[str | None, bool | None]:
    """Return commit and dirty flag of the checkout at `root`, or two Nones.

    An installed package lies in site-packages, which may well be inside the user's own repository; only a
    root that is a checkout itself is asked.
    """
    if not (root / ".git").exists() or not (root / "pyproject.toml").exists():
        return None, None
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    changes = _git(root, "status", "--porcelain")
    if commit is None or changes is None:
        return None, None
    return commit, bool(changes)


def _git(root: Path, *arguments: str) -> str | None:
    """Return git's answer, or None: a run of hours must not fail at its end because git is missing or slow."""
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _to_json(value: Any, where: str) -> Any:
    plain = to_jsonable_python(value, fallback=_plain)
    _refuse_not_finite(plain, where)
    return plain


def _plain(value: Any) -> Any:
    """Turn NumPy numbers and arrays into Python ones; refuse the rest."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no place in a record")


def _refuse_not_finite(value: JsonValue, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"{where} is {value}; a record holds finite numbers only (null where there is none).")
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_not_finite(inner, f"{where}.{key}")
    if isinstance(value, list):
        for index, inner in enumerate(value):
            _refuse_not_finite(inner, f"{where}[{index}]")


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not a JSON number")
