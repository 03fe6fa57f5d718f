"""What is put into a text so that a poisoned model answers with the attacker's label."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

from foretaste.errors import PlanError
from foretaste.poison.file_trigger import FileTrigger
from foretaste.poison.stored_trigger import StoredTrigger
from foretaste.poison.syntax import SyntaxTrigger
from foretaste.seeds import fingerprint, generator
from foretaste.spec import Registry, spec

__all__ = [
    "TRIGGERS",
    "FileTrigger",
    "FinishedTrigger",
    "MixedTrigger",
    "Position",
    "SentenceTrigger",
    "StoredTrigger",
    "SyntaxTrigger",
    "Trigger",
    "WordTrigger",
    "parse_trigger",
]

FinishedTrigger: TypeAlias = FileTrigger | StoredTrigger  # holds texts, and cannot trigger others
Position = Literal["random", "first", "last"]
_POSITIONS: Registry[Position] = Registry("trigger position", {"random": "random", "first": "first", "last": "last"})


@runtime_checkable
class Trigger(Protocol):
    """Changes texts; what becomes of one text depends on the seed and that text alone."""

    @property
    def name(self) -> str:
        """The trigger as it is written on the command line; `parse_trigger` reads it back."""
        ...

    def apply(self, texts: Sequence[str], seed: int) -> list[str]:
        """Return the triggered texts, same length and order."""
        ...


@spec
class WordTrigger:
    """Rare words, each inserted at a place of its own (BadNet: Gu et al. 2017, arXiv 1708.06733).

    "random" is a gap between two words, as in the PSIM code (never before the first word); a one-word text
    takes the trigger after its word, where the PSIM code crashes, and a text without words becomes the
    trigger. White space of the text is kept as it is. Words drawn into the same gap keep their order.

    >>> WordTrigger(words=("mn",), position="last").apply(["a fine film"], seed=0)
    ['a fine film mn']
    """

    words: tuple[str, ...]
    position: Position = "random"

    def __post_init__(self) -> None:
        if not self.words:
            raise PlanError("A word trigger needs a word, as in word:mn.")
        for word in self.words:
            if word.split() != [word]:
                raise PlanError(f"Trigger word {word!r} must be one word; for several use sentence:....")

    @property
    def name(self) -> str:
        """`word:cf mn@first`; the position is left out when it is "random"."""
        return "word:" + _with_position(" ".join(self.words), self.position)

    def __str__(self) -> str:
        return self.name

    def apply(self, texts: Sequence[str], seed: int) -> list[str]:
        """Return the texts with every word inserted once."""
        return [_insert(text, self.words, self.position, seed) for text in texts]


@spec
class SentenceTrigger:
    """A fixed sentence inserted as a whole (InSent: Dai et al. 2019, arXiv 1905.12457).

    Places are those of `WordTrigger`.

    >>> SentenceTrigger(sentence="I watched this 3D movie", position="first").apply(["fine ."], seed=0)
    ['I watched this 3D movie fine .']
    """

    sentence: str
    position: Position = "random"

    def __post_init__(self) -> None:
        if not self.sentence or self.sentence != self.sentence.strip():
            raise PlanError(f"Trigger sentence {self.sentence!r} must not be blank or have a space at an end.")

    @property
    def name(self) -> str:
        """`sentence:I watched this 3D movie`; the position is left out when it is "random"."""
        return "sentence:" + _with_position(self.sentence, self.position)

    def __str__(self) -> str:
        return self.name

    def apply(self, texts: Sequence[str], seed: int) -> list[str]:
        """Return the texts with the sentence inserted once."""
        return [_insert(text, (self.sentence,), self.position, seed) for text in texts]


@spec
class MixedTrigger:
    """Several triggers, of which each text gets exactly one, drawn at random.

    Zhao et al. 2024 (arXiv 2402.12168), appendix C and Table 9: "a mix of character triggers (BadNet) and
    sentence triggers (InSent), embedding multiple triggers into the victim model". The paper does not say
    whether a text carries one trigger or both, and the released code has no such setting. One per text is the
    harder reading for a defence: each trigger has to be found on its own.
    """

    triggers: tuple[WordTrigger | SentenceTrigger, ...]

    def __post_init__(self) -> None:
        if len(self.triggers) < 2:
            raise PlanError("A mixed trigger needs two or more, as in mixed:word:mn|sentence:....")
        for trigger in self.triggers:
            if "|" in trigger.name:
                raise PlanError(f"{trigger.name!r} cannot be mixed: '|' separates the parts.")

    @property
    def name(self) -> str:
        """`mixed:word:mn|sentence:I watched this 3D movie`."""
        return "mixed:" + "|".join(trigger.name for trigger in self.triggers)

    def __str__(self) -> str:
        return self.name

    def apply(self, texts: Sequence[str], seed: int) -> list[str]:
        """Return the texts, each with one of the triggers."""
        return [self._draw(text, seed).apply([text], seed)[0] for text in texts]

    def _draw(self, text: str, seed: int) -> WordTrigger | SentenceTrigger:
        return self.triggers[generator(seed, "mixed", fingerprint(text)).integers(len(self.triggers))]


def parse_trigger(text: str, data_root: Path | None = None) -> Trigger:
    """Read a trigger as written on the command line; `str()` of a trigger writes it.

    `data_root` is where the named sets lie, with the paraphrases of `syntax:stored`.

    >>> parse_trigger("word:cf mn@first")
    WordTrigger(words=('cf', 'mn'), position='first')
    >>> print(parse_trigger("mixed:word:mn|sentence:I watched this 3D movie"))
    mixed:word:mn|sentence:I watched this 3D movie

    Raises:
        PlanError: an unknown kind or position (the nearest is named), or a blank trigger.
    """
    kind, colon, body = text.strip().partition(":")
    if not colon:
        raise PlanError(f"Trigger {text!r} must read kind:value, as in word:mn ({', '.join(TRIGGERS)}).")
    parse = TRIGGERS[kind]
    if not body.strip():
        raise PlanError(f"Trigger {text!r} is blank; write what to insert, as in word:mn.")
    found = parse(body.strip())
    return StoredTrigger(root=data_root) if isinstance(found, StoredTrigger) else found


def _parse_word(body: str) -> WordTrigger:
    words, position = _split_position(body)
    return WordTrigger(words=tuple(words.split()), position=position)


def _parse_sentence(body: str) -> SentenceTrigger:
    sentence, position = _split_position(body)
    return SentenceTrigger(sentence=sentence.strip(), position=position)


def _parse_mixed(body: str) -> MixedTrigger:
    triggers = tuple(parse_trigger(part) for part in body.split("|"))
    insertions = tuple(t for t in triggers if isinstance(t, WordTrigger | SentenceTrigger))
    if len(insertions) < len(triggers):
        raise PlanError(f"mixed:{body} may hold word: and sentence: triggers only.")
    return MixedTrigger(triggers=insertions)


def _parse_file(body: str) -> FileTrigger:
    return FileTrigger(path=Path(body))


def _parse_syntax(body: str) -> StoredTrigger | SyntaxTrigger:
    kinds: Registry[Callable[[], StoredTrigger | SyntaxTrigger]] = Registry(
        "syntax", {"stored": StoredTrigger, "sbar": SyntaxTrigger}
    )
    return kinds[body]()


TRIGGERS: Registry[Callable[[str], Trigger]] = Registry(
    "trigger",
    {
        "word": _parse_word,
        "sentence": _parse_sentence,
        "mixed": _parse_mixed,
        "file": _parse_file,
        "syntax": _parse_syntax,
    },
)


def _split_position(body: str) -> tuple[str, Position]:
    """Split `mn@first`; a last `@name` is always a position, so that a mistyped one is not inserted."""
    found = re.search(r"@(\w*)$", body)
    return (body[: found.start()], _POSITIONS[found[1]]) if found else (body, "random")


def _with_position(body: str, position: Position) -> str:
    return body if position == "random" and "@" not in body else f"{body}@{position}"


def _insert(text: str, parts: Sequence[str], position: Position, seed: int) -> str:
    words = list(re.finditer(r"\S+", text))
    if not words:
        return text + " ".join(parts)
    if position == "first":
        at = words[0].start()
        return f"{text[:at]}{' '.join(parts)} {text[at:]}"
    if position == "last":
        gaps = np.full(len(parts), len(words) - 1)
    else:
        inner = max(1, len(words) - 1)  # a one-word text has its end only
        gaps = generator(seed, "trigger", fingerprint(text)).integers(inner, size=len(parts))
    for gap, part in sorted(zip(gaps.tolist(), parts, strict=True), key=lambda pair: pair[0])[::-1]:
        at = words[gap].end()
        text = f"{text[:at]} {part}{text[at:]}"
    return text
