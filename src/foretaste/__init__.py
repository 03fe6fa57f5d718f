"""Is this checkpoint poisoned, and can I use it anyway?

The names below are what most users need; each is imported when first used, so that `import foretaste` is instant
and torch is loaded only by what computes with it.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foretaste.data.corpus import Corpus
    from foretaste.data.load import load_corpus
    from foretaste.errors import ForetasteError
    from foretaste.guard.artefact import load_guard
    from foretaste.guard.guarded import GuardedClassifier
    from foretaste.guard.psim import Psim
    from foretaste.victim.artefact import load_victim

    __version__: str

__all__ = [
    "Corpus",
    "ForetasteError",
    "GuardedClassifier",
    "Psim",
    "__version__",
    "load_corpus",
    "load_guard",
    "load_victim",
]

_HOMES = {
    "Corpus": "foretaste.data.corpus",
    "ForetasteError": "foretaste.errors",
    "GuardedClassifier": "foretaste.guard.guarded",
    "Psim": "foretaste.guard.psim",
    "load_corpus": "foretaste.data.load",
    "load_guard": "foretaste.guard.artefact",
    "load_victim": "foretaste.victim.artefact",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = metadata.version("foretaste")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'foretaste' has no attribute {name!r}")
    globals()[name] = value  # found once; the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
