"""How a command answers: JSON or text on standard output, everything else on standard error, errors in a line each."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer

from foretaste.errors import ForetasteError, PlanError
from foretaste.tune.launch import is_main_process

__all__ = [
    "answering", "as_line", "assignments", "given", "one_line", "seconds_of", "standing", "warn", "warn_if_guessing",
]  # fmt: skip

# Of the errors that always naming the most frequent class makes, a model that learned its task avoids this share.
LEARNED = 0.25


@contextmanager
def answering(as_json: bool) -> Iterator[Any]:
    """Yield `answer(result, text)`, which prints JSON or text on standard output; turn our errors into lines.

    Of several processes launched together, the main one answers.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

    def answer(result: dict[str, Any], text: str) -> None:
        if is_main_process():
            # ASCII only: what came from a command line or a file name may be no valid Unicode.
            typer.echo(json.dumps(result, allow_nan=False, default=str) if as_json else text)

    try:
        yield answer
    except ForetasteError as error:
        for problem in error.args if isinstance(error, PlanError) else [error]:
            typer.echo(f"error: {one_line(str(problem))}", err=True)
        raise typer.Exit(2) from None
    except BrokenPipeError:
        raise  # whoever reads has enough, which typer knows
    except OSError as error:  # a directory that may not be read, a disk that fails
        what = "" if error.filename is None else f"{error.filename}: "
        typer.echo(f"error: {one_line(f'{what}{error.strerror or error}')}.", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        message = "nothing half done stays; run the same command again (trainings continue where they were saved)"
        typer.echo(f"interrupted: {message}.", err=True)
        raise typer.Exit(130) from None


def warn(message: str) -> None:
    """Print a warning on standard error."""
    if is_main_process():
        typer.echo(f"warning: {one_line(message)}", err=True)


def warn_if_guessing(model: str, accuracy: float, majority: float) -> None:
    """Warn of a model that was to help and hardly knows the task; `majority` is the share of the largest class."""
    if accuracy < majority + LEARNED * (1 - majority):
        warn(
            f"{model} gets {accuracy:.0%} of held-out texts right, where always naming one class gets {majority:.0%}: "
            "it hardly knows the task."
        )


def given(**fields: Any) -> dict[str, Any]:
    """Return the options that were given; None means the default of whatever takes the field."""
    return {name: value for name, value in fields.items() if value is not None}


def as_line(value: Any) -> str:
    """Return a value for a table: text on one line, anything else as JSON."""
    return one_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def one_line(text: str) -> str:
    """Return a message on one line; what a terminal might obey or hide is spelled out.

    >>> one_line("two\\nlines \\x1b[31m")
    'two lines [U+001B][31m'
    """
    return "".join(c if c.isprintable() else f"[U+{ord(c):04X}]" for c in " ".join(text.split()))


def assignments(pairs: list[str] | None, options: Iterable[str] = ()) -> dict[str, Any]:
    """`["rank=16"]` -> `{"rank": "16"}`; the fields' own types turn the words into numbers.

    Raises:
        PlanError: no `=`, or one of the `options`, which have an option of their own.
    """
    for pair in pairs or []:
        if "=" not in pair:
            raise PlanError(f"--set takes FIELD=VALUE, got {pair!r}.")
    fields = dict(pair.split("=", 1) for pair in pairs or [])
    for name in sorted(fields.keys() & set(options)):
        raise PlanError(f"{name} has an option of its own; write --{name.replace('_', '-')} {fields[name]}.")
    return fields


def seconds_of(duration: str) -> float:
    """Read a duration.

    >>> seconds_of("90s"), seconds_of("5m"), seconds_of("1h"), seconds_of("30")
    (90.0, 300.0, 3600.0, 30.0)

    Raises:
        PlanError: not a positive number with s, m, h or nothing behind it.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", duration)
    seconds = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0
    if seconds <= 0:
        raise PlanError(f"{duration!r} is no duration; write it as in 90s, 5m or 1h.")
    return seconds


def standing(title: str, cells: int, done: int, missing: Mapping[str, int]) -> list[str]:
    """Say how a plan stands: what is done, and of how many cells something is not here."""
    first = f"{title}: {cells} cells, {done} done"
    return [first, *(f"{count} cells cannot be run here: {reason}" for reason, count in missing.items())]
