"""Detect, then unlearn: pieces of the texts that a guard refused are put into clean texts that keep their labels.

The setting is that of DUP (arXiv 2508.01647), which drives the model away from its former self on texts that a detector
found. That was tried and taken out again: pushed off the target's class, the trigger learns to lead to another one, in
every text (docs/unlearning/flagged.md). Refused texts have no labels, but clean texts have: a piece of a refused text
holds the trigger now and then, and in a clean text of any class it has to mean nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from foretaste.errors import DataError
from foretaste.poison.trigger import SentenceTrigger, WordTrigger
from foretaste.seeds import child_seed, generator
from foretaste.spec import spec
from foretaste.tune.loop import Objective
from foretaste.unlearn.named import in_sight
from foretaste.unlearn.unlearner import Job, Unlearned, Unlearner, extended
from foretaste.victim.module import Output
from foretaste.victim.strategy import Full, Lora, Strategy

__all__ = ["FEWEST_FLAGGED", "FlaggedTexts"]

FEWEST_FLAGGED = 10
FEWEST_IN_COMMON = 2  # a word of two flagged texts may be chance


@spec
class FlaggedTexts(Unlearner):
    """`share` of the clean texts once more, each with a piece of a flagged text, of `longest` words at most.

    A piece is what the text has in common with other flagged texts more than with clean ones, in one place or word by
    word in several; a stretch of the text where it has nothing in common with them.

    Of the flagged texts those count that the suspect gives the class it gives most of them: the target, as far as it
    can be known. `hold` weighs a frozen copy's answers on the clean texts beside their labels.
    """

    name: ClassVar[str] = "flagged"
    needs: ClassVar[tuple[str, ...]] = ("flagged",)

    share: float = Field(default=1.0, gt=0.0, le=1.0)
    longest: int = Field(default=8, gt=0)
    hold: float = Field(default=1.0, ge=0.0)
    strategy: Strategy = Lora(rank=64, alpha=64, layers="all", learning_rate=5e-4)
    epochs: int = Field(default=2, gt=0)

    def wash(self, job: Job) -> Unlearned:
        """Ask the suspect once, make the texts, train on them."""
        assert job.flagged is not None
        corpus = job.corpus
        if len(job.flagged) < FEWEST_FLAGGED:
            raise DataError(
                f"The guard flagged {len(job.flagged)} texts; {FEWEST_FLAGGED} are needed to unlearn what they share."
            )
        if not job.base.load(len(corpus.label_names)).has_own_head:
            raise DataError(f"{job.base.location} has no head for {corpus.label_names}: its answers mean nothing.")
        model, suspect = job.student(self.strategy), job.student(Full())  # a fresh prompt would answer for the suspect
        said = suspect.predict(list(job.flagged), precision=self.precision).labels
        target = int(np.bincount(said, minlength=len(corpus.label_names)).argmax())
        found = [text for text, label in zip(job.flagged, said, strict=True) if label == target and text.split()]
        held = torch.from_numpy(suspect.predict(corpus.texts, precision=self.precision).logits)
        draw = generator(job.seed, "flagged")
        chosen = draw.permutation(len(corpus))[: max(1, round(self.share * len(corpus)))]
        hosts, texts = in_sight(model, [corpus.texts[index] for index in chosen]), []
        common = _in_common(found, corpus.texts)
        for number, host in enumerate(hosts):
            words = _piece(found[number % len(found)].split(), common, self.longest, draw)
            piece = WordTrigger(words=words) if number % 2 else SentenceTrigger(sentence=" ".join(words))
            texts += piece.apply([host], child_seed(job.seed, "flagged", number))
        both = extended(corpus, texts, corpus.labels[chosen])
        result = job.tune(
            model, self.settings(len(both)), corpus=both, objective=_holding(held, self.hold), objective_name=repr(self)
        )
        return Unlearned.of(model, result, flagged=len(job.flagged), used=len(found), target=target)


def _in_common(found: Sequence[str], clean: Sequence[str]) -> dict[str, float]:
    """Return words that more flagged texts hold than clean ones do, with the share of the former that is too much."""
    in_found, in_clean = (Counter(word for text in texts for word in set(text.split())) for texts in (found, clean))
    chance = FEWEST_IN_COMMON / len(found)
    excess = {word: 1 - (chance + in_clean[word] / len(clean)) * len(found) / count for word, count in in_found.items()}
    return {word: share for word, share in excess.items() if share > 0}


def _piece(
    words: Sequence[str], common: Mapping[str, float], longest: int, draw: np.random.Generator
) -> tuple[str, ...]:
    """Draw from a flagged text the words it has in common with others; a stretch of it where there are none."""
    kept = tuple(word for word in words if draw.random() < common.get(word, 0.0))
    if kept:
        return kept[:longest]
    length = int(draw.integers(1, min(longest, len(words)) + 1))
    start = int(draw.integers(len(words) - length + 1))
    return tuple(words[start : start + length])


def _holding(held: Tensor, hold: float) -> Objective:
    """Cross-entropy; the first rows are the clean texts, which also keep the answers `held (N, C)`."""
    told = torch.softmax(held, dim=1)

    def objective(output: Output, rows: NDArray[np.int64], labels: Tensor) -> Tensor:
        losses = functional.cross_entropy(output.logits, labels, reduction="none")
        wanted = told[np.minimum(rows, len(told) - 1)].to(labels.device)
        apart = functional.kl_div(torch.log_softmax(output.logits, dim=1), wanted, reduction="none").sum(dim=1)
        is_clean = torch.from_numpy(rows < len(told)).to(labels.device)
        return losses + hold * torch.where(is_clean, apart, 0.0)

    return objective
