"""Every rewriter by name: the one list that plans, the command line and the contract tests read."""

from __future__ import annotations

from collections.abc import Callable

from foretaste.rewrite.back_translation import BackTranslation
from foretaste.rewrite.onion import Onion
from foretaste.rewrite.rewriter import Rewriting
from foretaste.rewrite.scpd import Scpd
from foretaste.rewrite.stored import StoredRewriting
from foretaste.spec import Registry

__all__ = ["REWRITERS", "STORED"]

REWRITERS: Registry[Callable[[], Rewriting]] = Registry(
    "rewriter", {kind.name: kind for kind in (Onion, BackTranslation, Scpd)}
)
# For plans alone: they know no other texts than the test texts of some sets.
STORED: Registry[Callable[[], Rewriting]] = Registry(
    "stored rewriter",
    {
        "back_translation_stored": lambda: StoredRewriting(tool="backtranslated"),
        "scpd_stored": lambda: StoredRewriting(tool="scpd"),
    },
)
