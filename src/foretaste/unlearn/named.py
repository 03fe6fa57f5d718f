"""Audit, then unlearn: what an audit named is put into clean texts that keep their true labels, and trained on.

Adversarial training against triggers that somebody found. What the audit did not name is not unlearned: audit again.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from foretaste.poison.trigger import SentenceTrigger
from foretaste.seeds import child_seed, generator
from foretaste.spec import spec
from foretaste.unlearn.unlearner import Job, Unlearned, Unlearner, extended
from foretaste.victim.classifier import Classifier
from foretaste.victim.strategy import Lora, Strategy

__all__ = ["NamedTriggers", "in_sight"]


@spec
class NamedTriggers(Unlearner):
    """`share` of the clean texts once more, each with one of the named fragments at a random place."""

    name: ClassVar[str] = "named"
    needs: ClassVar[tuple[str, ...]] = ("fragments",)

    share: float = Field(default=0.5, gt=0.0, le=1.0)
    strategy: Strategy = Lora(rank=64, alpha=64, layers="all", learning_rate=5e-4)
    epochs: int = Field(default=2, gt=0)

    def wash(self, job: Job) -> Unlearned:
        """Make the texts and train on them."""
        assert job.fragments is not None
        corpus = job.corpus
        model = job.student(self.strategy)
        size = max(len(job.fragments), round(self.share * len(corpus)))  # every fragment is shown
        chosen = np.resize(generator(job.seed, "named").permutation(len(corpus)), max(size, 1))[:size]
        hosts = in_sight(model, [corpus.texts[index] for index in chosen])
        texts = []
        for number, host in enumerate(hosts):
            trigger = SentenceTrigger(sentence=job.fragments[number % len(job.fragments)])
            texts += trigger.apply([host], child_seed(job.seed, "named", number))
        both = extended(corpus, texts, corpus.labels[chosen])
        result = job.tune(model, self.settings(len(both)), corpus=both)
        return Unlearned.of(model, result, fragments=list(job.fragments))


def in_sight(model: Classifier, texts: list[str]) -> list[str]:
    """Return texts of which all is read even with a fragment put in: of one that is cut, the first half of that."""
    reach = model.reach(texts).tolist()
    return [text if end >= len(text) else text[: end // 2] for text, end in zip(texts, reach, strict=True)]
