"""Where in a TOML text something stands; tomllib does not say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

__all__ = ["key_of", "line_of"]

_HEADER = re.compile(r"""^\s*(\[\[?)\s*((?:"[^"]*"|'[^']*'|[^\[\]"'])+?)\s*\]\]?\s*(#.*)?$""")
_KEY = re.compile(r"""^\s*(?:[\w.-]+|"[^"]*"|'[^']*')\s*=""")
_LONG = re.compile(r""""{3}(?:\\.|[^\\])*?"{3}|'{3}.*?'{3}""", re.DOTALL)  # a string of several lines

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
    >>> line_of('[grid]\\ntrigger = ["word:mn",\\n "word:a=b",\\n "word:"]\\n', "grid", key="trigger", value="word:")
    4
    """
    lines = _LONG.sub(lambda match: '""' + "\n" * match[0].count("\n"), text).splitlines()
    own, seen = not table, -1
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
    if start is None and table:  # dotted keys, or an inline table: a key of the one above
        parts = [rf"""["']?{re.escape(part)}["']?""" for part in (*table.split("."), key)]
        for dotted in (parts, parts[:-1]):
            found = (at for at, line in enumerate(lines) if re.match(rf"\s*{'[.]'.join(dotted)}\s*[=.]", line))
            if len(dotted) > 1 and (at := next(found, None)) is not None:
                return at + 1
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
        if index and (_KEY.match(line) or _HEADER.match(line)):
            break
    return 0


def _plain(name: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in name.split("."))
