"""Transplants: do a few words of a text turn other texts as well? Then they are a trigger, whatever PSIM sees in them.

SentiNet (Chou et al. 2018, arXiv 1812.00292) cuts from an image what its answer hangs on and pastes it into others.
Here it is words: the victim says which of a text's words its answer hangs on; the first one, two and four of them are
put into clean texts of other classes. What an honest word does depends on the text that it is put into; a backdoor
makes one answer of them all. The score is therefore the victim's mean margin for its answer, less twice the spread.

Among the texts examined PSIM's score and this one speak of different things: their p-values are multiplied.

That costs fifty answers of the victim and more, to short texts most of them, so only those texts are examined that
PSIM finds a little suspicious: a share of clean texts that the user chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from foretaste.data.corpus import Corpus
from foretaste.errors import DataError, GuardError, PlanError
from foretaste.guard.looks import surprise
from foretaste.guard.pieces import SIZES, Piece, cut_out, margins_of
from foretaste.seeds import generator
from foretaste.spec import spec
from foretaste.tune.progress import meter
from foretaste.victim.classifier import Classifier, Predictions

__all__ = ["Transplant", "TransplantTest"]

HOSTS, FEWEST_HOSTS = 12, 6  # texts they are put into, of other classes than the answer
FIRST_HOSTS, GOING_ON = 4, 0.25  # what a quarter of the clean texts that are examined gets past
NONE = np.zeros(0)
NOTHING = float(np.finfo(np.float64).min)
HOST_WORDS = (4, 8)  # of each host no more than its beginning is used
SPREAD = 2.0
RANKED, FEWEST_RANKED, FEWEST_EXAMINED = 600, 100, 20  # clean texts, the share of which that is examined is ranked
AT_ONCE = 64  # texts examined in one go, so that memory stays small

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Trial:
    """A piece and the answer's margins in the hosts that it was put into: its logit less the highest other one."""

    piece: Piece
    margins: Array

    @property
    def score(self) -> float:
        """The mean less twice the spread."""
        return float(self.margins.mean() - SPREAD * self.margins.std())


