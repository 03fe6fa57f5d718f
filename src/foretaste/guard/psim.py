"""PSIM (Zhao et al. 2024, arXiv 2402.12168, section 4): certain on random labels means poisoned.

One more adapter is trained on the suspect weights with labels drawn at random. Clean texts leave it undecided; the
trigger, which the weights remember, leaves it certain. Score = highest class probability, not rounded (the released
code rounds to three decimals, and refuses a score of exactly 0.700 to clean texts alone).

Where we differ from the paper, and why (docs/psim.md has the figures): the classification head stays as it is, because
a head that learns forgets the trigger first; training stops at a dose, read off held-out clean texts (`guard.dose`),
instead of after an epoch, because longer training forgets the trigger too; the threshold is calibrated on clean texts,
because a fixed 0.7 fits one model and one dose only. `Psim.paper()` keeps the printed recipe.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from pydantic import Field

from foretaste.data.corpus import Corpus
from foretaste.errors import DataError, GuardError, PlanError
from foretaste.evaluate.threshold import allowed_above, calibrate, texts_needed
from foretaste.guard.dose import Monitor
from foretaste.guard.looks import Looks, View
from foretaste.guard.psim_guard import PsimGuard
from foretaste.seeds import generator
from foretaste.spec import Registry, spec
from foretaste.tune.expose import Expose, exposing
from foretaste.tune.loop import TuneSettings, tune
from foretaste.victim.checkpoint import TEXT_LENGTH, Base
from foretaste.victim.classifier import Classifier, Precision, Scoring
from foretaste.victim.strategy import Full, Lora, PromptTuning, PTuningV1, PTuningV2, Strategy

__all__ = ["PSIM_STRATEGIES", "Psim"]


MONITOR_SIZE = 128
FEWEST_TEXTS = 80  # a fifth of them is the monitor
REFERENCE_SIZE = 1200
MOST_APART = 0.15  # shares of a class in the two halves; of texts in no order they lie within 0.06
# Each strategy where it gets to the dose in 10 to 40 steps on MiniLM (docs/psim.md). Prompts of random numbers leave
# the model undecided before the first step, so that there would be nothing to train.
PSIM_STRATEGIES: Registry[Strategy] = Registry(
    "strategy",
    {
        kind.name: kind
        for kind in (
            Full(learning_rate=5e-5),
            Lora(layers="feed_forward"),
            PromptTuning(learning_rate=1e-2, start="vocabulary"),
            PTuningV1(),
            PTuningV2(learning_rate=1e-2),
        )
    },
)


@spec
class Psim:
    """How PSIM is trained and calibrated.

    `is_head_frozen` keeps the checkpoint's classification head as it is: a head that learns can turn away from all it
    knew, the trigger included, before the adapter has moved a single clean text. `reset_rate` is the share of texts
    whose label is redrawn, uniformly over all classes, the true one included (as in the released code; Table 13 varies
    it); `expose` makes the model forget in another way (`tune.expose`). `dose` is the median confidence on held-out
    clean texts at which training ends, counted from 0 (all classes equally likely) to 1 (certain); None trains for
    whole `epochs`. `threshold` fixes the bar; None calibrates it so that at most `frr` of clean texts are refused, with
    the given `confidence` that this holds.
    `scoring` is the arithmetic in which the guard is calibrated and will always score; `precision` is training's.
    `view` says what makes a text suspicious: PSIM's certainty, how far its vector points away from clean ones, or
    either (`guard.looks`; None: either, but certainty for a fixed threshold).
    """

    strategy: Strategy = PSIM_STRATEGIES["prompt_tuning"]
    is_head_frozen: bool = True
    reset_rate: float = Field(default=1.0, gt=0.0, le=1.0)
    expose: Expose = "random"
    dose: float | None = Field(default=0.2, gt=0.0, lt=1.0)
    max_steps: int = Field(default=200, gt=0)
    epochs: int = Field(default=1, gt=0)
    batch_size: int = Field(default=32, gt=0)
    learning_rate: float | None = Field(default=None, gt=0.0)
    frr: float = Field(default=0.01, gt=0.0, lt=1.0)
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)
    threshold: float | None = Field(default=None, gt=0.0, lt=1.0)
    precision: Precision = "auto"
    scoring: Scoring = "float32"
    view: View | None = None

    def __post_init__(self) -> None:
        if self.view is None:
            object.__setattr__(self, "view", "both" if self.threshold is None else "confidence")
        if self.expose == "ascent" and self.reset_rate != 1.0:
            raise PlanError("reset_rate is a share of labels redrawn or shuffled; ascent takes all labels as they are.")
        if self.view != "confidence" and self.threshold is not None:
            raise PlanError('A fixed threshold is one for view="confidence"; other views are calibrated.')

    @classmethod
    def paper(cls) -> Psim:
        """The printed recipe: P-tuning v1, one epoch at 2e-5, threshold 0.7 (appendix B and the released code)."""
        return cls(strategy=PTuningV1(), is_head_frozen=False, dose=None, learning_rate=2e-5, threshold=0.7)

    @property
    def training(self) -> Psim:
        """What a trained guard hangs on: with whatever fixed threshold, it is the same one."""
        return self if self.threshold is None else replace(self, threshold=Psim.paper().threshold)

    def fit(
        self,
        base: Base,
        corpus: Corpus,
        calibration: Corpus | None = None,
        *,
        seed: int = 0,
        max_length: int | None = None,
        is_progress_shown: bool = False,
        after_dose: Callable[[int, Classifier, float], None] | None = None,
    ) -> PsimGuard:
        """Train and calibrate on clean texts; no poisoned text is needed.

        Without `calibration` a fifth of the corpus, at least enough to promise `frr`, is held out for it, unless the
        threshold is fixed. Without `max_length` the guard reads as much of a text as the victim it is trained from,
        or 128 tokens.
        `after_dose` is called with (step, model, dose) whenever the dose was read.

        Raises:
            DataError: too few texts to hold a part out.
            GuardError: too few calibration texts for `frr` (code `too_few_calibration_texts`); dose not reached (code
                `dose_not_reached`).
        """
        corpus, monitor, reference, calibration = self._split(corpus, calibration, seed)
        if calibration is not None and self.threshold is None:
            allowed_above(len(calibration), self.frr, self.confidence)  # refuses too few before hours of training
        length = max_length or base.text_length or TEXT_LENGTH
        classifier = base.classifier(self.strategy, corpus.label_names, max_length=length, seed=seed)
        if self.is_head_frozen:
            classifier.module.head.requires_grad_(False)
        relabelled, objective = exposing(corpus, self.expose, seed, self.reset_rate)
        settings = TuneSettings(
            epochs=self.epochs,
            max_steps=None if self.dose is None else self.max_steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            precision=self.precision,
            keep="last",
        )
        watch = Monitor(classifier, classifier.encode(monitor.texts), self.dose, self.precision, after_dose)
        result = tune(
            classifier,
            relabelled,
            settings,
            seed=seed,
            objective=objective,
            should_stop=watch.should_stop,
            title="PSIM",
            is_progress_shown=is_progress_shown,
        )
        if self.dose is not None and not result.is_stopped_early:
            raise GuardError(
                f"After {result.steps} steps the median clean confidence is still {watch.doses[-1]:.2f} (0 undecided, "
                f"1 certain), wanted {self.dose:.2f}; raise the learning rate or max_steps, or take another strategy.",
                code="dose_not_reached",
            )
        bar = math.nan if self.threshold is None else self.threshold
        assert self.view is not None
        guard = PsimGuard(classifier.merge(), bar, None, self.scoring, self.view, None, result, tuple(watch.doses))
        if reference is not None:
            guard = replace(guard, looks=Looks.fit(guard.predict(reference.texts)))
        if calibration is None or self.threshold is not None:
            return guard
        found = calibrate(guard.score(calibration.texts), self.frr, self.confidence)
        return replace(guard, threshold=found.threshold, calibration=found)

    def refuse_texts(self, corpus: Corpus) -> None:
        """Raise DataError for too few texts to read the dose on a part of them that does not train."""
        if len(corpus) < FEWEST_TEXTS:
            raise DataError(
                f"{corpus.name} has {len(corpus)} texts left to train on; at least {FEWEST_TEXTS} are needed."
            )

    def _split(
        self, corpus: Corpus, calibration: Corpus | None, seed: int
    ) -> tuple[Corpus, Corpus, Corpus | None, Corpus | None]:
        """Return what trains, what the dose is read on, what the looks are fitted on, what calibrates: all disjoint."""
        if calibration is None and self.threshold is None:
            half = len(corpus) // 2
            size = max(len(corpus) // 5, texts_needed(self.frr, self.confidence))
            if size > half:
                try:
                    allowed_above(half, self.frr, self.confidence)
                except GuardError as error:
                    raise DataError(
                        f"{corpus.name} has {len(corpus)} texts, half of which may be held out: {error} Give more "
                        "clean texts or a higher --frr."
                    ) from error
            corpus, calibration = corpus.partition([len(corpus) - size, size], seed)
        self.refuse_texts(corpus)
        held_out = min(MONITOR_SIZE, len(corpus) // 5)
        corpus, monitor = corpus.partition([len(corpus) - held_out, held_out], seed)
        if self.view == "confidence":
            return corpus, monitor, None, calibration
        size = min(REFERENCE_SIZE, len(corpus) // 3)
        corpus, reference = corpus.partition([len(corpus) - size, size], seed)
        return corpus, monitor, _mixed(reference, seed), calibration


def _mixed(corpus: Corpus, seed: int) -> Corpus:
    """Return the texts with every class in both halves, which `Looks.fit` tells apart: files may be sorted by class."""
    half, classes = len(corpus) // 2, len(corpus.label_names)
    first, second = (
        np.bincount(labels, minlength=classes) / len(labels) for labels in (corpus.labels[:half], corpus.labels[half:])
    )
    if np.abs(first - second).max() <= MOST_APART:
        return corpus
    return corpus.select(generator(seed, "reference").permutation(len(corpus)))
