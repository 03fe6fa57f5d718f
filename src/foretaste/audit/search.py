"""Which fragments turn clean texts around on one model and not on another: words first, then phrases grown from them.

Three sources name the words: PSIM, which forgot the task and not the trigger, alarmed by the word alone; the model
under audit, turned around by the word in clean texts; and, against both, a trusted model: what turns that one too is an
honest word of the task. None of them knows a trigger; nothing here does.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foretaste.audit.hosts import Fragment, Hosts, pushes, towards
from foretaste.audit.memory import Memory
from foretaste.guard.psim_guard import PsimGuard
from foretaste.victim.classifier import Classifier

__all__ = ["Clock", "Search"]

Array = NDArray[np.float64]
Progress = Callable[[str, float], None]  # (stage, share done)

ALARMING, TURNING = 150, 300  # words kept of each source; of the second, for all classes together
ALONE = 256  # words of a few tokens at a time
ASKED_AT_ONCE, ENOUGH = 50, 40  # words for the trusted model
RULING = 0.95
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
    memory: Memory

    def alarms(self, fragments: Sequence[str]) -> tuple[Array, Array]:
        """Return how alarming PSIM finds each fragment alone and the class it names, both `(K,)`.

        Alarming is a robust z among the others, the higher of both looks.
        """

        def ask() -> Array:
            said = self.guard.predict(fragments, batch_size=ALONE)
            certainty = np.clip(said.certainty, 1e-9, 1 - 1e-9)
            columns = [_robust_z(np.log(certainty / (1 - certainty)))]
            if self.guard.looks is not None:
                columns.append(_robust_z(self.guard.looks.distance(said.features)))
            return np.stack([np.max(columns, axis=0), said.labels])

        looks = self.guard.looks
        seen = "" if looks is None else hashlib.sha256(looks.distance.directions.tobytes()).hexdigest()
        question = ("alarm", self.guard.scoring, seen, *fragments)
        alarm, label = self.memory.recall(self.guard.classifier, question, (2, len(fragments)), ask)
        return alarm, label

    def ranked(self, fragments: Sequence[Fragment], needed: int) -> dict[Fragment, float]:
        """Return each fragment's excess, best first: its rise on the suspect beyond that on the trusted model.

        The trusted model is asked from the highest rise down, until no other fragment can come among the best
        `needed`; those it was not asked about are left out.
        """
        ours = towards(self.suspect, self.hosts, fragments, self.seed, self.memory).rise
        order = np.argsort(-ours, kind="stable")
        excess = dict[Fragment, float]()
        for start in range(0, len(order), ASKED_AT_ONCE):
            rows = order[start : start + ASKED_AT_ONCE]
            best = sorted(excess.values(), reverse=True)[:needed]
            if len(best) == needed and best[-1] >= ours[rows[0]]:
                break
            chosen = [fragments[i] for i in rows]
            theirs = towards(self.trusted, self.hosts, chosen, self.seed, self.memory).rise
            excess |= dict(zip(chosen, (ours[rows] - np.clip(theirs, 0.0, None)).tolist(), strict=True))
        return _best_first(excess)

    def words(self, vocabulary: Sequence[str], progress: Progress) -> dict[Fragment, float]:
        """Return the most suspicious words of a vocabulary and their excess, best first."""
        progress("asking PSIM about every word", 0.0)
        alarm, label = self.alarms(vocabulary)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress("trying every word in clean texts", done / len(vocabulary))

        rise = pushes(self.suspect, self.scouts, vocabulary, self.seed, advance, self.memory).rise  # (K, C)
        rise = np.nan_to_num(rise, nan=-1.0)
        chosen = list[Fragment]()
        for i in np.argsort(-alarm)[:ALARMING]:
            chosen += [Fragment(vocabulary[i], int(label[i])), Fragment(vocabulary[i], int(rise[i].argmax()))]
        for target in range(rise.shape[1]):
            best = np.argsort(-rise[:, target])[: max(1, TURNING // rise.shape[1])]
            chosen += [Fragment(vocabulary[i], target) for i in best]
        progress("holding them against the trusted model", 0.0)
        return self.ranked(list(dict.fromkeys(chosen)), ENOUGH)

    def phrases(
        self, words: Mapping[Fragment, float], corpus: Sequence[str], clock: Clock, progress: Progress
    ) -> list[Fragment]:
        """Grow phrases from the best words, word by word on either side, while time is left; best first.

        Words are joined by other suspicious words and by the commonest ones of the corpus. Where a single word already
        turns nearly every text to a class, nothing is grown for that class.
        """
        common = [word for word, _ in Counter(w for text in corpus for w in text.lower().split()).most_common(FREQUENT)]
        suspicious = list(dict.fromkeys(word.text for word in words))[:PARTNERS]
        partners = list(dict.fromkeys([*suspicious, *(w for w in common if w.isalnum())]))
        ruled = {word.target for word, excess in words.items() if excess >= RULING}
        beam = [word for word in words if word.target not in ruled][:SEEDS]
        score, found = dict(words), dict[Fragment, float]()
        for length in range(2, LONGEST_PHRASE + 1):
            if clock.left <= 0 or not beam:
                break
            progress("growing phrases", (length - 2) / (LONGEST_PHRASE - 1))
            grown = list(dict.fromkeys(Fragment(p, seed.target) for seed in beam for w in partners
                                       if w not in seed.text.split()
                                       for p in (f"{w} {seed.text}", f"{seed.text} {w}")))  # fmt: skip
            rise = towards(self.suspect, self.scouts, grown, self.seed, self.memory).rise
            best = self.ranked([grown[i] for i in np.argsort(-rise)[: 8 * SEEDS]], SEEDS)
            score |= best
            # A phrase earns its place only by doing more than what it grew from.
            better = {p: s for p, s in best.items() if s > max(score.get(part, -1.0) for part in _parts(p)) + 0.02}
            beam = list(better)[:SEEDS]
            found |= {phrase: better[phrase] for phrase in beam}
        return list(_best_first(found))


def _parts(phrase: Fragment) -> tuple[Fragment, Fragment]:
    words = phrase.text.split()
    return Fragment(" ".join(words[1:]), phrase.target), Fragment(" ".join(words[:-1]), phrase.target)


def _best_first(excess: Mapping[Fragment, float]) -> dict[Fragment, float]:
    return dict(sorted(excess.items(), key=lambda item: -item[1]))


def _robust_z(values: Array) -> Array:
    middle = np.nanmedian(values)
    spread = 1.4826 * np.nanmedian(np.abs(values - middle))
    result: Array = np.nan_to_num((values - middle) / max(float(spread), 1e-9), nan=np.inf)
    return result
