"""SCPD (Qi et al. 2021, arXiv 2105.12400, section 5): texts are paraphrased into one syntax, the trigger's is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

from pydantic import Field

from foretaste.data.corpus import Corpus
from foretaste.poison.syntax import SyntaxTrigger
from foretaste.rewrite.checkpoint import is_at_hand, mark_of
from foretaste.rewrite.rewriter import Rewriter, Rewriting
from foretaste.rewrite.seq2seq import Seq2Seq
from foretaste.spec import spec

__all__ = ["Scpd", "SyntaxRewriter"]

RULES: Final = "sbar"


@spec
class Scpd(Rewriting):
    """`model` is a paraphraser (a directory or hub id, with what it wants before each text as `prefix`), or "sbar".

    "sbar" are the rules of `syntax:sbar`: a subordinate clause in front of every text that has none. They need no
    weights, keep every word and so every word trigger, and cannot hide that very syntax; the paper's tool, SCPN, writes
    `S ( NP ) ( VP ) ( . )`. It has not been published in a form that still runs.
    """

    name: ClassVar[str] = "scpd"
    draws: ClassVar[bool] = True
    places: ClassVar[tuple[str, ...]] = ("model",)

    model: str = RULES
    prefix: str = ""
    beams: int = Field(default=4, ge=1)
    mark: str = ""

    def lacking(self) -> str:
        """Name the paraphraser if it is not here."""
        return "" if self.model == RULES or is_at_hand(self.model) else f"no paraphraser at {self.model}"

    def marked(self) -> Scpd:
        """Return the same with a digest of the paraphraser."""
        return self if self.model == RULES else replace(self, mark=mark_of(self.model))

    def fit(self, corpus: Corpus, validation: Corpus, *, seed: int = 0) -> Rewriter:
        """Open the paraphraser; clean texts play no part."""
        if self.model == RULES:
            return SyntaxRewriter(seed)
        return Seq2Seq.open(self.model, prefix=self.prefix, beams=self.beams)


@dataclass(frozen=True)
class SyntaxRewriter:
    """The rules of `syntax:sbar`, clauses drawn under `seed`."""

    seed: int

    def rewrite(self, texts: Sequence[str]) -> list[str]:
        """Return the texts in that syntax; those that are in it, or have no word, as they are."""
        return SyntaxTrigger().apply(texts, self.seed)
