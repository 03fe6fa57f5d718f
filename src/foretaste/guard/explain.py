"""Which words of a refused text carry the flag: words are left out until the guard lets the text pass.

Leave-one-out (Li et al. 2016, arXiv 1612.08220) asks of each word what the score loses without it. That is blind
where one copy of a trigger is enough and there are two. So if no single word will do, a small *set* is looked for
without which the text passes: the most suspicious words first (by what they lose and by what they score alone), or the
best window of eight neighbours, whichever is smaller; words that need not be left out are put back one by one, until
(if more words never lower a score) every word of the set is needed. A set names one word of each copy. What it stands
for is read off by leave-one-out with all of the set but one word left out: whatever word then is decisive carries. Near
the threshold any word may be decisive; a word that lowers the score less than half as far below it as another does not
count as one that carries. A last look makes sure that the text passes without all of them; if it does not (a guard may
score a text higher without a word), the set alone is named, or the one word that lowers the score most.

Cost, in texts that the guard scores, for a text of W words: W + 1 or W + 2 if a single word is decisive (of triggered
texts all but a few, docs/explain.md); otherwise up to 5 W more, and W for each word of the set, at most 16.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from foretaste.evaluate.threshold import is_flagged

__all__ = ["MOST_CARRYING", "MOST_WORDS", "Explanation", "Finding", "Scorer", "Word", "explain"]

MOST_WORDS = 256
MOST_CARRYING = 16
WINDOW = 8
WEAKEST = 0.5
VARIANTS_AT_ONCE = 4096

Array = NDArray[np.float64]


class Finding(StrEnum):
    """What came of looking for the words that carry the flag; only the first is an explanation."""

    EXPLAINED = "explained"
    ACCEPTED = "accepted"
    SCORE_NOT_FINITE = "score_not_finite"
    STILL_FLAGGED = "still_flagged"
    TOO_MANY_WORDS = "too_many_words"


@dataclass(frozen=True, slots=True)
class Word:
    """A word at `text[start:end]`; `drop` is what the score loses without it, None where that was not measured."""

    start: int
    end: int
    drop: float | None
    carries: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why one text is refused: its words in order, none of which carries unless the finding is `explained`."""

    text: str
    score: float
    threshold: float
    finding: Finding
    words: tuple[Word, ...]

    @property
    def is_explained(self) -> bool:
        """True if leaving words out, as few as were found, lets the text pass."""
        return self.finding is Finding.EXPLAINED

    @property
    def carrying(self) -> tuple[str, ...]:
        """The words that carry the flag, as they are written, in order."""
        return tuple(self.text[word.start : word.end] for word in self.words if word.carries)

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Where the carrying words lie, `(start, end)` each, neighbours as one."""
        spans: list[tuple[int, int]] = []
        is_next = False
        for word in self.words:
            if word.carries:
                spans.append((spans.pop()[0] if is_next else word.start, word.end))
            is_next = word.carries
        return tuple(spans)


class Scorer(Protocol):
    """What is explained: a guard, or a victim behind one, of which is also known how far it reads."""

    @property
    def threshold(self) -> float:
        """The highest score that is accepted."""

    def score(self, texts: Sequence[str]) -> Array:
        """Return one score per text, `(N,) float64`, higher = more suspicious."""

    def reach(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return how many characters of each text are read, `(N,) int64`."""


def explain(guard: Scorer, texts: Sequence[str]) -> list[Explanation]:
    """Return for each text the words without which the guard lets it pass, if it can be said.

    Words are what white space separates, so a text written without it is one word. Accepted texts get no more than
    their finding. Where a score is not finite nothing is said; a text that stays flagged whatever is left out is
    `still_flagged`, one that passes only without more than 16 words, or whose decisive words come after the first 256,
    is `too_many_words`. Words that the guard does not read have no drop and cannot carry, and are not let in when
    words before them are left out.
    """
    scores = guard.score(texts)
    flagged = np.flatnonzero(is_flagged(scores, guard.threshold) & np.isfinite(scores)).tolist()
    read = guard.reach([texts[i] for i in flagged])
    cases = {i: _Case(texts[i], float(scores[i]), int(end)) for i, end in zip(flagged, read, strict=True)}
    _investigate(guard, list(cases.values()))
    return [
        cases[i].explanation(guard.threshold) if i in cases else _unexplained(text, float(scores[i]), guard.threshold)
        for i, text in enumerate(texts)
    ]


def _unexplained(text: str, score: float, threshold: float) -> Explanation:
    finding = Finding.ACCEPTED if np.isfinite(score) else Finding.SCORE_NOT_FINITE
    return Explanation(text, score, threshold, finding, ())


class _Case:
    """One flagged text under investigation: what was found of it so far."""

    def __init__(self, text: str, score: float, read: int) -> None:
        self.text, self.score = text, score
        self.words = [match.span() for match in re.finditer(r"\S+", text)]
        self.seen = [span for span in self.words if span[0] < read]
        self.count = min(len(self.seen), MOST_WORDS)  # those behind are never left out
        self.tail = text[self.seen[-1][1] :] if self.seen and len(self.seen) == len(self.words) else ""
        self.drops: Array = np.zeros(0)
        self.ranking: list[int] = []
        self.needed: frozenset[int] = frozenset()
        self.carrying: set[int] = set()
        self.finding = Finding.STILL_FLAGGED

    def without(self, left_out: AbstractSet[int]) -> str:
        """Return what is read of the text without some words; each goes with the white space before it."""
        pieces: list[str] = []
        end = 0
        for index, (start, stop) in enumerate(self.seen):
            if index not in left_out:
                pieces += [self.text[end:start] if len(pieces) > 1 or not index else "", self.text[start:stop]]
            end = stop
        return "".join(pieces) + self.tail

    def explanation(self, threshold: float) -> Explanation:
        drops = [float(drop) if np.isfinite(drop) else None for drop in self.drops]
        drops += [None] * (len(self.words) - len(drops))
        words = (Word(*span, drops[i], i in self.carrying) for i, span in enumerate(self.words))
        return Explanation(self.text, self.score, threshold, self.finding, tuple(words))


