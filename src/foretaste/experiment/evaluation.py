"""Victim and guard on clean and triggered texts: the predictions, the scores and the outcome."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from foretaste.data.corpus import Corpus
from foretaste.errors import DataError
from foretaste.evaluate.metrics import goals_of
from foretaste.evaluate.outcome import Outcome, measure
from foretaste.guard.guarded import GuardedClassifier
from foretaste.guard.opinion import OpinionGuard
from foretaste.guard.psim_guard import PsimGuard
from foretaste.poison.attack import triggered_test
from foretaste.poison.trigger import Trigger
from foretaste.victim.classifier import Classifier, Precision

__all__ = ["Evaluation", "Judged", "evaluate"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Judged:
    """Texts with what the victim (and the guard, if there is one) said of each; all arrays are `(N,)`.

    Where the victim's logits are not finite, `predicted` is -1, no label at all, and `confidence` is NaN.
    """

    corpus: Corpus
    predicted: NDArray[np.int64]
    confidence: Array
    is_truncated: NDArray[np.bool_]
    scores: Array | None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """An outcome and what it was measured on.

    `is_origin_correct` `(M,)` says where the victim is known to answer rightly without the trigger; None if that is
    known of no text.
    """

    outcome: Outcome
    clean: Judged
    triggered: Judged
    is_origin_correct: NDArray[np.bool_] | None

    def behind(self, clean_scores: Array, triggered_scores: Array, threshold: float) -> Outcome:
        """Return the rates behind a guard that scored the same texts, `(N,)` and `(M,)`, on its own."""
        return _measured(
            replace(self.clean, scores=clean_scores),
            replace(self.triggered, scores=triggered_scores),
            self.outcome.target,
            self.is_origin_correct,
            threshold,
        )


def evaluate(
    victim: Classifier,
    guard: PsimGuard | OpinionGuard | None,
    corpus: Corpus,
    trigger: Trigger,
    target: int | None = 0,
    *,
    seed: int = 0,
    precision: Precision = "float32",
    is_progress_shown: bool = False,
) -> Evaluation:
    """Run a victim, and a guard if given, over clean texts and over the same texts with the trigger.

    Every eligible text (true class not the target) is triggered; a text counts for strict ASR if the victim
    classifies its clean original correctly. With target None (all to all) every text is, and has to end at the class
    after its own.

    Raises:
        PlanError, DataError: the trigger or target does not fit the corpus, or its labels the victim's.
        GuardError: the guard does not belong to the victim.
    """
    if corpus.label_names != victim.label_names:
        raise DataError(
            f"{corpus.name} has the labels {corpus.label_names}, the victim was trained on {victim.label_names}."
        )
    guarded = None if guard is None else GuardedClassifier(victim, guard)  # refuses a guard that does not fit
    triggered = triggered_test(corpus, trigger, target, seed)
    clean_side = _judge(victim, guarded, corpus, precision, is_progress_shown)
    triggered_side = _judge(victim, guarded, triggered.corpus, precision, is_progress_shown)
    correct = triggered.origin_holds(clean_side.predicted == corpus.labels)
    outcome = _measured(clean_side, triggered_side, target, correct, None if guard is None else guard.threshold)
    return Evaluation(outcome, clean_side, triggered_side, correct)


def _measured(
    clean: Judged, triggered: Judged, target: int | None, correct: NDArray[np.bool_] | None, threshold: float | None
) -> Outcome:
    goals = goals_of(triggered.corpus.labels, target, len(triggered.corpus.label_names))
    return measure(
        clean_labels=clean.corpus.labels,
        clean_predicted=clean.predicted,
        poisoned_labels=triggered.corpus.labels,
        poisoned_predicted=triggered.predicted,
        target=goals if target is None else target,
        is_origin_correct=correct,
        clean_scores=clean.scores,
        poisoned_scores=triggered.scores,
        threshold=threshold,
    )


def _judge(
    victim: Classifier,
    guarded: GuardedClassifier | None,
    corpus: Corpus,
    precision: Precision,
    is_progress_shown: bool,
) -> Judged:
    encoded = victim.encode(corpus.texts)
    predictions = victim.predict(encoded, precision=precision)
    scores = None
    if guarded is not None:
        scores = guarded.score(corpus.texts, encoded, predictions, is_progress_shown=is_progress_shown)
    return Judged(
        corpus=corpus,
        predicted=predictions.answers,
        confidence=predictions.certainty,
        is_truncated=predictions.is_truncated,
        scores=scores,
    )
