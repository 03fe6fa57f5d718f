"""Back-translation (Qi et al. 2021, arXiv 2105.12400, section 5): a text goes to another language and comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

from pydantic import Field

from foretaste.data.corpus import Corpus
from foretaste.errors import ModelError
from foretaste.rewrite.apertium import Apertium
from foretaste.rewrite.checkpoint import is_at_hand, mark_of
from foretaste.rewrite.rewriter import Rewriter, Rewriting
from foretaste.rewrite.seq2seq import Seq2Seq
from foretaste.spec import spec

__all__ = ["BackTranslation", "Chain"]

APERTIUM: Final = "apertium:"


@spec
class BackTranslation(Rewriting):
    """`there` and `back` are translators: `apertium:eng-spa`, or a sequence-to-sequence checkpoint by directory or id.

    The paper goes through German, which Apertium does not know; its pair is `Helsinki-NLP/opus-mt-en-de` and
    `Helsinki-NLP/opus-mt-de-en`, as safetensors. Beams are the decoder's; Apertium has none.
    """

    name: ClassVar[str] = "back_translation"
    places: ClassVar[tuple[str, ...]] = ("there", "back")

    there: str = f"{APERTIUM}eng-spa"
    back: str = f"{APERTIUM}spa-eng"
    beams: int = Field(default=4, ge=1)
    mark: str = ""

    def lacking(self) -> str:
        """Name the first translator that is not here."""
        return _lacking(self.there) or _lacking(self.back)

    def marked(self) -> BackTranslation:
        """Return the same with a digest of both translators."""
        return replace(self, mark=f"{_mark(self.there)} {_mark(self.back)}".strip())

    def fit(self, corpus: Corpus, validation: Corpus, *, seed: int = 0) -> Rewriter:
        """Open both translators; clean texts play no part."""
        return Chain(tuple(_translator(each, self.beams) for each in (self.there, self.back)))


@dataclass(frozen=True, eq=False)
class Chain:
    """Rewriters one after the other."""

    links: tuple[Rewriter, ...]

    def rewrite(self, texts: Sequence[str]) -> list[str]:
        """Return what the last one makes of what the ones before made."""
        made = list(texts)
        for link in self.links:
            made = link.rewrite(made)
        return made


def _translator(name: str, beams: int) -> Rewriter:
    return Apertium(name.removeprefix(APERTIUM)) if name.startswith(APERTIUM) else Seq2Seq.open(name, beams=beams)


def _lacking(name: str) -> str:
    if name.startswith(APERTIUM):
        try:
            return Apertium(name.removeprefix(APERTIUM)).lacking()
        except ModelError as error:  # no direction, or one that starts what it should not
            return str(error)
    return "" if is_at_hand(name) else f"no translator at {name}"


def _mark(name: str) -> str:
    if _lacking(name):
        return ""
    return Apertium(name.removeprefix(APERTIUM)).mark() if name.startswith(APERTIUM) else mark_of(name)
