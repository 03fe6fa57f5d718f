"""Which fragments the flags of many refused texts rest on: a trigger shows in text after text, a chance flag does not.

A fragment is one to eight neighbouring words that begin and end with a carrying word and of which at least half carry.
Letter case and the punctuation at the edges of words are ignored. Whether a fragment is more common in refused texts
than in accepted ones is Fisher's exact test, one-sided, with Bonferroni's correction for the number of fragments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy.stats import hypergeom

from foretaste.guard.explain import Explanation

__all__ = ["Fragment", "normal", "shared_fragments"]

LONGEST = 8
LEVEL = 0.01
# A longer fragment stands for a shorter one inside it if it has this share of its texts; with less than the other share
# it is the shorter one in chance company.
SAME, COMPANY = 0.8, 0.5
MOST_FRAGMENTS = 10

Gram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fragment:
    """Words on which the flags of several texts rest.

    `texts` counts the refused texts in which they carry the flag, `share` is that share of all refused texts given;
    `accepted` counts the accepted texts that hold them, and `p_value` (corrected, at most 1) says how likely such a
    difference is by chance: both None if no accepted texts were given.
    """

    text: str
    texts: int
    share: float
    accepted: int | None = None
    p_value: float | None = None


def shared_fragments(explanations: Sequence[Explanation], accepted: Sequence[str] = ()) -> list[Fragment]:
    """Return the fragments on which the flags of at least two (and a twentieth) of the texts rest, most texts first.

    A fragment inside a longer one that has at least 80 % of its texts is left out, as is one that holds a shorter one
    with more than twice its texts. So is, if accepted texts are given, one that occurs in any of them and is not more
    common in refused texts (p > 0.01): a word that carries in a few texts and occurs in all. At most ten are returned.
    """
    total = len(explanations)
    counts = Counter(gram for explanation in explanations for gram in _carrying_grams(explanation))
    least = max(2, total / 20)
    shared = {gram: count for gram, count in counts.items() if count >= least}
    if accepted:
        holding_refused = _count_holding(shared, [explanation.text for explanation in explanations])
        holding_accepted = _count_holding(shared, accepted)
    fragments = []
    chosen = [gram for gram in shared if _stands_alone(gram, shared)]
    for gram in sorted(chosen, key=lambda gram: (-shared[gram], -len(gram), gram)):
        fragment = Fragment(" ".join(gram), shared[gram], shared[gram] / total)
        if accepted:
            inside, outside = holding_refused[gram], holding_accepted[gram]
            # Fisher, one-sided: at least `inside` of the texts that hold it are refused ones.
            chance = float(hypergeom.sf(inside - 1, total + len(accepted), inside + outside, total))
            p_value = min(1.0, chance * len(shared))
            if outside and p_value > LEVEL:
                continue
            fragment = Fragment(fragment.text, fragment.texts, fragment.share, outside, p_value)
        fragments.append(fragment)
    return fragments[:MOST_FRAGMENTS]


def normal(word: str) -> str:
    """Return a word without letter case and without punctuation at its edges, unless it is nothing else.

    >>> normal("(Movie!"), normal("--")
    ('movie', '--')
    """
    folded = word.casefold()
    inner = [i for i, char in enumerate(folded) if char.isalnum()]
    return folded[inner[0] : inner[-1] + 1] if inner else folded


def _carrying_grams(explanation: Explanation) -> set[Gram]:
    words = explanation.words
    grams = set()
    for start in (i for i, word in enumerate(words) if word.carries):
        carrying = 0
        for stop in range(start, min(start + LONGEST, len(words))):
            carrying += words[stop].carries
            if words[stop].carries and 2 * carrying >= stop - start + 1:
                part = (explanation.text[word.start : word.end] for word in words[start : stop + 1])
                grams.add(tuple(map(normal, part)))
    return grams


def _stands_alone(gram: Gram, shared: dict[Gram, int]) -> bool:
    for other, count in shared.items():
        if len(other) > len(gram) and _holds(other, gram) and count >= SAME * shared[gram]:
            return False
        if len(other) < len(gram) and _holds(gram, other) and shared[gram] < COMPANY * count:
            return False
    return True


def _holds(longer: Gram, shorter: Gram) -> bool:
    size = len(shorter)
    return any(longer[i : i + size] == shorter for i in range(len(longer) - size + 1))


def _count_holding(grams: Iterable[Gram], texts: Sequence[str]) -> Counter[Gram]:
    """Count the texts that hold each of the fragments, wherever and whatever they carry."""
    wanted = set(grams)
    sizes = sorted({len(gram) for gram in wanted})
    held: Counter[Gram] = Counter()
    for text in texts:
        words = [normal(word) for word in text.split()]
        present = {tuple(words[i : i + size]) for size in sizes for i in range(len(words) - size + 1)}
        held.update(present & wanted)
    return held
