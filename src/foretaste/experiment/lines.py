"""Where in a TOML text something stands; tomllib does not say."""

from __future__ import annotations

import re

__all__ = ["line_of"]

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(#.*)?$")

_COMMENT = re.compile(r"""^((?:[^"'#]|"[^"]*"|'[^']*')*)#.*""")


def line_of(text: str, table: str = "", number: int = 0, key: str = "", value: object = None) -> int:
    """Return the line (from 1) of a key's value, of the key, or of the table's header: the nearest that is found.

    `table` is the dotted name in the header, `number` counts tables of an array (`[[grid]]`) from 0.

    >>> line_of('title = "x"\\n[[grid]]\\nseed = 1\\n[[grid]]\\nseed = [1,\\n  -2]\\n', "grid", 1, "seed", -2)
    6
    >>> line_of('[grid]\\nstrategy = ["lora",  # not loar\\n "loar"]\\n', "grid", key="strategy", value="loar")
    3
    """
    lines, start, own, seen = text.splitlines(), 0, not table, -1
    for index, line in enumerate(lines):
        header = _HEADER.match(line)
        if header:
            is_named = _plain(header[2]) == table
            seen += is_named and header[1] == "[["
            own = is_named and (header[1] == "[" or seen == number)
            start = index if own else start
        elif own and key and re.match(rf"""\s*["']?{re.escape(key)}["']?\s*[=.]""", line):
            return index + 1 + _further(lines[index:], value)
    if start == 0 and "." in table and not any(_plain(each[2]) == table for each in map(_HEADER.match, lines) if each):
        above, _, name = table.rpartition(".")  # an inline table: a key of the one above
        return line_of(text, above, key=name, value=value)
    return start + 1


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
