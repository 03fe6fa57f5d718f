"""Clean fine-tuning, with any of the five strategies: what every other unlearner has to beat.

Zhao et al. (2024, arXiv 2402.12168) start from its failure: parameter-efficient fine-tuning changes too little of the
weights to forget a trigger.
"""

from __future__ import annotations

from typing import ClassVar

from foretaste.spec import spec
from foretaste.unlearn.unlearner import Job, Unlearned, Unlearner
from foretaste.victim.strategy import Full, Strategy

__all__ = ["FineTuning"]


@spec
class FineTuning(Unlearner):
    """Which strategy, and how long."""

    name: ClassVar[str] = "fine_tuning"

    strategy: Strategy = Full()

    def wash(self, job: Job) -> Unlearned:
        """Train on the clean texts."""
        model = job.student(self.strategy)
        result = job.tune(model, self.settings(len(job.corpus)))
        return Unlearned.of(model, result)
