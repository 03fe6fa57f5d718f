"""Where in a TOML text something stands; tomllib does not say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

__all__ = ["key_of", "line_of"]

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(#.*)?$")

_COMMENT = re.compile(r"""^((?:[^"'#]|"[^"]*"|'[^']*')*)#.*""")
_FIELD = re.compile(r"\w+(?:\.(\w+)[.:]| has no field '(\w+)')")  # how `build` says which one it is about


@lru_cache(maxsize=1000, typed=True)  # thousands of cells have the same mistake
def line_of(text: str, table: str = "", number: int = 0, key: str = "", value: object = None) -> int:
    """Return the line (from 1) of a key's value, of the key, or of the table's header: the nearest that is found.

    `table` is the dotted name in the header, `number` counts tables of an array (`[[grid]]`) from 0.

    >>> line_of('title = "x"\\n[[grid]]\\nseed = 1\\n[[grid]]\\nseed = [1,\\n  -2]\\n', "grid", 1, "seed", -2)
    6
    >>> line_of('[grid]\\nstrategy = ["lora",  # not loar\\n "loar"]\\n', "grid", key="strategy", value="loar")
    3
    """
    lines, own, seen = text.splitlines(), not table, -1
    start: int | None = None
    for index, line in enumerate(lines):
        header = _HEADER.match(line)
        if header:
            is_named = _plain(header[2]) == table
            seen += is_named and header[1] == "[["
            own = is_named and (header[1] == "[" or seen == number)
            start = index if own else start
            if not table and key == _plain(header[2]).partition(".")[0]:  # a table where a value was looked for
                return index + 1
        elif own and key and re.match(rf"""\s*["']?{re.escape(key)}["']?\s*[=.]""", line):
            return index + 1 + _further(lines[index:], value)
    if start is None and table:  # an inline table: a key of the one above
        above, _, name = table.rpartition(".")
        return line_of(text, above, key=name, value=value)
    return 1 if start is None else start + 1


def key_of(problem: str, fields: Mapping[str, Any]) -> str:
    """Return the key that a message is about: the field's, or that of what holds it; one that it names; the method.

    >>> key_of("Lora.rank: Input should be greater than 0 (got -1).", {"method": "psim", "strategy": {"rank": -1}})
    'strategy'
    """
    match = _FIELD.match(problem)
    field = match[1] or match[2] if match else ""
    for name, value in fields.items():
        if field and (name == field or (isinstance(value, Mapping) and field in value)):
            return name
    for name, value in fields.items():
        if re.search(rf"\b{re.escape(name)}\b", problem) or (isinstance(value, str) and repr(value) in problem):
            return name
    return field or "method"


def _further(lines: list[str], value: object) -> int:
    """Return how many lines below its key a value stands."""
    wanted = re.compile(rf"""(?<![\w.-])["']?{re.escape(str(value))}["']?(?![\w.-])""")
    for index, line in enumerate(lines):
        line = _COMMENT.sub(r"\1", line)
        if value is not None and wanted.search(line.partition("=")[2] if index == 0 else line):
            return index
        if index and ("=" in line or _HEADER.match(line)):
            break
    return 0


def _plain(name: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in name.split("."))
