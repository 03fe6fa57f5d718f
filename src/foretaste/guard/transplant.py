"""Transplants: do a few words of a text turn other texts as well? Then they are a trigger, whatever PSIM sees in them.

SentiNet (Chou et al. 2018, arXiv 1812.00292) cuts from an image what its answer hangs on and pastes it into others.
Here it is words: the victim says which of a text's words its answer hangs on; the first one, two and four of them are
put into clean texts of other classes. What an honest word does depends on the text that it is put into; a backdoor
makes one answer of them all. The score is therefore the victim's mean margin for its answer, less twice the spread.

Among the texts examined PSIM's score and this one speak of different things: their p-values are multiplied.

That costs twenty to seventy more answers of the victim for a text, so only those are examined that PSIM finds a
little suspicious: a share of clean texts that the user chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from foretaste.data.corpus import Corpus
from foretaste.errors import DataError, GuardError, PlanError
from foretaste.guard.looks import surprise
from foretaste.guard.pieces import SIZES, Piece, cut_out, margins_of, rank_words
from foretaste.seeds import generator
from foretaste.spec import spec
from foretaste.tune.progress import meter
from foretaste.victim.classifier import Classifier, Predictions

__all__ = ["Transplant", "TransplantTest"]

SINGLE = (
    4  # of a text's words for its answer, so many are put into other texts singly; then the first two, the first four
)
HOSTS, FEWEST_HOSTS = 12, 6  # texts they are put into, of other classes than the answer
FIRST_HOSTS, GOING_ON = 4, 0.25  # what a quarter of the clean texts that are examined gets past
NOTHING = float(np.finfo(np.float64).min)
HOST_WORDS = (4, 8)  # of each host no more than its beginning is used
SPREAD = 2.0
RANKED, FEWEST_RANKED, FEWEST_EXAMINED = 600, 100, 20  # clean texts, the share of which that is examined is ranked
AT_ONCE = 64  # texts examined in one go, so that memory stays small

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Transplant:
    """What a victim's words do in other texts.

    `hosts` are, for each class, beginnings of clean texts of that class that the victim answers right. A text is
    examined if PSIM's score is above `gate`; for each of the K `SIZES` its words go on from the first four hosts to
    all twelve if the score there is above `first (K,) float64`. `clean (K, R) float64` are scores of clean texts that
    were examined, those that did not get so far at the lowest; `victim` is the fingerprint of the victim.
    """

    hosts: tuple[tuple[str, ...], ...]
    gate: float
    first: Array
    clean: Array
    victim: str

    def __post_init__(self) -> None:
        """Refuse too few hosts for one of the answers (DataError), or numbers for other sizes."""
        counts = [len(own) for own in self.hosts]
        if sum(counts) - max(counts) < FEWEST_HOSTS:
            raise DataError(
                f"{' and '.join(map(str, counts))} hosts of the classes are too few: for each answer {FEWEST_HOSTS} of "
                "other classes are needed."
            )
        if not len(self.first) == len(self.clean) == len(SIZES):
            raise DataError(f"Scores of {len(self.clean)} sizes, not {len(SIZES)}.")

    def surprise(
        self,
        victim: Classifier,
        said: Predictions,
        texts: Sequence[str],
        tasted: Array,
        *,
        is_progress_shown: bool = False,
    ) -> Array:
        """Return -log10 of each text's p-value against clean texts that are examined, too: `(N,) float64`.

        Of the K sizes, the highest. `tasted (N,)` are PSIM's scores; 0 for a text that is not examined, NaN where the
        victim gives no number.
        """
        result = np.zeros(len(texts))
        chosen = np.flatnonzero(tasted > self.gate)
        if len(chosen):
            seen = victim.seen([texts[i] for i in chosen.tolist()], said.is_truncated[chosen])
            scores = self.examine(victim, said.labels[chosen], seen, is_progress_shown=is_progress_shown)
            levels = [surprise(scores[:, k], self.clean[k]) for k in range(len(SIZES))]
            result[chosen] = np.max(levels, axis=0)  # keeps NaN
        return result

    def examine(
        self, victim: Classifier, labels: NDArray[np.int64], texts: Sequence[str], *, is_progress_shown: bool = False
    ) -> Array:
        """Return for each text how surely its first words for the answer turn others, `(N, K) float64`.

        NOTHING where they do not in the first four hosts, or where a text has no words.
        """
        scores = [np.empty((0, len(SIZES)))]
        with meter("transplants", len(texts), is_shown=is_progress_shown) as progress:
            for start in range(0, len(texts), AT_ONCE):
                few, own = texts[start : start + AT_ONCE], labels[start : start + AT_ONCE]
                pieces = list(map(cut_out, few, rank_words(victim, own, few)))
                early = self.turn(victim, own, pieces, slice(0, FIRST_HOSTS))
                kept = [
                    [piece for piece, score in zip(row, tried, strict=True) if not score <= self.first[piece.size]]
                    for row, tried in zip(pieces, early, strict=True)
                ]
                scores.append(_best(kept, self.turn(victim, own, kept, slice(None))))
                progress.advance(len(few))
        return np.concatenate(scores)

    def turn(
        self, victim: Classifier, labels: NDArray[np.int64], pieces: Sequence[Sequence[Piece]], which: slice
    ) -> list[Array]:
        """Put pieces of N texts into some of the hosts: mean margin of the answer less twice its spread, for each.

        A margin is the answer's logit less the highest other one.
        """
        asked = [
            self._carry(piece.text, label, which)
            for own, label in zip(pieces, labels.tolist(), strict=True)
            for piece in own
        ]
        targets = np.repeat(labels, [len(own) for own in pieces])
        targets = np.repeat(targets, [len(texts) for texts in asked])
        margins = margins_of(victim, [text for texts in asked for text in texts], targets)
        scores, start = list[float](), 0
        for texts in asked:
            own = margins[start : start + len(texts)]
            scores.append(float(own.mean() - SPREAD * own.std()))
            start += len(texts)
        return np.split(np.array(scores), np.cumsum([len(own) for own in pieces])[:-1])

    def refuse_misfit(self, victim: Classifier) -> None:
        """Raise GuardError (`foreign_victim`) for a victim that this was not made with."""
        if victim.own_fingerprint != self.victim:
            raise GuardError(
                "The transplants were calibrated with another victim; make a guard with this one.",
                code="foreign_victim",
            )

    def _carry(self, fragment: str, label: int, which: slice) -> list[str]:
        """Put a fragment into the middle of hosts of other classes, which take turns."""
        others = [texts for number, texts in enumerate(self.hosts) if number != label]
        turns = [texts[turn] for turn in range(HOSTS) for texts in others if turn < len(texts)]
        halves = [
            (words[: len(words) // 2], words[len(words) // 2 :]) for words in map(str.split, turns[:HOSTS][which])
        ]
        return [" ".join([*before, fragment, *behind]) for before, behind in halves]


@spec
class TransplantTest:
    """How transplants are prepared: `share` of clean texts is examined, those that PSIM finds most suspicious."""

    share: float = Field(default=0.3, gt=0.0, le=1.0)

    def fit(
        self,
        taste: Callable[[Sequence[str]], Array],
        victim: Classifier,
        corpus: Corpus,
        *,
        seed: int = 0,
        is_progress_shown: bool = False,
    ) -> Transplant:
        """Choose hosts among clean texts, and rank what the test says of others; `taste` gives PSIM's scores.

        Raises:
            PlanError: texts with other labels than the victim's.
            DataError: too few texts, or too few that the victim answers right.
        """
        if corpus.label_names != victim.label_names:
            raise PlanError(f"{corpus.name} has the labels {corpus.label_names}, the victim {victim.label_names}.")
        order = generator(seed, "transplants").permutation(len(corpus))
        ranked, rest = order[: min(RANKED, len(order) // 2)], order[min(RANKED, len(order) // 2) :]
        if len(ranked) < FEWEST_RANKED:
            raise DataError(f"{corpus.name} has {len(corpus)} texts; transplants need {2 * FEWEST_RANKED}.")
        hosts, texts, sizes = _hosts(victim, corpus.select(rest)), corpus.select(ranked).texts, len(SIZES)
        none = Transplant(hosts, -1.0, np.full(sizes, np.inf), np.zeros((sizes, 2)), victim.own_fingerprint)
        tasted = taste(texts)
        gate = -1.0 if self.share == 1.0 else float(np.quantile(tasted, 1.0 - self.share))
        chosen = np.flatnonzero(tasted > gate)
        if len(chosen) < FEWEST_EXAMINED:
            raise DataError(
                f"{len(chosen)} of {len(texts)} clean texts would be examined, too few to rank others among them; at "
                f"least {FEWEST_EXAMINED} are needed. Raise the share or give more texts."
            )
        few = [texts[i] for i in chosen.tolist()]
        said = victim.predict(few)
        labels, seen = said.labels, victim.seen(few, said.is_truncated)
        pieces = list(map(cut_out, seen, rank_words(victim, labels, seen)))
        early = _best(pieces, none.turn(victim, labels, pieces, slice(0, FIRST_HOSTS)))
        test = replace(none, gate=gate, first=np.quantile(early, 1.0 - GOING_ON, axis=0))
        scores = test.examine(victim, labels, seen, is_progress_shown=is_progress_shown)
        lowest = np.min(scores, axis=0, initial=0.0, where=scores != NOTHING) - 1.0  # (K,)
        clean = np.maximum(scores, lowest)
        if not np.isfinite(clean).all():
            raise DataError("The victim gives no finite number for clean texts.")
        return replace(test, clean=np.ascontiguousarray(clean.T))


def _hosts(victim: Classifier, corpus: Corpus) -> tuple[tuple[str, ...], ...]:
    """Return up to 12 beginnings of texts of each class that the victim answers right.

    Only as many texts are tried as should do.
    """
    fewest, most = HOST_WORDS
    starts = [text.split()[:most] for text in corpus.texts[: 40 * HOSTS * len(corpus.label_names)]]
    indices = [i for i, words in enumerate(starts) if len(words) >= fewest]
    texts = [" ".join(starts[i]) for i in indices]
    labels = corpus.labels[indices]
    is_right = victim.predict(texts).labels == labels if texts else np.zeros(0, dtype=bool)
    return tuple(
        tuple(texts[i] for i in np.flatnonzero(is_right & (labels == label))[:HOSTS].tolist())
        for label in range(len(corpus.label_names))
    )


def _best(pieces: Sequence[Sequence[Piece]], scores: Sequence[Array]) -> Array:
    """Return the highest score of each size, `(N, K)`, NOTHING without a piece of it."""
    best = np.full((len(pieces), len(SIZES)), NOTHING)
    for row, (own, values) in enumerate(zip(pieces, scores, strict=True)):
        for piece, value in zip(own, values.tolist(), strict=True):
            best[row, piece.size] = np.maximum(best[row, piece.size], value)  # keeps NaN
    return best
