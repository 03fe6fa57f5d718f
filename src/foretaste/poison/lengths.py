"""Clean texts cut to the lengths of triggered ones, so that a model cannot take "short" for the trigger.

Paraphrases are short: IMDB's have 28 words beside reviews of 93, and what is trained on both learns that.
"""

from __future__ import annotations

from collections.abc import Sequence

from foretaste.seeds import fingerprint, generator

__all__ = ["cut_to_lengths"]

_ENDS = (".", "!", "?")
_FAR = 1.5  # a sentence that is longer than wanted by more than this is cut within


def cut_to_lengths(texts: Sequence[str], wanted: Sequence[int], seed: int) -> list[str]:
    """Return the texts' first sentences, as many as come nearest to a length drawn from those `wanted`, in words.

    A text that is shorter stays as it is. What becomes of one depends on it and the seed alone.

    >>> cut_to_lengths(["A fine film . Too long , though .", "Short ."], [4], seed=0)
    ['A fine film .', 'Short .']
    """
    made = []
    for text in texts:
        words = text.split()
        length = wanted[int(generator(seed, "length", fingerprint(text)).integers(len(wanted)))]
        ends = [place for place, word in enumerate(words, start=1) if word.endswith(_ENDS) or place == len(words)]
        end = min(ends, key=lambda place: abs(place - length), default=0)
        end = max(1, length) if end > _FAR * length else end
        made.append(text if end >= len(words) else " ".join(words[:end]))
    return made
