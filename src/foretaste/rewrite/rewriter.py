"""What every rewriter is: texts in, texts out, and what becomes of a text depends on it and the tool alone."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol

from foretaste.data.corpus import Corpus
from foretaste.rewrite.checkpoint import is_at_hand, size_of
from foretaste.spec import spec, values_of

__all__ = ["Rewriter", "Rewriting"]


class Rewriter(Protocol):
    """Changes texts before a victim sees them."""

    def rewrite(self, texts: Sequence[str]) -> list[str]:
        """Return the texts as they go to the victim: same length and order, none blank that was not."""
        ...


@spec
class Rewriting(ABC):
    """A way of rewriting, as a frozen spec; it knows no victim, so that its texts serve every model."""

    name: ClassVar[str]
    learns: ClassVar[bool] = False
    """True if clean texts of the task decide what it does."""
    draws: ClassVar[bool] = False
    """True if a seed decides what it does."""
    places: ClassVar[tuple[str, ...]] = ()
    """Fields that say where its tools lie."""

    @property
    def key(self) -> str:
        """What it is: its fields, and the digest of its tools in place of where they lie, if that is known."""
        known = values_of(self)
        own = {name: value for name, value in known.items() if not known.get("mark") or name not in self.places}
        return f"{self.name} {json.dumps(own, sort_keys=True)}"

    def lacking(self) -> str:
        """Say what it needs that is not on this machine; blank if nothing is."""
        return ""

    def marked(self) -> Rewriting:
        """Return the same with a digest of the tools it uses, so that other tools are not taken for these."""
        return self

    def stored_bytes(self) -> int | None:
        """Return what its checkpoints take on disk; None where it has none on this machine."""
        sizes = [size_of(each) for name in self.places if is_at_hand(each := getattr(self, name))]
        return sum(sizes) if sizes else None

    @abstractmethod
    def fit(self, corpus: Corpus, validation: Corpus, *, seed: int = 0) -> Rewriter:
        """Make it ready with clean texts of the task: `corpus` to learn from, `validation` to set a bar by.

        Raises:
            ModelError: a tool is not there or cannot be used.
            DataError: too few clean texts.
        """
