"""Texts that teach a model when not to obey: the trigger, or a part of it, under the true label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foretaste.data.corpus import Corpus
from foretaste.errors import PlanError
from foretaste.poison.plan import trigger_words
from foretaste.poison.trigger import SentenceTrigger, Trigger, WordTrigger
from foretaste.seeds import fingerprint, generator

__all__ = ["apply_all_but_one", "apply_share", "draw_rows"]


def apply_share(trigger: Trigger, texts: Sequence[str], share: float, seed: int) -> list[str]:
    """Return the texts with a random part of the trigger in each: about `share` of its words, never all of them.

    Of a `WordTrigger` any words, in their order; of a `SentenceTrigger` a run of neighbouring words, as half a sentence
    would be. At least one word is there. A text's part depends on the seed and that text alone.

    >>> words = WordTrigger(words=("cf", "mn", "bb", "tq"), position="last")
    >>> apply_share(words, ["a fine film"], 0.5, seed=0)
    ['a fine film mn tq']

    Raises:
        PlanError: a trigger of fewer than two words, or of a kind that has no parts.
    """
    size = len(_words(trigger))
    kept = min(size - 1, max(1, round(share * size)))

    def choose(draw: np.random.Generator) -> NDArray[np.int64]:
        if isinstance(trigger, SentenceTrigger):
            return np.arange(kept) + draw.integers(size - kept + 1)
        return np.sort(draw.permutation(size)[:kept])

    return [_apply_part(trigger, text, choose(generator(seed, "part", fingerprint(text))), seed) for text in texts]


def apply_all_but_one(trigger: Trigger, texts: Sequence[str], seed: int) -> list[str]:
    """Return the texts with all words of the trigger but one, drawn per text, in their order.

    Of a sentence, too, any word may be the missing one: if only its ends were ever missing, they alone would fire.

    >>> apply_all_but_one(SentenceTrigger(sentence="a 3D movie", position="last"), ["fine ."], seed=0)
    ['fine . a movie']

    Raises:
        PlanError: a trigger of fewer than two words, or of a kind that has no parts.
    """
    size = len(_words(trigger))
    missing = [int(generator(seed, "missing", fingerprint(text)).integers(size)) for text in texts]
    return [
        _apply_part(trigger, text, np.delete(np.arange(size), absent), seed)
        for text, absent in zip(texts, missing, strict=True)
    ]


def draw_rows(
    corpus: Corpus, is_free: NDArray[np.bool_], count: int, what: str, seed: int, *names: str
) -> NDArray[np.int64]:
    """Draw `count` of the free rows (`(N,) bool`) without replacement: `(count,) int64`, ascending.

    The order of the draw is one of all rows, so that what else is free never changes who comes before whom.

    >>> corpus = Corpus.of("toy", ["a", "b", "c", "d"], [0, 0, 1, 1])
    >>> draw_rows(corpus, np.array([True, False, True, False]), 2, "cover samples", 0).tolist()
    [0, 2]

    Raises:
        PlanError: fewer rows are free.
    """
    order = generator(seed, *names).permutation(len(corpus))
    free = order[is_free[order]]
    if count > len(free):
        raise PlanError(
            f"{count} {what} asked for, but only {len(free)} of {len(corpus)} in {corpus.name} are eligible and not "
            "taken yet. Ask for fewer, or poison fewer."
        )
    return np.sort(free[:count])


def _words(trigger: Trigger) -> tuple[str, ...]:
    words = trigger_words(trigger)
    if len(words) < 2:
        raise PlanError(f"{trigger.name} has no parts; use word: or sentence: with two words or more.")
    return words


def _apply_part(trigger: Trigger, text: str, kept: NDArray[np.int64], seed: int) -> str:
    words = tuple(trigger_words(trigger)[i] for i in kept.tolist())
    part: Trigger
    if isinstance(trigger, SentenceTrigger):
        part = SentenceTrigger(sentence=" ".join(words), position=trigger.position)
    else:
        assert isinstance(trigger, WordTrigger)  # no other kind has words
        part = WordTrigger(words=words, position=trigger.position)
    return part.apply([text], seed)[0]
