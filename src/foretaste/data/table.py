"""Columns of a JSONL, CSV, TSV or Parquet file, with the place of each row for error messages."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from foretaste.errors import DataError
from foretaste.spec import nearest

__all__ = ["SUFFIXES", "Table", "as_path", "read_lines", "read_table"]

SUFFIXES = (".parquet", ".jsonl", ".csv", ".tsv")
_WHOLE_NUMBER = re.compile(r"[+-]?\d{1,18}(\.0*)?", re.ASCII)


@dataclass(frozen=True)
class Table:
    """Columns of equal length; `lines` holds the line on which each row starts, or is None for Parquet."""

    path: Path
    columns: Mapping[str, Sequence[object]]
    lines: Sequence[int] | None

    def place(self, row: int) -> str:
        """Say where a row is: `path:line` in a text file, `path:row 0` and on in Parquet."""
        return f"{self.path}:row {row}" if self.lines is None else f"{self.path}:{self.lines[row]}"

    def texts(self, column: str) -> list[str]:
        """Return a column of texts.

        Raises:
            DataError: a value is missing, blank, not a string or not valid Unicode.
        """
        return [_check_text(value, self.place(row), column) for row, value in enumerate(self.columns[column])]

    def numbers_or_names(self, column: str) -> list[int | str | None]:
        """Return each value as a whole number if it is one (`3`, `3.0`, `"3"`), else as a name, None if missing.

        Raises:
            DataError: a value is neither, as `true` or `0.5`.
        """
        return [_number_or_name(v, self.place(row), column) for row, v in enumerate(self.columns[column])]


def as_path(source: str | Path) -> Path:
    """Return the path that a user wrote, `~` resolved.

    Raises:
        DataError: it cannot be a path: blank, too long, an unknown home directory.
    """
    try:
        if not str(source).strip():
            raise DataError("The path is blank; name a file or a data set.")
        path = Path(source).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:
        raise DataError(f"{str(source)[:80]!r} cannot be a path: {error.args[-1]}.") from error
    return path


def read_table(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """Read the named columns of a JSONL, CSV, TSV or Parquet file.

    CSV and TSV are quoted as RFC 4180 says: a quotation mark inside quotes is doubled.

    Raises:
        DataError: no such file, unknown extension, damaged or empty file, a required column that is not there.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path} has the extension {suffix!r}.{nearest(suffix, SUFFIXES)}")
    _check_file(path)
    if suffix == ".parquet":
        return _read_parquet(path, required, optional)
    rows = _jsonl_rows(path) if suffix == ".jsonl" else _delimited_rows(path, "," if suffix == ".csv" else "\t")
    lines, records = [], []
    for line, record in rows:
        lines.append(line)
        records.append(record)
    if not records:
        raise DataError(f"{path} holds no rows.")
    known = dict.fromkeys(key for record in records for key in record)
    wanted = _choose_columns(path, list(known), required, optional)
    return Table(path, {name: [record.get(name) for record in records] for name in wanted}, lines)


def read_lines(path: Path) -> list[str]:
    """Return the texts of a plain text file, one per line; blank lines may stand at the end only.

    Raises:
        DataError: no such file, not UTF-8, nothing in it, a blank line between texts.
    """
    _check_file(path)
    lines = [line.removesuffix("\r") for line in _decode(path).split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise DataError(f"{path} is empty; expected one text per line.")
    return [_check_text(line, f"{path}:{number}", "text") for number, line in enumerate(lines, start=1)]


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path} is a directory; expected a file.")
    if not path.is_file():
        raise DataError(f"There is no file {path}.")


def _choose_columns(path: Path, known: Sequence[str], required: Sequence[str], optional: Sequence[str]) -> list[str]:
    for name in required:
        if name not in known:
            raise DataError(f"{path} has no column {name!r}.{nearest(name, known)}")
    return [*required, *(name for name in optional if name in known)]


def _read_parquet(path: Path, required: Sequence[str], optional: Sequence[str]) -> Table:
    import pyarrow  # loaded here: `foretaste --help` need not wait for it
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            wanted = _choose_columns(path, file.schema_arrow.names, required, optional)
            table = file.read(columns=wanted)
            columns = {name: table.column(name).to_pylist() for name in wanted}
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    if not table.num_rows:
        raise DataError(f"{path} holds no rows.")
    return Table(path, columns, None)


def _decode(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line} is not UTF-8 ({error.reason}); save the file as UTF-8.") from error


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    # Only "\n" ends a line: JSON strings may hold U+2028, at which str.splitlines would cut.
    for line, content in enumerate(_decode(path).split("\n"), start=1):
        if not content.strip():
            continue
        try:
            record = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{line} is not JSON: {error}.") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}:{line} is a JSON {type(record).__name__}; expected an object per line.")
        yield line, record


def _delimited_rows(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, object]]]:
    reader = csv.reader(io.StringIO(_decode(path), newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for fields in reader:
            start, line = line, reader.line_num + 1
            if not fields:
                continue
            if header is None:
                header = [name.strip() for name in fields]
                if len(set(header)) < len(header):
                    raise DataError(f"{path}:{start} names a column twice: {', '.join(header)}.")
                continue
            if len(fields) != len(header):
                raise DataError(
                    f"{path}:{start} has {len(fields)} fields, but the header has {len(header)}; "
                    "quote a text that contains the separator."
                )
            yield start, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{path}:{line} cannot be read: {error}. Close and double the quotation marks, or use JSONL."
        ) from error


def _check_text(value: object, place: str, column: str) -> str:
    if not isinstance(value, str):
        got = "is missing" if value is None else f"is {value!r} ({type(value).__name__})"
        raise DataError(f"{place}: {column!r} {got}; expected a text.")
    if not value.strip():
        raise DataError(f"{place}: {column!r} is blank; remove the row or fill it in.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: {column!r} is not valid Unicode ({error.reason}).") from error
    return value


def _number_or_name(value: object, place: str, column: str) -> int | str | None:
    if isinstance(value, float) and math.isnan(value):
        return None  # how pandas writes a missing number
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, str):
        name = value.strip()
        return int(name.split(".")[0]) if _WHOLE_NUMBER.fullmatch(name) else name or None
    raise DataError(f"{place}: {column!r} is {value!r}; expected a whole number or a name.")
