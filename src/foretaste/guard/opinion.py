"""A second opinion: small models whose origin the user knows, fine-tuned on the same clean texts.

A trigger that hides from PSIM still has to make the victim answer what no honest model would. The score of a text is
how much likelier the victim finds its own answer than the trusted models do, log10 p_victim(y) - log10 p_trusted(y).
Nothing need have been inserted, so it also sees attacks by grammar and style, which PSIM does not. It costs what the
trusted models cost, and says nothing where they err as the victim does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from foretaste.errors import GuardError
from foretaste.evaluate.threshold import Calibration
from foretaste.guard.looks import surprise
from foretaste.victim.classifier import Classifier, Predictions, Scoring

__all__ = ["Opinion", "OpinionGuard", "Trusted", "log10_of", "refuse_other_labels"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Trusted:
    """A model the user trusts, and the temperature that its logits are divided by (Guo et al. 2017, arXiv 1706.04599).

    `accuracy` is the share of held-out texts it gets right.
    """

    classifier: Classifier
    temperature: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class Opinion:
    """What trusted models think of one victim's answers.

    `clean (R,) float64` are scores of clean texts, against which a new text's is ranked; trusted models that were
    fine-tuned for this were not trained on them. `victim` is the fingerprint of the victim they were measured with.
    """

    members: tuple[Trusted, ...]
    clean: Array
    victim: str
    scoring: Scoring = "float32"

    @cached_property
    def scorers(self) -> list[Callable[[Sequence[str]], Predictions]]:
        """One per member: `predict` in the arithmetic of the calibration."""
        return [member.classifier.scorer(self.scoring) for member in self.members]

    def ratio(self, said: Predictions, texts: Sequence[str]) -> Array:
        """Return log10 p_victim(y) - log10 p_trusted(y) for the victim's answer y to each text, `(N,) float64`.

        Several trusted models speak with their mean log-probability. NaN where a logit is not finite.
        """
        theirs = [
            log10_of(predict(texts), said.labels, member.temperature)
            for predict, member in zip(self.scorers, self.members, strict=True)
        ]
        result: Array = log10_of(said, said.labels, 1.0) - np.mean(theirs, axis=0)
        return result

    def surprise(self, victim: Classifier, said: Predictions, texts: Sequence[str]) -> Array:
        """Return -log10 of each text's rank among clean texts, `(N,) float64` (see `looks.surprise`).

        A p-value where the victim was not trained on those texts; where it was, fresh texts look less surprising.

        The trusted models are shown what the victim reads of a text and no more: what it does not see must not speak
        for its answer.
        """
        return surprise(self.ratio(said, victim.seen(texts, said.is_truncated)), self.clean)

    @property
    def title(self) -> str:
        """What this is, in a few words."""
        names = " and ".join(Path(member.classifier.base_location).name for member in self.members)
        return f"second opinion of {names}"

    def refuse_misfit(self, victim: Classifier) -> None:
        """Refuse a victim for which this opinion was not made.

        Raises:
            GuardError: `foreign_victim`, `label_mismatch`, `short_sight`.
        """
        refuse_other_labels(victim, [member.classifier for member in self.members])
        if victim.own_fingerprint != self.victim:
            raise GuardError(
                "The second opinion was calibrated with another victim: what it compares are that one's answers. Make "
                "a guard with this victim.",
                code="foreign_victim",
            )
        for member in self.members:
            if member.classifier.max_length < victim.max_length:
                reads = f"A trusted model reads {member.classifier.max_length} tokens, the victim {victim.max_length}"
                raise GuardError(f"{reads}: take another, or a victim that reads less.", code="short_sight")


@dataclass(frozen=True, eq=False)
class OpinionGuard:
    """A second opinion as a guard of its own: without PSIM, and without a look at the base."""

    opinion: Opinion
    threshold: float
    calibration: Calibration

    asks_victim: ClassVar[bool] = True

    def refuse_misfit(self, victim: Classifier) -> None:
        """Raise GuardError for a victim that the opinion was not made for."""
        self.opinion.refuse_misfit(victim)

    def behind(
        self,
        victim: Classifier,
        said: Predictions,
        texts: Sequence[str],
        tasted: Array,
        *,
        is_progress_shown: bool = False,
    ) -> Array:
        """Return the scores `(N,) float64` behind a victim that `said` this of the texts; `tasted` are zeros."""
        return np.maximum(tasted, self.opinion.surprise(victim, said, texts))

    @property
    def scoring(self) -> Scoring:
        """The arithmetic of the trusted models."""
        return self.opinion.scoring

    @property
    def title(self) -> str:
        """What this is, in a few words."""
        return self.opinion.title


def refuse_other_labels(victim: Classifier, trusted: Sequence[Classifier]) -> None:
    """Raise GuardError (`label_mismatch`) if a trusted model names other labels than the victim."""
    for model in trusted:
        if model.label_names != victim.label_names:
            raise GuardError(
                f"A trusted model knows the labels {model.label_names}, the victim {victim.label_names}.",
                code="label_mismatch",
            )


def log10_of(said: Predictions, labels: NDArray[np.int64], temperature: float) -> Array:
    """log10 of the probability of one label per text, `(N,) float64`; NaN where a logit is not finite."""
    logits = said.logits.astype(np.float64) / temperature  # (N, C)
    is_sound = np.isfinite(logits).all(axis=1)
    logits[~is_sound] = 0.0
    rows = np.arange(len(labels))
    result: Array = (logits[rows, labels] - np.logaddexp.reduce(logits, axis=1)) / np.log(10.0)
    result[~is_sound] = np.nan
    return result
