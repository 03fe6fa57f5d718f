"""Frozen settings that refuse unknown fields, and registries that suggest the nearest name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields as fields_of
from itertools import islice
from typing import Any, TypeVar, cast, dataclass_transform

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from foretaste.errors import ForetasteError, PlanError

__all__ = ["Registry", "all_of", "build", "nearest", "noted", "spec", "values_of"]

T = TypeVar("T")
MOST = 20  # unknown fields that are named: a stranger's file may have any number


@dataclass_transform(frozen_default=True, kw_only_default=True)
def spec(cls: type[T]) -> type[T]:
    """Make a class a frozen, keyword-only, validated record of settings that forbids unknown fields."""
    config = ConfigDict(extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)
    decorate: Callable[[type[T]], Any] = dataclass(frozen=True, kw_only=True, config=config)
    kind: type[T] = decorate(cls)
    return kind


def build(kind: type[T], fields: Mapping[str, Any]) -> T:
    """Construct a spec from plain fields (TOML, JSON, command line).

    Raises:
        PlanError: unknown fields (of each the nearest one is named) and values of the wrong kind, all of them.
    """
    types = {field.name: str(field.type) for field in fields_of(cast(Any, kind))}
    known = types.keys()
    unknown = islice((name for name in fields if name not in known), MOST)
    problems = [f"{kind.__name__} has no field {name!r}.{nearest(name, known)}" for name in unknown]
    problems += [
        f"{kind.__name__}.{name}: {str(value).lower()} is neither a number nor a word."
        for name, value in fields.items()
        if isinstance(value, bool) and name in types and not re.search("bool|Any|Mapping", types[name])
    ]
    try:
        made = TypeAdapter(kind).validate_python({name: value for name, value in fields.items() if name in known})
    except ValidationError as error:
        for each in error.errors():
            if each["type"] == "missing" and problems:
                continue  # what is misspelt is not missing, too
            where = ".".join(str(part) for part in each["loc"])
            problems.append(f"{kind.__name__}.{where}: {each['msg']} (got {each['input']!r}).")
    except PlanError as error:
        problems += error.args
    if problems:
        raise PlanError(*problems)
    return made


def all_of(*makers: Callable[[], Any]) -> list[Any]:
    """Return what each makes.

    Raises:
        PlanError: what any of them finds wrong, all of it.
    """
    made, problems = list[Any](), list[str]()
    for make in makers:
        with noted(problems, PlanError):
            made.append(make())
    if problems:
        raise PlanError(*problems)
    return made


@contextmanager
def noted(problems: list[str], kind: type[ForetasteError] = ForetasteError) -> Iterator[None]:
    """Add what is wrong in here to `problems`, and go on after it."""
    try:
        yield
    except kind as error:
        problems += map(str, error.args)


def values_of(spec: Any) -> dict[str, Any]:
    """Return a spec's fields by name, those that are specs as they are."""
    return {field.name: getattr(spec, field.name) for field in fields_of(spec)}


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'? Known: a, b, c.` for an error message.

    >>> nearest("sst", ["sst2", "imdb"])
    " Did you mean 'sst2'? Known: imdb, sst2."
    """
    choices = sorted(known)
    close = difflib.get_close_matches(name.lower(), choices, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Known: {', '.join(choices)}."


class Registry(Mapping[str, T]):
    """Names to entries of one kind (`what`); looking up an unknown name suggests the nearest.

    >>> words = Registry("fruit", {"apple": 1})
    >>> words["appel"]
    Traceback (most recent call last):
    foretaste.errors.PlanError: Unknown fruit 'appel'. Did you mean 'apple'? Known: apple.
    """

    def __init__(self, what: str, entries: Mapping[str, T] | None = None) -> None:
        self._what = what
        self._entries: dict[str, T] = dict(entries or {})

    def add(self, name: str) -> Callable[[T], T]:
        """Decorate an entry to register it under `name`; a name is given once."""

        def keep(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self._what} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return keep

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise PlanError(f"Unknown {self._what} {name!r}.{nearest(name, self._entries)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
