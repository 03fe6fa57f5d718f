"""Every error a user can cause, as one tree.

ForetasteError            anything below; the command line prints it without a traceback and exits 2
├── PlanError             what was asked for: an unknown name, a bad option, options that contradict
│   └── WriteError            a place that cannot be written: full, read-only, somebody else's
├── DataError             what was read: files, columns, labels, texts
│   └── UndefinedRateError    a rate over nothing, which would read as a perfect score
├── ModelError            a checkpoint that cannot be found, trusted or used
└── GuardError            a guard that cannot be trusted, calibrated or used

`ModelError` and `GuardError` carry a `code`, one word per kind of refusal, so that programs need not read
sentences. A message says what was expected, what came, where, and what to do next.
"""

from functools import partial
from typing import Any

__all__ = [
    "DataError",
    "ForetasteError",
    "GuardError",
    "ModelError",
    "PlanError",
    "UndefinedRateError",
    "WriteError",
]


class ForetasteError(Exception):
    """Something the user can put right; the message says how."""


class PlanError(ForetasteError):
    """The request itself cannot be carried out as written; `args` are its problems, each a message."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class WriteError(PlanError):
    """The disk or the system refuses to write where it was told to."""


class DataError(ForetasteError):
    """Texts, labels or files are not what was expected."""


class UndefinedRateError(DataError):
    """A rate was asked for over no cases."""


class _CodedError(ForetasteError):
    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), code=self.code), self.args  # another process may be told of it


class ModelError(_CodedError):
    """A checkpoint was refused; `code` names the reason."""


class GuardError(_CodedError):
    """A guard was refused; `code` names the reason."""
