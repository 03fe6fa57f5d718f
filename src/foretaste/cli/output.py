"""How a command answers: JSON or text on standard output, everything else on standard error, errors in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from foretaste.errors import ForetasteError, PlanError

__all__ = ["answering", "as_line", "assignments", "given", "warn"]


@contextmanager
def answering(as_json: bool) -> Iterator[Any]:
    """Yield `answer(result, text)`, which prints JSON or text on standard output; turn our errors into one line."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

    def answer(result: dict[str, Any], text: str) -> None:
        typer.echo(json.dumps(result, allow_nan=False, ensure_ascii=False, default=str) if as_json else text)

    try:
        yield answer
    except ForetasteError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command continues where it was stopped.", err=True)
        raise typer.Exit(130) from None


def warn(message: str) -> None:
    """Print a warning on standard error."""
    typer.echo(f"warning: {message}", err=True)


def given(**fields: Any) -> dict[str, Any]:
    """Return the options that were given; None means the default of whatever takes the field."""
    return {name: value for name, value in fields.items() if value is not None}


def as_line(value: Any) -> str:
    """Return a value for a table: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def assignments(pairs: list[str] | None) -> dict[str, Any]:
    """`["rank=16"]` -> `{"rank": "16"}`; the strategy's own fields turn the words into numbers."""
    for pair in pairs or []:
        if "=" not in pair:
            raise PlanError(f"--set takes FIELD=VALUE, got {pair!r}.")
    return dict(pair.split("=", 1) for pair in pairs or [])
