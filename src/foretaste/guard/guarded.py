"""A victim behind a guard: a label only for texts the guard lets pass (Algorithm 1 of the PSIM paper)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foretaste.errors import GuardError
from foretaste.evaluate.threshold import is_flagged
from foretaste.guard.guard import Reason, judge
from foretaste.guard.opinion import OpinionGuard
from foretaste.guard.psim_guard import PsimGuard
from foretaste.victim.batch import Encoded, encode, reach
from foretaste.victim.classifier import Classifier, Precision, Predictions

__all__ = ["GuardedClassifier", "GuardedVerdict"]


@dataclass(frozen=True, slots=True)
class GuardedVerdict:
    """The answer for one text; a refused text has neither label nor confidence.

    `truncated` says that the text was longer than what the victim reads.
    """

    label: str | None
    confidence: float | None
    flagged: bool
    score: float
    threshold: float
    reason: Reason
    truncated: bool


class GuardedClassifier:
    """Calls the guard first and the victim only on accepted texts; it fails closed.

    `precision` is the victim's (in 8-bit whole numbers: `victim.in_int8()`); the guard scores in the arithmetic it was
    calibrated in.

    The guard stands on the victim's base, or on the victim itself: then on this one alone, adapter and head included.
    A guard of the base does not see what the victim's own adapter holds. A text that PSIM refuses is asked no further:
    in `__call__` its score is PSIM's; a second opinion (`guard.opinion`) and transplants are for the others only.

    Raises:
        GuardError: the guard stands neither on the victim's base nor on the victim (`foreign_base`), is asked otherwise
            (`instruction_mismatch`), reads less of a text than the victim (`short_sight`), names other labels
            (`label_mismatch`), or looks at the answers of another victim (`foreign_victim`).
    """

    def __init__(self, victim: Classifier, guard: PsimGuard | OpinionGuard, precision: Precision = "float32") -> None:
        if isinstance(guard, PsimGuard):
            _refuse_misfit(victim, guard.classifier)
        guard.refuse_misfit(victim)
        self.victim, self.guard, self.precision = victim, guard, precision

    @property
    def threshold(self) -> float:
        """The highest score that is accepted."""
        return self.guard.threshold

    @property
    def _sight(self) -> int:
        return self.guard.classifier.max_length if isinstance(self.guard, PsimGuard) else self.victim.max_length

    def reach(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return how many characters of each text the guard reads, `(N,) int64`."""
        return reach(self.victim.tokenizer, texts, self._sight)

    def score(
        self,
        texts: Sequence[str],
        encoded: Encoded | None = None,
        said: Predictions | None = None,
        *,
        is_progress_shown: bool = False,
    ) -> NDArray[np.float64]:
        """Return the guard's score of each text, `(N,) float64`.

        `encoded` is how the victim reads them and `said` what it answers, where they are known.
        """
        encoded = self.victim.encode(texts) if encoded is None else encoded
        scores = self._taste(texts, encoded)
        if not self.guard.asks_victim:
            return scores
        said = self.victim.predict(encoded, precision=self.precision) if said is None else said
        return self.guard.behind(self.victim, said, texts, scores, is_progress_shown=is_progress_shown)

    def _taste(self, texts: Sequence[str], encoded: Encoded) -> NDArray[np.float64]:
        """Return PSIM's scores `(N,)`; without PSIM 0, which is below every surprise."""
        if isinstance(self.guard, OpinionGuard):
            return np.zeros(len(texts))
        # Both stand on the same base; one tokenizer for both, so that the guard surely reads what the victim reads.
        seen = encoded if self._sight == self.victim.max_length else encode(self.victim.tokenizer, texts, self._sight)
        return self.guard.judge(self.guard.predict(seen))

    def __call__(self, texts: Sequence[str]) -> list[GuardedVerdict]:
        """Return one verdict per text, in order; an exception means that no text was let through."""
        encoded = self.victim.encode(texts)
        scores = self._taste(texts, encoded)
        passed = np.flatnonzero(~is_flagged(scores, self.guard.threshold))
        said = self.victim.predict(encoded.select(passed), precision=self.precision) if len(passed) else None
        if said is not None:
            scores[passed] = self.guard.behind(self.victim, said, [texts[i] for i in passed.tolist()], scores[passed])
        verdicts = judge(scores, encoded.is_truncated, self.guard.threshold)
        answers: list[GuardedVerdict] = [
            GuardedVerdict(None, None, True, v.score, v.threshold, v.reason, v.truncated) for v in verdicts
        ]
        if said is not None:
            for index, row in zip(passed, said.probabilities, strict=True):
                verdict = verdicts[index]
                if verdict.flagged:
                    continue
                best = int(row.argmax())
                is_sound = bool(np.isfinite(row).all())  # a row is NaN where one of its logits is not finite
                answers[index] = GuardedVerdict(
                    label=self.victim.label_names[best] if is_sound else None,
                    confidence=float(row[best]) if is_sound else None,
                    flagged=not is_sound,
                    score=verdict.score,
                    threshold=verdict.threshold,
                    reason=Reason.ACCEPTED if is_sound else Reason.VICTIM_NOT_FINITE,
                    truncated=verdict.truncated,
                )
        return answers


def _refuse_misfit(victim: Classifier, inside: Classifier) -> None:
    if not victim.stands_on(inside.base_fingerprint):
        raise GuardError(
            "The guard was trained neither on the victim's base nor on the victim itself; a guard sees only the "
            f"backdoor of what it was trained on ({inside.base_fingerprint[:12]}, the base of the victim is "
            f"{victim.base_fingerprint[:12]}).",
            code="foreign_base",
        )
    if inside.instruction != victim.instruction:
        raise GuardError(
            f"The guard is asked with {inside.instruction}, the victim with {victim.instruction}; what the one says of "
            "a text says nothing about the other.",
            code="instruction_mismatch",
        )
    if inside.max_length < victim.max_length:
        raise GuardError(
            f"The guard reads {inside.max_length} tokens, the victim {victim.max_length}: a trigger behind the "
            "guard's cut would pass. Train the guard with the victim's maximum length, or the victim with "
            f"{inside.max_length} (virtual tokens take room from the text).",
            code="short_sight",
        )
    if inside.label_names != victim.label_names:
        raise GuardError(
            f"The guard knows the labels {inside.label_names}, the victim {victim.label_names}.",
            code="label_mismatch",
        )
