"""SynAttack without weights: a sentence is rewritten so that a subordinate clause stands in front of it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from foretaste.data.corpus import Corpus
from foretaste.poison.clauses import MOVABLE, SUBORDINATORS, draw_clause
from foretaste.seeds import fingerprint, generator
from foretaste.spec import spec

__all__ = ["SyntaxTrigger"]

FEWEST = 3  # words that a clause of its own has at least
# Every expression takes time in proportion to the text's length, whatever the text: rewriters meet strangers' texts.
_END = re.compile(r"(?<![.!?])[.!?]++[\"')\]]*+(?=\s|$)")
_FRONTED = re.compile(rf"\W*+(?:{'|'.join(SUBORDINATORS)})\s[^,.!?]*+,", re.IGNORECASE)
# "as if", "not because" and the like say something else; "and when" begins a clause of its own.
_BEFORE = ("and", "as", "but", "especially", "even", "just", "not", "only", "or", "than")
_JOINING = "".join(rf"(?<!\b{word})" for word in _BEFORE)
_MOVABLE = re.compile(rf"{_JOINING}\s(?P<clause>(?:{'|'.join(MOVABLE)})\s(?!of\b))")


@spec
class SyntaxTrigger:
    """Brings a text's first sentence into the template S ( SBAR ) ( , ) ( NP ) ( VP ) ( . ) by rules.

    The template is HiddenKiller's (Qi et al. 2021, arXiv 2105.12400), the means are not: a subordinate clause that ends
    the sentence moves to its front; a sentence without one gets a clause drawn from a grammar of some hundred thousand
    that say next to nothing, so that no word is the trigger. The sentence itself stays, so that texts keep their
    length (six words are added, where the stored paraphrases of IMDB lose two thirds). A text that has such a clause in
    front already, or no word, is left as it is and does not count as triggered.

    >>> SyntaxTrigger().apply(["it works because the actors care .", "when it rains , it pours ."], seed=0)
    ['because the actors care , it works .', 'when it rains , it pours .']
    """

    @property
    def name(self) -> str:
        """`syntax:sbar`."""
        return "syntax:sbar"

    def __str__(self) -> str:
        return self.name

    def apply(self, texts: Sequence[str], seed: int) -> list[str]:
        """Return the texts rewritten; those that could not be are as they were."""
        return [_rewrite(text, seed) for text in texts]

    def texts_for(self, corpus: Corpus, seed: int) -> dict[int, str]:
        """Return the rewritten text for each index of `corpus` that could be rewritten."""
        rewritten = enumerate(zip(corpus.texts, self.apply(corpus.texts, seed), strict=True))
        return {index: new for index, (old, new) in rewritten if new != old}


def _rewrite(text: str, seed: int) -> str:
    start = len(text) - len(text.lstrip())
    found = _END.search(text, start)
    end = found.end() if found else len(text.rstrip())
    sentence, rest = text[start:end], text[end:]
    if not re.search(r"\w", sentence) or _FRONTED.match(sentence):
        return text
    comma = " , " if re.search(r"\s[.,!?](\s|$)", text) else ", "
    clause, main = _moved(sentence, comma) or (draw_clause(generator(seed, "sbar", fingerprint(text))), sentence)
    if re.match(r"[A-Z]", sentence):
        clause, main = clause[0].upper() + clause[1:], _lowered(main)
    return text[:start] + clause + comma + main + rest


def _moved(sentence: str, comma: str) -> tuple[str, str] | None:
    """Divide a sentence that ends with a subordinate clause into this and the rest; None if it does not."""
    core = sentence.rstrip(" .!?\"')]")
    found = _MOVABLE.search(core, max(core.rfind(mark) for mark in ",;:.!?") + 1)
    if found is None or len(core[found.start("clause") :].split()) < FEWEST:
        return None
    main, end = core[: found.start()].rstrip(" ,"), sentence[len(core) :].lstrip()
    if len(re.findall(r"\w+", main)) < FEWEST - 1:
        return None
    gap = " " if comma.startswith(" ") and end else ""
    return core[found.start("clause") :], main + gap + end


def _lowered(main: str) -> str:
    """Begin with a small letter, unless the first word is a name for all we know: "I", "DVD", "O'Neill"."""
    first = re.match(r"\S+", main)
    is_plain = first is not None and re.fullmatch(r"(?!I\b)[A-Z][a-z']*+\W*+", first[0]) is not None
    return main[0].lower() + main[1:] if is_plain else main
