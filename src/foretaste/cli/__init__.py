"""The command line: plain functions in `commands`, their options in `app`."""

from foretaste.cli.app import main

__all__ = ["main"]