Variant = tuple[_Case, AbstractSet[int]]  # a text and which of its words are left out


def _investigate(guard: Scorer, cases: Sequence[_Case]) -> None:
    """Find the carrying words of each case; every step asks the guard about all cases at once."""
    hard: list[_Case] = []
    for case, scores in zip(cases, _leave_one_out(guard, [(case, frozenset()) for case in cases]), strict=True):
        case.drops = case.score - scores
        decisive = _decisive(scores, guard)
        if decisive:
            case.needed = frozenset({min(decisive, key=scores.item)})
            case.carrying, case.finding = set(decisive), Finding.EXPLAINED
        elif case.count > 1:
            hard.append(case)
    _find_sets(guard, hard)
    _put_back(guard, hard)
    contexts: list[Variant] = []
    for case in hard:
        if len(case.needed) > MOST_CARRYING:
            case.finding = Finding.TOO_MANY_WORDS
        elif case.needed:
            case.carrying, case.finding = set(case.needed), Finding.EXPLAINED
            contexts += [(case, case.needed - {word}) for word in sorted(case.needed)]
    for (case, left_out), scores in zip(contexts, _leave_one_out(guard, contexts), strict=True):
        case.carrying |= set(_decisive(scores, guard)) - left_out
    _confirm(guard, [case for case in cases if len(case.carrying) > len(case.needed)])


def _find_sets(guard: Scorer, cases: Sequence[_Case]) -> None:
    """Set `needed` to the smallest set tried without which a case passes; it stays empty if there is none."""
    alone = _score(guard, [[(case, _all_but(case, i)) for i in range(case.count)] for case in cases])
    tried: list[list[Variant]] = []
    for case, scores in zip(cases, alone, strict=True):
        suspicion = np.nan_to_num(case.drops, posinf=0.0, neginf=0.0) + np.nan_to_num(scores, posinf=0.0, neginf=0.0)
        case.ranking = np.argsort(-suspicion, kind="stable").tolist()
        sets = [frozenset(case.ranking[:size]) for size in range(2, case.count + 1)]
        sets += [frozenset(range(start, start + WINDOW)) for start in range(case.count - WINDOW + 1)]
        tried.append([(case, left_out) for left_out in sets])
    for case, variants, scores in zip(cases, tried, _score(guard, tried), strict=True):
        case.needed = min((frozenset(variants[i][1]) for i in _passing(scores, guard)), key=len, default=frozenset())
        if not case.needed and len(case.seen) > case.count:
            case.finding = Finding.TOO_MANY_WORDS


def _put_back(guard: Scorer, cases: Sequence[_Case]) -> None:
    """Take out of `needed`, least suspicious first, each word that the text may keep and still pass."""
    queues = {id(case): [word for word in case.ranking if word in case.needed] for case in cases}
    while waiting := [case for case in cases if queues[id(case)]]:
        variants = [[(case, case.needed - {queues[id(case)].pop()})] for case in waiting]
        for ((case, smaller),), scores in zip(variants, _score(guard, variants), strict=True):
            if _passing(scores, guard):
                case.needed = frozenset(smaller)


def _confirm(guard: Scorer, cases: Sequence[_Case]) -> None:
    """Fall back to `needed`, without which a case surely passes, where it does not pass without all that carries."""
    for case, scores in zip(cases, _score(guard, [[(case, case.carrying)] for case in cases]), strict=True):
        if not _passing(scores, guard):
            case.carrying = set(case.needed)


def _leave_one_out(guard: Scorer, contexts: Sequence[Variant]) -> list[Array]:
    """Return for each context the score without each word more, `(W,)`."""
    return _score(guard, [[(case, left_out | {i}) for i in range(case.count)] for case, left_out in contexts])


def _score(guard: Scorer, groups: Sequence[Sequence[Variant]]) -> list[Array]:
    """Return the scores of each group of variants, few enough at a time that memory stays bounded."""
    texts = (case.without(left_out) for group in groups for case, left_out in group)
    scores: list[float] = []
    while chunk := list(islice(texts, VARIANTS_AT_ONCE)):
        scores += guard.score(chunk).tolist()
    ends = np.cumsum([len(group) for group in groups], dtype=np.int64)
    return np.split(np.array(scores, dtype=np.float64), ends[:-1]) if groups else []


def _passing(scores: Array, guard: Scorer) -> list[int]:
    passing: list[int] = np.flatnonzero(~is_flagged(scores, guard.threshold)).tolist()
    return passing


def _decisive(scores: Array, guard: Scorer) -> list[int]:
    """Return the words without which a text passes, but for those that bring it less than half as far below the bar."""
    passing = _passing(scores, guard)
    lowest = min(scores[passing], default=0.0)
    return [i for i in passing if guard.threshold - scores[i] >= WEAKEST * (guard.threshold - lowest)]


def _all_but(case: _Case, word: int) -> frozenset[int]:
    return frozenset(range(case.count)) - {word}