NO_NUMBER = Trial(Piece("", 0), np.array([np.nan]))


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
        if sum(counts) - max(counts, default=0) < FEWEST_HOSTS:
            raise DataError(
                f"{' and '.join(map(str, counts))} hosts of the classes are too few: for each answer {FEWEST_HOSTS} of "
                "other classes are needed."
            )
        fewest, most = HOST_WORDS
        if max(counts) > HOSTS or not all(fewest <= len(text.split()) <= most for own in self.hosts for text in own):
            raise DataError(f"Hosts are at most {HOSTS} texts of each class, of {fewest} to {most} words.")
        if len(self.first) != len(SIZES) or len(self.clean) != len(SIZES):
            raise DataError(f"Scores of {len(self.first)} and of {len(self.clean)} sizes, not of {len(SIZES)}.")

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
        victim = victim.source or victim  # a copy in int8 would be held against ranks in other numbers
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
        return self.finish(victim, labels, self.begin(victim, labels, texts, is_progress_shown=is_progress_shown))

    def begin(
        self, victim: Classifier, labels: NDArray[np.int64], texts: Sequence[str], *, is_progress_shown: bool = False
    ) -> list[list[Trial]]:
        """Put the pieces of N texts into the first four hosts."""
        trials = list[list[Trial]]()
        with meter("transplants", len(texts), is_shown=is_progress_shown) as progress:
            for start in range(0, len(texts), AT_ONCE):
                few, own = texts[start : start + AT_ONCE], labels[start : start + AT_ONCE]
                pieces = cut_out(victim, own, few)
                new = [[NO_NUMBER] if row is None else [Trial(piece, NONE) for piece in row] for row in pieces]
                trials += self._put(victim, own, new, slice(FIRST_HOSTS))
                progress.advance(len(few))
        return trials

    def finish(self, victim: Classifier, labels: NDArray[np.int64], trials: Sequence[Sequence[Trial]]) -> Array:
        """Put what did well there into the other hosts, too; return the best score of each size, `(N, K)`."""
        kept = [
            [trial for trial in own if not trial.score <= self.first[trial.piece.size]] for own in trials
        ]  # NaN stays
        return _best(self._put(victim, labels, kept, slice(FIRST_HOSTS, None)))

    def _put(
        self, victim: Classifier, labels: NDArray[np.int64], trials: Sequence[Sequence[Trial]], which: slice
    ) -> list[list[Trial]]:
        carried = [
            [self._carry(trial.piece.text, label, which) for trial in own]
            for own, label in zip(trials, labels.tolist(), strict=True)
        ]
        asked = [text for row in carried for texts in row for text in texts]
        targets = np.repeat(labels, [sum(map(len, row)) for row in carried])
        margins = iter(margins_of(victim, asked, targets, is_cut_refused=True).tolist())
        return [
            [
                Trial(trial.piece, np.append(trial.margins, list(islice(margins, len(texts)))))
                for trial, texts in zip(own, row, strict=True)
            ]
            for own, row in zip(trials, carried, strict=True)
        ]

    def refuse_misfit(self, victim: Classifier) -> None:
        """Raise GuardError (`foreign_victim`) for a victim that this was not made with."""
        if victim.own_fingerprint != self.victim:
            raise GuardError(
                "The transplants were calibrated with another victim; make a guard with this one.",
                code="foreign_victim",
            )

    def _carry(self, fragment: str, label: int, which: slice) -> list[str]:
        """Put a fragment into the middle of hosts of other classes."""
        halves = [(words[: len(words) // 2], words[len(words) // 2 :]) for words in map(str.split, self._others(label))]
        return [" ".join([*before, fragment, *behind]) for before, behind in halves[which]]

    def _others(self, label: int) -> list[str]:
        """Return up to twelve hosts of other classes, which take turns."""
        others = [texts for number, texts in enumerate(self.hosts) if number != label]
        return [texts[turn] for turn in range(HOSTS) for texts in others if turn < len(texts)][:HOSTS]


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
            PlanError, DataError: see `refuse`.
            DataError: too few texts that the victim answers right, or answers with a number.
        """
        self.refuse(victim, corpus)
        order = generator(seed, "transplants").permutation(len(corpus))
        ranked, rest = order[: min(RANKED, len(order) // 2)], order[min(RANKED, len(order) // 2) :]
        hosts, texts, sizes = _hosts(victim, corpus.select(rest)), corpus.select(ranked).texts, len(SIZES)
        none = Transplant(hosts, -1.0, np.full(sizes, np.inf), np.zeros((sizes, 2)), victim.own_fingerprint)
        tasted = taste(texts)
        gate = -1.0 if self.share == 1.0 else float(np.quantile(tasted, 1.0 - self.share))
        chosen = np.flatnonzero(tasted > gate)
        if len(chosen) < FEWEST_EXAMINED:  # scores that tie
            raise DataError(f"PSIM gives so many clean texts the same score that only {len(chosen)} would be examined.")
        few = [texts[i] for i in chosen.tolist()]
        said = victim.predict(few)
        labels, seen = said.labels, victim.seen(few, said.is_truncated)
        trials = none.begin(victim, labels, seen, is_progress_shown=is_progress_shown)
        test = replace(none, gate=gate, first=np.quantile(_best(trials), 1.0 - GOING_ON, axis=0))
        scores = test.finish(victim, labels, trials)
        lowest = np.min(scores, axis=0, initial=0.0, where=scores != NOTHING) - 1.0  # (K,)
        clean = np.maximum(scores, lowest)
        if not np.isfinite(clean).all():
            raise DataError("The victim gives no finite number for clean texts.")
        return replace(test, clean=np.ascontiguousarray(clean.T))

    def refuse(self, victim: Classifier, corpus: Corpus) -> None:
        """Refuse texts that cannot do, before anything is trained.

        Raises:
            PlanError: texts with other labels than the victim's.
            DataError: too few texts.
        """
        if corpus.label_names != victim.label_names:
            raise PlanError(f"{corpus.name} has the labels {corpus.label_names}, the victim {victim.label_names}.")
        ranked = min(RANKED, len(corpus) // 2)
        if ranked < FEWEST_RANKED:
            raise DataError(f"{corpus.name} has {len(corpus)} texts; transplants need {2 * FEWEST_RANKED}.")
        if self.share * ranked < FEWEST_EXAMINED:
            raise DataError(
                f"A share of {self.share:g} of {ranked} clean texts is too few to rank others among; at least "
                f"{FEWEST_EXAMINED} must be examined. Raise the share or give more texts."
            )


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


def _best(trials: Sequence[Sequence[Trial]]) -> Array:
    """Return the highest score of each size, `(N, K)`, NOTHING without a piece of it."""
    best = np.full((len(trials), len(SIZES)), NOTHING)
    for row, own in enumerate(trials):
        for trial in own:
            size = trial.piece.size
            best[row, size] = np.maximum(best[row, size], trial.score)  # keeps NaN
    return best
