"""The texts that `foretaste check` was given: as arguments, in a file, or on standard input."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from foretaste.data.load import load_texts
from foretaste.errors import DataError, PlanError

__all__ = ["read_texts"]


def read_texts(arguments: Sequence[str], file: Path | None, text_column: str | None) -> list[str]:
    """Return the texts, from one source only; `-` alone means one text per line of standard input.

    Raises:
        PlanError: no source, or two of them.
        DataError: a file that `load_texts` refuses; standard input that is empty or not UTF-8.
    """
    if (file is None) == (not arguments):
        raise PlanError("Give texts, `-`, or --file FILE, and only one of them.")
    if file is not None:
        return load_texts(file, text_column)
    if text_column is not None:
        raise PlanError("--text-column names a column of --file; without a file leave it out.")
    if "-" not in arguments:
        return list(arguments)
    if len(arguments) > 1:
        raise PlanError("`-` stands for standard input and must be the only text.")
    return _lines_of_standard_input()


def _lines_of_standard_input() -> list[str]:
    content = sys.stdin.buffer.read()
    try:
        whole = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"Standard input, line {line}, is not UTF-8 ({error.reason}).") from error
    # Only "\n" ends a text: str.splitlines would also cut at U+2028 and the like, and shift every later verdict.
    lines = [line.removesuffix("\r") for line in whole.split("\n")]
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError("Standard input is empty; expected one text per line.")
    return lines
