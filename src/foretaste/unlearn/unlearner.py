"""What every unlearner is: suspect weights and clean texts in, a model without the backdoor out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from foretaste.data.corpus import Corpus
from foretaste.errors import DataError, PlanError
from foretaste.spec import spec
from foretaste.tune.checkpoint import stage_of
from foretaste.tune.loop import Objective, TuneResult, TuneSettings, cross_entropy, tune
from foretaste.victim.checkpoint import TEXT_LENGTH, Base
from foretaste.victim.classifier import Classifier, Precision
from foretaste.victim.strategy import Strategy

__all__ = ["FEWEST_TEXTS", "Job", "Unlearned", "Unlearner", "extended", "refuse_unused"]

FEWEST_TEXTS = 20
LEAST_STEPS = 600


@dataclass(frozen=True, eq=False)
class Unlearned:
    """The model that came out, and what was done, as a JSON object for the record."""

    classifier: Classifier
    outcome: dict[str, Any]

    @classmethod
    def of(cls, classifier: Classifier, result: TuneResult, **more: Any) -> Unlearned:
        """Make one of a trained model, LoRA folded in, what its training took, and what else the method has to say."""
        known = {"trainable_parameters": result.trainable_parameters, "steps": result.steps, "shown": result.texts}
        return cls(classifier.merge(), {**known, **more})


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """What there is to work with: suspect weights, clean texts, and what some methods need besides.

    `teacher` is a clean model: a checkpoint, to be fine-tuned on the clean texts, a classifier, taken as it is, or
    "train": a small one, trained from random weights.
    `pretrained` are the weights that the suspect's were before anybody touched them. `flagged` are unlabelled texts
    that a guard refused, `fragments` words and phrases that an audit named.
    """

    base: Base
    corpus: Corpus
    validation: Corpus | None = None
    teacher: Base | Classifier | Literal["train"] | None = None
    pretrained: Base | None = None
    flagged: Sequence[str] | None = None
    fragments: Sequence[str] | None = None
    seed: int = 0
    max_length: int | None = None
    checkpoint: Path | None = None
    is_progress_shown: bool = False

    @property
    def length(self) -> int:
        """How many tokens of each text are read."""
        return self.max_length or self.base.text_length or TEXT_LENGTH

    def student(self, strategy: Strategy) -> Classifier:
        """Return the suspect with what `strategy` trains."""
        return self.base.classifier(strategy, self.corpus.label_names, max_length=self.length, seed=self.seed)

    def tune(
        self,
        classifier: Classifier,
        settings: TuneSettings,
        *,
        corpus: Corpus | None = None,
        objective: Objective = cross_entropy,
        objective_name: str = "cross_entropy",
        stage: str = "",
    ) -> TuneResult:
        """Train on the clean texts (or on `corpus`); an interrupted run continues. `stage` names one of several."""
        return tune(
            classifier,
            corpus or self.corpus,
            settings,
            seed=self.seed,
            validation=self.validation if settings.keep == "best" else None,
            objective=objective,
            objective_name=objective_name,
            checkpoint=self.checkpoint and stage_of(self.checkpoint, stage),
            title=f"unlearning {stage}".strip(),
            is_progress_shown=self.is_progress_shown,
        )


@spec
class Unlearner(ABC):
    """A method, as a frozen spec: its settings are fields, `needs` names what a job must bring besides clean texts.

    A training takes `epochs`, or as many more as make up `least_steps` optimiser steps: few texts are shown more often.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()

    epochs: int = Field(default=3, gt=0)
    least_steps: int = Field(default=LEAST_STEPS, ge=0)
    batch_size: int = Field(default=32, gt=0)
    precision: Precision = "auto"

    @property
    def stages(self) -> tuple[str, ...]:
        """The trainings it consists of, each with a checkpoint of its own."""
        return ("",)

    def apply(self, base: Base, corpus: Corpus, **given: Any) -> Unlearned:
        """Return the suspect's weights without their backdoor, as far as the method goes; `given` are fields of `Job`.

        The result is for scoring: to train it further, save it and open it as a base (not if it is a soft prompt).

        Raises:
            PlanError: what the method needs is not given.
            DataError: too few clean texts, or labels that do not fit.
            ModelError: weights that cannot be loaded, or a training that diverged.
        """
        job = Job(base=base, corpus=corpus, **given)
        for need in self.needs:
            if not getattr(job, need):
                raise PlanError(f"{self.name} needs {WANTED[need]}.")
        self.refuse_texts(corpus)
        found = self.wash(job)
        return Unlearned(found.classifier, {"method": self.name, "texts": len(corpus), **found.outcome})

    def refuse_texts(self, corpus: Corpus) -> None:
        """Raise DataError for too few clean texts."""
        if len(corpus) < FEWEST_TEXTS:
            raise DataError(f"{corpus.name} has {len(corpus)} clean texts; unlearning needs {FEWEST_TEXTS} or more.")

    def settings(self, texts: int, epochs: int | None = None, **more: Any) -> TuneSettings:
        """Return those of a training on so many texts; its last step is kept, unless `more` says otherwise."""
        steps = (epochs or self.epochs) * math.ceil(texts / self.batch_size)
        length = {"max_steps": self.least_steps} if steps < self.least_steps else {"epochs": epochs or self.epochs}
        return TuneSettings(
            **{"batch_size": self.batch_size, "precision": self.precision, "keep": "last", **length, **more}
        )

    @abstractmethod
    def wash(self, job: Job) -> Unlearned:
        """Do the work; `apply` has checked the job."""


def refuse_unused(method: Unlearner, **given: Any) -> None:
    """Raise PlanError for something given that the method has no use for: it would look as if it had counted."""
    for name, value in given.items():
        if value and name not in method.needs:
            raise PlanError(f"{method.name} has no use for {WANTED[name]}; leave it out.")


WANTED = {
    "teacher": "a clean teacher (--teacher minilm-l3, a directory, a hub id, or train)",
    "pretrained": "the clean pretrained weights that the suspect was made from (--pretrained)",
    "flagged": "texts that a guard flagged (--traffic and --guard)",
    "fragments": "words or phrases that turn the suspect (--fragment, or an audit's)",
}


def extended(corpus: Corpus, texts: Sequence[str], labels: Sequence[int] | NDArray[np.int64]) -> Corpus:
    """Return the clean texts with others behind them."""
    both = np.concatenate([corpus.labels, np.asarray(labels, dtype=np.int64)])
    return Corpus.of(f"{corpus.name}, and more", [*corpus.texts, *texts], both, corpus.label_names)
