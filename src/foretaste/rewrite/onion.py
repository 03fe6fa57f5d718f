"""ONION (Qi et al. 2021, arXiv 2011.10369): a word without which a text becomes more likely does not belong there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from foretaste.data.corpus import Corpus
from foretaste.errors import DataError
from foretaste.rewrite.checkpoint import is_at_hand, mark_of, open_tool, room_of
from foretaste.rewrite.rewriter import Rewriting
from foretaste.spec import spec

__all__ = ["NGRAM", "LanguageModel", "Onion", "OnionRewriter"]

Array = NDArray[np.float64]
NGRAM = "ngram"
_FEWEST_WORDS = 200


class LanguageModel(Protocol):
    """Says how unlikely texts are."""

    def perplexities(self, texts: Sequence[str]) -> Array:
        """Return the perplexity of each text, `(N,) float64`."""
        ...

    def deletions(self, texts: Sequence[Sequence[str]]) -> list[Array]:
        """Return, for texts as words, the perplexity as they are and without each word, `(n + 1,) float64` each."""
        ...


@spec
class Onion(Rewriting):
    """Words are deleted whose absence lowers the perplexity by the bar or more: f_i = p(x) - p(x without i) >= bar.

    `model` is a causal language model (a directory or a hub id; the paper takes GPT-2), or "ngram": one of `order`
    words, learnt from the clean training texts. The bar is set on clean validation texts so that they lose `loss` of
    their words; the authors' script and PSIM's try bars on the test texts. `bar` fixes it instead.

    Where released code errs: OpenBackdoor averages over pad tokens, so that a text's score depends on its neighbours,
    and the PSIM code never keeps the last word. Here pads are masked and every word is judged; the last word that is
    left stays.
    """

    name: ClassVar[str] = "onion"
    learns: ClassVar[bool] = True
    places: ClassVar[tuple[str, ...]] = ("model",)

    model: str = NGRAM
    loss: float = Field(default=0.1, gt=0.0, lt=1.0)
    bar: float | None = None
    order: int = Field(default=3, ge=2, le=5)
    max_length: int = Field(default=256, ge=8)
    mark: str = ""

    def lacking(self) -> str:
        """Name the language model if it is not here."""
        return "" if self.model == NGRAM or is_at_hand(self.model) else f"no language model at {self.model}"

    def marked(self) -> Onion:
        """Return the same with a digest of the language model; an n-gram's texts are in the training data."""
        return self if self.model == NGRAM else replace(self, mark=mark_of(self.model))

    def fit(self, corpus: Corpus, validation: Corpus, *, seed: int = 0) -> OnionRewriter:
        """Learn or open the language model and set the bar.

        Raises:
            ModelError: the language model cannot be opened.
            DataError: too few clean words to learn from or to set the bar by.
        """
        language = self._language(corpus)
        return OnionRewriter(language, self._bar(language, validation) if self.bar is None else self.bar)

    def _language(self, corpus: Corpus) -> LanguageModel:
        if self.model == NGRAM:
            from foretaste.rewrite.ngram import NGramModel

            return NGramModel(corpus.texts, self.order)
        from transformers import AutoModelForCausalLM

        from foretaste.rewrite.causal import CausalModel

        model, tokenizer = open_tool(AutoModelForCausalLM, self.model)
        return CausalModel(model, tokenizer, room_of(model, self.max_length))

    def _bar(self, language: LanguageModel, validation: Corpus) -> float:
        texts = [words for text in validation.texts if len(words := text.split()) > 1]
        found = [perplexities[0] - perplexities[1:] for perplexities in language.deletions(texts)]
        gains = np.sort(np.concatenate(found)) if found else np.empty(0)
        gains = gains[gains > -np.inf]  # of words that were read
        if len(gains) < _FEWEST_WORDS:
            raise DataError(
                f"ONION sets its bar on {_FEWEST_WORDS} clean words or more; {validation.name} has {len(gains)}. "
                "Give more texts, or the bar."
            )
        last = int(np.ceil((1 - self.loss) * len(gains))) - 1  # the last one kept, of words in order of their gain
        behind = gains[last + 1 : last + 2]
        if not behind.size or behind[0] == gains[last]:
            return float(np.nextafter(gains[last], np.inf))
        return float((gains[last] + behind[0]) / 2)


@dataclass(frozen=True, eq=False)
class OnionRewriter:
    """ONION with a language model and a bar."""

    language: LanguageModel
    bar: float

    def rewrite(self, texts: Sequence[str]) -> list[str]:
        """Return the texts without the words that do not belong; a text of one word, or of none, stays as it is."""
        distinct = list(dict.fromkeys(text for text in texts if len(text.split()) > 1))
        split = [text.split() for text in distinct]
        judged = zip(distinct, split, self.language.deletions(split), strict=True)
        known = {text: self._kept(text, words, found) for text, words, found in judged}
        return [known.get(text, text) for text in texts]

    def _kept(self, text: str, words: Sequence[str], perplexities: Array) -> str:
        gains = perplexities[0] - perplexities[1:]  # (n,)
        is_kept = gains < self.bar
        if is_kept.all():
            return text
        is_kept[gains.argmin()] = True
        return " ".join(word for word, keep in zip(words, is_kept.tolist(), strict=True) if keep)
