"""How a second opinion is made: trusted models are fine-tuned on clean texts, cooled or warmed, and ranked."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel
from pydantic import Field
from scipy.optimize import minimize_scalar

from foretaste.data.corpus import Corpus
from foretaste.errors import DataError, GuardError, PlanError
from foretaste.evaluate.threshold import allowed_above, calibrate
from foretaste.guard.opinion import Opinion, OpinionGuard, Trusted, log10_of, refuse_other_labels
from foretaste.spec import spec
from foretaste.tune.loop import TuneSettings, tune
from foretaste.victim.checkpoint import Base
from foretaste.victim.classifier import Classifier, Precision, Predictions, Scoring
from foretaste.victim.source import EMBEDDED
from foretaste.victim.strategy import Full

__all__ = ["SecondOpinion"]

HELD_OUT = 0.1  # of the clean texts: to choose the epoch, fit the temperature and rank scores against
FEWEST_HELD_OUT = 50
COOLEST, HOTTEST = 0.05, 20.0


@spec
class SecondOpinion:
    """How trusted models are fine-tuned, and how a guard made of them is calibrated (as in `Psim`).

    Few texts are read more than `epochs` times, until `fewest_steps` are taken: so gentle a rate needs them.
    """

    epochs: int = Field(default=2, gt=0)
    fewest_steps: int = Field(default=360, gt=0)
    batch_size: int = Field(default=32, gt=0)
    learning_rate: float = Field(default=5e-5, gt=0.0)
    frr: float = Field(default=0.01, gt=0.0, lt=1.0)
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)
    precision: Precision = "auto"
    scoring: Scoring = "float32"

    def tuned(
        self,
        base: Base,
        corpus: Corpus,
        *,
        max_length: int,
        seed: int = 0,
        number: int = 0,
        checkpoint: Path | None = None,
        title: str = "trusted model",
        is_progress_shown: bool = False,
    ) -> Classifier:
        """Fine-tune one trusted checkpoint as `consult` does its `number`-th, with texts and seed the same."""
        texts, rest = _held_out(corpus, seed)
        settings = TuneSettings(
            epochs=max(self.epochs, math.ceil(self.fewest_steps * self.batch_size / len(texts))),
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            precision=self.precision,
        )
        model = base.classifier(Full(), corpus.label_names, max_length=max_length, seed=seed + number)
        tune(
            model,
            texts,
            settings,
            seed=seed + number,
            validation=rest,
            checkpoint=checkpoint,
            title=title,
            is_progress_shown=is_progress_shown,
        )
        return model

    def consult(
        self,
        trusted: Sequence[Base | Classifier],
        victim: Classifier,
        corpus: Corpus,
        *,
        seed: int = 0,
        checkpoints: Sequence[Path] = (),
        is_progress_shown: bool = False,
    ) -> Opinion:
        """Fine-tune every trusted checkpoint on clean texts; a classifier is taken as it is, its adapter folded in.

        Each member has its own draw of batches; a tenth of the texts is held out for epoch, temperature and ranks.
        Trainings keep their progress in `checkpoints`, one directory each, if given, and continue from there.

        Raises:
            PlanError, DataError, GuardError: see `refuse`, which says so before anything is trained.
        """
        self.refuse(trusted, victim, corpus)
        rest = _held_out(corpus, seed)[1]
        members = []
        for number, found in enumerate(trusted):
            if isinstance(found, Classifier):
                model = _whole(found)
            else:
                model = self.tuned(
                    found,
                    corpus,
                    max_length=victim.max_length,
                    seed=seed,
                    number=number,
                    checkpoint=checkpoints[number] if checkpoints else None,
                    title=f"trusted model {number + 1} of {len(trusted)}",
                    is_progress_shown=is_progress_shown,
                )
            said = model.predict(rest.texts)
            accuracy = float(np.mean(said.labels == rest.labels))
            members.append(Trusted(model, _temperature(said, rest.labels), accuracy))
        opinion = Opinion(tuple(members), np.zeros(0), victim.own_fingerprint, self.scoring)
        own = victim.predict(rest.texts)
        return replace(opinion, clean=opinion.ratio(own, victim.seen(rest.texts, own.is_truncated)))

    def refuse(self, trusted: Sequence[Base | Classifier], victim: Classifier, corpus: Corpus) -> None:
        """Refuse what cannot become a second opinion.

        Raises:
            PlanError: no trusted model, or one with soft prompts, which cannot be stored whole.
            DataError: too few texts, or labels that are not the victim's.
            GuardError: a model that names other labels than the victim (`label_mismatch`) or stands on the very weights
                it is to judge (`not_trusted`).
        """
        if not trusted:
            raise PlanError("A second opinion needs a model that you trust; name one.")
        if corpus.label_names != victim.label_names:
            raise DataError(f"{corpus.name} has the labels {corpus.label_names}, the victim {victim.label_names}.")
        self.refuse_texts(corpus)
        refuse_other_labels(victim, [model for model in trusted if isinstance(model, Classifier)])
        for model in trusted:
            if (
                isinstance(model, Classifier)
                and isinstance(model.module.model, PeftModel)
                and model.strategy.name != "lora"
            ):
                raise PlanError(f"A trusted model with {model.strategy.name} cannot be stored whole; take another one.")
            location = model.base_location if isinstance(model, Classifier) else model.location
            mark = model.base_fingerprint if isinstance(model, Classifier) else model.fingerprint
            if mark == victim.base_fingerprint and location not in EMBEDDED:
                raise GuardError(
                    f"{location} holds the very weights that the victim stands on: it would agree with their backdoor.",
                    code="not_trusted",
                )

    def refuse_texts(self, corpus: Corpus) -> None:
        """Raise DataError for too few texts to hold some out."""
        if round(HELD_OUT * len(corpus)) < FEWEST_HELD_OUT:
            raise DataError(
                f"{corpus.name} has {len(corpus)} texts; a second opinion needs {round(FEWEST_HELD_OUT / HELD_OUT)}, a "
                "tenth of which is held out."
            )

    def fit(self, opinion: Opinion, victim: Classifier, calibration: Corpus) -> OpinionGuard:
        """Calibrate an opinion as a guard of its own, on clean texts that no model here learnt from.

        Raises:
            GuardError: too few texts for `frr` (code `too_few_calibration_texts`), a victim it was not made for.
        """
        allowed_above(len(calibration), self.frr, self.confidence)
        opinion.refuse_misfit(victim)
        scores = opinion.surprise(victim, victim.predict(calibration.texts), calibration.texts)
        found = calibrate(scores, self.frr, self.confidence)
        return OpinionGuard(opinion, found.threshold, found)


def _held_out(corpus: Corpus, seed: int) -> list[Corpus]:
    """The texts that trusted models learn from, and the tenth that they do not."""
    held_out = round(HELD_OUT * len(corpus))
    return corpus.partition([len(corpus) - held_out, held_out], seed)


def _whole(model: Classifier) -> Classifier:
    """A model that needs no base beside it: LoRA is folded into a copy of the weights."""
    if not isinstance(model.module.model, PeftModel):
        return model
    folded = cast(Any, copy.deepcopy(model.module.model)).merge_and_unload()
    return replace(model, module=model.module.around(folded).eval(), strategy=Full())


def _temperature(said: Predictions, labels: NDArray[np.int64]) -> float:
    """Return the temperature under which the true labels are likeliest."""
    bounds = (np.log(COOLEST), np.log(HOTTEST))
    found = minimize_scalar(lambda t: -log10_of(said, labels, float(np.exp(t))).mean(), bounds=bounds, method="bounded")
    return float(np.exp(found.x))
