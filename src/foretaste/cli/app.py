"""The command line. Nothing heavy is imported before a command runs, so that `--help` answers at once."""

from __future__ import annotations

import io
import sys

import typer

from foretaste.cli import cleaning, laboratory, training, use

__all__ = ["main"]

app = typer.Typer(
    name="foretaste",
    help="Is this checkpoint poisoned, and can I use it anyway?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    training.poison,
    training.tune,
    training.guard,
    cleaning.unlearn,
    cleaning.cleanse,
    use.evaluate,
    use.check,
    use.audit,
    use.rewrite,
    laboratory.run,
    laboratory.report,
    use.inspect,
    use.demo,
):
    app.command()(command)


def main() -> None:
    """Run the command line: exit 0, 2 for a user's mistake (one clear line), 130 when interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter must not end the command
    app()
