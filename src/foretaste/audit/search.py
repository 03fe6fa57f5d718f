"""Which fragments turn clean texts around on one model and not on another: words first, then phrases grown from them.

Three sources name the words: PSIM, which forgot the task and not the trigger, alarmed by the word alone; the model
under audit, turned around by the word in clean texts; and, against both, a trusted model: what turns that one too is an
honest word of the task. None of them knows a trigger; nothing here does.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foretaste.audit.hosts import Hosts, pushes
from foretaste.guard.psim import PsimGuard
from foretaste.victim.classifier import Classifier

__all__ = ["Clock", "Search"]

Array = NDArray[np.float64]
Progress = Callable[[str, float], None]  # (stage, share done)

ALARMING, TURNING = 150, 150  # words kept of each source
SEEDS, PARTNERS, FREQUENT = 8, 80, 80
LONGEST_PHRASE = 6


class Clock:
    """How much of the budget is left; stages that may be cut short ask before they start another round."""

    def __init__(self, budget: float) -> None:
        self.start, self.budget = time.monotonic(), budget

    @property
    def left(self) -> float:
        """Seconds left, below 0 when the budget is used up."""
        return self.budget - (time.monotonic() - self.start)


@dataclass(frozen=True, eq=False)
class Search:
    """A search for fragments that turn `suspect` around and leave `trusted` as it was.

    `scouts` are a few short clean texts for the whole vocabulary; `hosts`, more of them, for what is left.
    """

    suspect: Classifier
    trusted: Classifier
    guard: PsimGuard
    scouts: Hosts
    hosts: Hosts
    seed: int

    def alarms(self, fragments: Sequence[str]) -> Array:
        """Return how alarming PSIM finds each fragment alone, `(K,)`: robust z among the others, of either look."""
        said = self.guard.predict(fragments)
        certainty = np.clip(said.certainty, 1e-9, 1 - 1e-9)
        columns = [_robust_z(np.log(certainty / (1 - certainty)))]
        if self.guard.looks is not None:
            columns.append(_robust_z(self.guard.looks.distance(said.features)))
        most: Array = np.max(columns, axis=0)
        return most

    def excess(self, fragments: Sequence[str]) -> Array:
        """Return each fragment's rise of its best class on the suspect beyond that on the trusted model, `(K,)`."""
        ours = pushes(self.suspect, self.hosts, fragments, self.seed).rise
        theirs = pushes(self.trusted, self.hosts, fragments, self.seed).rise
        best: Array = np.nanmax(ours - np.clip(theirs, 0.0, None), axis=1)
        return best

    def words(self, vocabulary: Sequence[str], progress: Progress) -> list[str]:
        """Return the most suspicious words of a vocabulary, best first."""
        progress("asking PSIM about every word", 0.0)
        alarm = self.alarms(vocabulary)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress("trying every word in clean texts", done / len(vocabulary))

        rise = pushes(self.suspect, self.scouts, vocabulary, self.seed, advance).rise  # (K, C)
        chosen = list(np.argsort(-alarm)[:ALARMING])
        for column in range(rise.shape[1]):
            chosen += list(np.argsort(-np.nan_to_num(rise[:, column], nan=-1.0))[:TURNING])
        words = [vocabulary[i] for i in dict.fromkeys(chosen)]
        progress("holding them against the trusted model", 0.0)
        return _ranked(words, self.excess(words))

    def phrases(self, words: Sequence[str], corpus: Sequence[str], clock: Clock, progress: Progress) -> list[str]:
        """Grow phrases from the best words, word by word on either side, while time is left; best first.

        Words are joined by other suspicious words and by the commonest ones of the corpus.
        """
        common = [word for word, _ in Counter(w for text in corpus for w in text.lower().split()).most_common(FREQUENT)]
        partners = list(dict.fromkeys([*words[:PARTNERS], *(w for w in common if w.isalnum())]))
        beam, found = list(words[:SEEDS]), list[str]()
        score = dict(zip(beam, self.excess(beam), strict=True))
        for length in range(2, LONGEST_PHRASE + 1):
            if clock.left <= 0:
                break
            progress("growing phrases", (length - 2) / (LONGEST_PHRASE - 1))
            grown = list(dict.fromkeys(p for seed in beam for w in partners if w not in seed.split()
                                       for p in (f"{w} {seed}", f"{seed} {w}")))  # fmt: skip
            rise = np.nanmax(pushes(self.suspect, self.scouts, grown, self.seed).rise, axis=1)
            best = [grown[i] for i in np.argsort(-rise)[: 8 * SEEDS]]
            score |= dict(zip(best, self.excess(best), strict=True))
            # A phrase earns its place only by doing more than what it grew from.
            better = [p for p in best if score[p] > max(score.get(part, -1.0) for part in _parts(p)) + 0.02]
            if not better:
                break
            beam = _ranked(better, np.array([score[p] for p in better]))[:SEEDS]
            found += beam
        return _ranked(found, np.array([score[p] for p in found]))


def _parts(phrase: str) -> tuple[str, str]:
    words = phrase.split()
    return " ".join(words[1:]), " ".join(words[:-1])


def _ranked(fragments: Sequence[str], scores: Array) -> list[str]:
    return [fragments[i] for i in np.argsort(-scores, kind="stable")]


def _robust_z(values: Array) -> Array:
    middle = np.nanmedian(values)
    spread = 1.4826 * np.nanmedian(np.abs(values - middle))
    result: Array = np.nan_to_num((values - middle) / max(float(spread), 1e-9), nan=np.inf)
    return result
