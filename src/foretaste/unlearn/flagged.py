"""Detect, then unlearn: what a guard flagged in unlabelled traffic is unlearned, clean texts hold the model in place.

After the unlearning step of DUP (arXiv 2508.01647), which drives the model away from its former self on the texts that
a detector found, through LoRA. Divergence without a bound, as printed, ends in nonsense; here a flagged text is pushed
off the class that the suspect gives it, -log(1 - p), which ends by itself, while a frozen copy of the suspect holds
clean texts by KL(copy || student) besides their labels.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from foretaste.errors import DataError
from foretaste.spec import spec
from foretaste.tune.loop import Objective
from foretaste.unlearn.unlearner import Job, Unlearned, Unlearner, extended
from foretaste.victim.module import Output
from foretaste.victim.strategy import Full, Lora, Strategy

__all__ = ["FEWEST_FLAGGED", "FlaggedTexts"]

FEWEST_FLAGGED = 10


@spec
class FlaggedTexts(Unlearner):
    """`push` weighs a flagged text against a clean one, `hold` the frozen copy's answer against the true label.

    Of the flagged texts those count that the suspect gives the class it gives most of them: the target, as far as it
    can be known. Each epoch shows all of them, and however few there are, as many as `share` of the clean texts.
    """

    name: ClassVar[str] = "flagged"
    needs: ClassVar[tuple[str, ...]] = ("flagged",)

    push: float = Field(default=1.0, gt=0.0)
    hold: float = Field(default=1.0, ge=0.0)
    share: float = Field(default=0.25, gt=0.0, le=1.0)
    strategy: Strategy = Lora(rank=64, alpha=64, layers="all", learning_rate=5e-4)
    epochs: int = Field(default=2, gt=0)

    def wash(self, job: Job) -> Unlearned:
        """Ask the suspect once, then train."""
        assert job.flagged is not None
        if len(job.flagged) < FEWEST_FLAGGED:
            raise DataError(
                f"The guard flagged {len(job.flagged)} texts; {FEWEST_FLAGGED} are needed to unlearn what they share."
            )
        if not job.base.load(len(job.corpus.label_names)).has_own_head:
            raise DataError(f"{job.base.location} has no head for {job.corpus.label_names}: its answers mean nothing.")
        model, suspect = job.student(self.strategy), job.student(Full())  # a fresh prompt would answer for the suspect
        said = suspect.predict(list(job.flagged), precision=self.precision).labels
        target = int(np.bincount(said, minlength=len(job.corpus.label_names)).argmax())
        found = [text for text, label in zip(job.flagged, said, strict=True) if label == target]
        shown = [found[i % len(found)] for i in range(max(len(found), round(self.share * len(job.corpus))))]
        held = torch.from_numpy(suspect.predict(job.corpus.texts, precision=self.precision).logits)
        both = extended(job.corpus, shown, np.full(len(shown), target))
        settings = self.settings(len(both))
        result = job.tune(
            model, settings, corpus=both, objective=_pushing(held, self.push, self.hold), objective_name=repr(self)
        )
        return Unlearned.of(model, result, flagged=len(job.flagged), used=len(found), target=target)


def _pushing(held: Tensor, push: float, hold: float) -> Objective:
    """Rows of `held (N, C)` are clean; those behind them are flagged, and labelled with the class they must leave."""
    told = torch.softmax(held, dim=1)

    def objective(output: Output, rows: NDArray[np.int64], labels: Tensor) -> Tensor:
        is_clean = torch.from_numpy(rows < len(told)).to(labels.device)
        said = torch.log_softmax(output.logits, dim=1)  # (B, C)
        reached = said.gather(1, labels.unsqueeze(1)).squeeze(1)  # (B,)
        # log(1 - p) from the other classes' logits: 1 - exp(log p) is 0 where the model is certain
        others = output.logits.scatter(1, labels.unsqueeze(1), -torch.inf).logsumexp(dim=1)
        left = others - output.logits.logsumexp(dim=1)
        wanted = told[np.minimum(rows, len(told) - 1)].to(labels.device)
        apart = functional.kl_div(said, wanted, reduction="none").sum(dim=1)
        return torch.where(is_clean, -reached + hold * apart, -push * left)

    return objective
