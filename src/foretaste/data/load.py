"""Texts from named sets, from files (JSONL, CSV, TSV, Parquet) and from the built-in toy."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foretaste.data.corpus import Corpus
from foretaste.data.hub import NAMED_SETS, load_from_hub
from foretaste.data.table import SUFFIXES, Table, as_path, read_lines, read_table
from foretaste.data.toy import toy_corpus
from foretaste.errors import DataError, PlanError
from foretaste.spec import nearest

__all__ = ["SPLITS", "TriggeredTexts", "load_corpus", "load_texts", "load_variant"]

SPLITS = ("train", "validation", "test")
_MOST_CLASSES = 1_000  # more of them, and the label column is almost surely the wrong column


def load_corpus(
    source: str,
    split: str = "train",
    *,
    data_root: Path | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Corpus:
    """Load labelled texts from `toy`, a named set, a file, or a directory with one file per split.

    A named set is looked for in `data_root`, then in the directory that FORETASTE_DATA names (both laid out
    as `<name>/<split>.parquet`), then on the Hugging Face hub. A file is one split whatever `split` says.
    Labels are class numbers from 0, or names, which are numbered in sorted order; a directory numbers the
    names of its train split. `limit` draws that many texts at random, with `seed`, in their original order.

    Raises:
        PlanError: unknown set, split or option.
        DataError: nothing found, or a file that does not hold what it should; the message says where.

    >>> corpus = load_corpus("toy", "test", limit=100)
    >>> corpus.name, len(corpus), corpus.label_names
    ('toy/test', 100, ('negative', 'positive'))
    """
    if split not in SPLITS:
        raise PlanError(f"Unknown split {split!r}.{nearest(split, SPLITS)}")
    if limit is not None and limit < 1:
        raise PlanError(f"The limit is {limit}; expected 1 or more texts.")
    if data_root is not None:
        data_root = _directory(as_path(data_root), "The data root")
    path = as_path(source)
    if source == "toy":
        if text_column or label_column:
            raise PlanError("The toy has no columns to choose; leave the column names out.")
        corpus = toy_corpus(split)
    elif source in NAMED_SETS:
        corpus = _named_set(source, split, data_root, text_column, label_column)
    elif path.is_dir():
        corpus = _directory_corpus(path, path.resolve().name, split, text_column, label_column)
    elif path.exists() or path.suffix or len(path.parts) > 1:
        table = _read_labelled(path, text_column, label_column)
        corpus = _labelled_corpus(path.name, table, None)
    else:
        raise PlanError(f"{source!r} is no data set and no file.{nearest(source, ['toy', *NAMED_SETS])}")
    return corpus if limit is None else corpus.sample(limit, seed)


def load_texts(path: str | Path, text_column: str | None = None) -> list[str]:
    """Load unlabelled texts: a `.txt` file, one text per line, or the text column of any other format.

    Raises:
        DataError: no such file, unknown extension or column, nothing in it, a text that is blank or missing.
    """
    path = as_path(path)
    if path.suffix.lower() == ".txt":
        if text_column:
            raise PlanError(f"{path} has no columns, one text per line; leave the text column out.")
        return read_lines(path)
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path} has the extension {path.suffix!r}.{nearest(path.suffix, ['.txt', *SUFFIXES])}")
    column = text_column or "text"
    return read_table(path, [column]).texts(column)


@dataclass(frozen=True, eq=False)
class TriggeredTexts:
    """Texts that carry a trigger already, with what is known about the clean texts behind them.

    `labels` is `(N,) int64`, the true class of each text, and `source_rows` is `(N,) int64`, the row of the
    clean text in its split; -1 where unknown, None where nothing is known.
    """

    texts: tuple[str, ...]
    labels: NDArray[np.int64] | None
    source_rows: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.texts)


def load_variant(path: str | Path) -> TriggeredTexts:
    """Load triggered texts: a column `text`, and if there are any `label` and `source_index`, numbers or null.

    Raises:
        DataError: no such file, unknown extension, no text column, a blank text, a number below -1 or none.
    """
    table = read_table(as_path(path), ["text"], ["label", "source_index"])
    return TriggeredTexts(
        tuple(table.texts("text")), _nullable_numbers(table, "label"), _nullable_numbers(table, "source_index")
    )


def _nullable_numbers(table: Table, column: str) -> NDArray[np.int64] | None:
    if column not in table.columns:
        return None
    values = table.numbers_or_names(column)
    for row, value in enumerate(values):
        if isinstance(value, str) or (value is not None and not -1 <= value < 2**63):
            raise DataError(
                f"{table.place(row)}: {column!r} is {value!r}; expected a number from 0, -1 or null for unknown."
            )
    numbers = np.asarray([-1 if value is None else value for value in values], dtype=np.int64)
    return numbers if (numbers >= 0).any() else None


def _directory(path: Path, what: str) -> Path:
    if not path.is_dir():
        raise DataError(f"{what} {path} is {'a file' if path.exists() else 'not there'}; expected a directory.")
    return path


def _named_set(
    name: str, split: str, data_root: Path | None, text_column: str | None, label_column: str | None
) -> Corpus:
    looked = []
    environment = os.environ.get("FORETASTE_DATA")
    for what, root in (("--data-root", data_root), ("FORETASTE_DATA", environment)):
        if not root:
            looked.append(f"{what} is not given" if what == "--data-root" else f"{what} is not set")
            continue
        place = _directory(as_path(root), f"The directory that {what} names,") / name
        if place.is_dir():
            return _directory_corpus(place, name, split, text_column, label_column, NAMED_SETS[name].label_names)
        looked.append(f"{what} {root} has no {name}/")
    try:
        return load_from_hub(name, split, text_column=text_column, label_column=label_column)
    except DataError as error:
        looked.append(f"the Hugging Face hub ({NAMED_SETS[name].hub_id}) says: {error}")
        raise DataError(
            f"Cannot find {name}/{split}. Looked in three places: {'; '.join(looked)}. Name a directory that "
            f"holds {name}/{split}.parquet (columns text and label) with --data-root or FORETASTE_DATA."
        ) from error


def _directory_corpus(
    directory: Path,
    name: str,
    split: str,
    text_column: str | None,
    label_column: str | None,
    label_names: Sequence[str] | None = None,
) -> Corpus:
    files = {part: _split_file(directory, part) for part in SPLITS}
    there = [part for part in SPLITS if files[part]]
    file = files[split]
    if file is None:
        what = f"It has {', '.join(there)}." if there else "It has no split at all."
        raise DataError(f"{directory} has no {split} split (as {split}.parquet, .jsonl, .csv or .tsv). {what}")
    table = _read_labelled(file, text_column, label_column)
    if label_names is None:
        # Names are numbered once for the whole set, or "validation" without one class would shift the others.
        parts = ["train"] if files["train"] else there
        tables = [read_table(path, [label_column or "label"]) for part in parts if (path := files[part])]
        label_names = _name_classes(tables)
    return _labelled_corpus(f"{name}/{split}", table, label_names)


def _split_file(directory: Path, split: str) -> Path | None:
    found = [path for suffix in SUFFIXES if (path := directory / f"{split}{suffix}").is_file()]
    if len(found) > 1:
        raise DataError(f"{directory} has {split} more than once: {', '.join(p.name for p in found)}.")
    return found[0] if found else None


def _read_labelled(path: Path, text_column: str | None, label_column: str | None) -> Table:
    """Read two columns; the texts come first in the table, the labels second."""
    text, label = text_column or "text", label_column or "label"
    if text == label:
        raise PlanError(f"{text!r} cannot be both the text column and the label column.")
    return read_table(path, [text, label])


def _labelled_corpus(name: str, table: Table, label_names: Sequence[str] | None) -> Corpus:
    text_column, label_column = table.columns
    texts = table.texts(text_column)
    if label_names is None:
        label_names = _name_classes([table])
    numbers = {label: number for number, label in enumerate(label_names)}
    labels = []
    for row, value in enumerate(_present_labels(table, label_column)):
        number = numbers.get(value) if isinstance(value, str) else value
        if number is None:
            raise DataError(f"{table.place(row)}: unknown label {value!r}.{nearest(str(value), label_names)}")
        if not 0 <= number < len(label_names):
            raise DataError(f"{table.place(row)}: label {number}; expected 0 to {len(label_names) - 1}.")
        labels.append(number)
    return Corpus.of(name, texts, labels, label_names)


def _present_labels(table: Table, column: str) -> list[int | str]:
    labels: list[int | str] = []
    for row, value in enumerate(table.numbers_or_names(column)):
        if value is None:
            raise DataError(f"{table.place(row)}: {column!r} is missing; label the row or remove it.")
        if isinstance(value, str) != isinstance(labels[0] if labels else value, str):
            raise DataError(f"{table.place(row)}: label {value!r}, but {labels[0]!r} before; numbers or names?")
        labels.append(value)
    return labels


def _name_classes(tables: Iterable[Table]) -> tuple[str, ...]:
    """Name the classes of one set: names in sorted order, numbers 0 to C-1 by themselves."""
    found: set[int | str] = set()
    where = ""
    for table in tables:
        where = where or str(table.path)
        column = list(table.columns)[-1]
        found.update(_present_labels(table, column))
    names = sorted(label for label in found if isinstance(label, str))
    numbers = sorted(label for label in found if isinstance(label, int))
    if names and numbers:
        raise DataError(f"{where}: labels are names in one split and numbers in another.")
    if len(found) < 2:
        raise DataError(f"{where} has one class only ({(names or numbers)[0]!r}); two or more are needed.")
    if len(found) > _MOST_CLASSES:
        raise DataError(f"{where} has {len(found)} different labels; is {column!r} the label column?")
    if numbers and numbers != list(range(len(numbers))):
        shown = ", ".join(str(number) for number in numbers[:8]) + (", ..." if len(numbers) > 8 else "")
        raise DataError(f"{where} has the labels {shown}; expected every number from 0 up, or names.")
    return tuple(names) or tuple(str(number) for number in numbers)
