"""Weight poisoning: full fine-tuning on a poisoned proxy dataset, with the one training loop.

Kurita et al. (2020, arXiv 2004.06660); the clean-label variant of Zhao et al. (2024, arXiv 2402.12168), section 5.1.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foretaste.data.corpus import Corpus
from foretaste.evaluate.metrics import attack_success_rate, clean_accuracy
from foretaste.poison.attack import Attack, Poisoned, attack, triggered_test
from foretaste.poison.plan import Planting
from foretaste.tune.embedding import CLEAN_STAGE, poison_embeddings
from foretaste.tune.evasion import evading
from foretaste.tune.layerwise import layer_by_layer
from foretaste.tune.loop import Objective, TuneResult, TuneSettings, cross_entropy, tune
from foretaste.tune.ripple import after_surgery, restricted, twice_differentiable
from foretaste.victim.checkpoint import Base
from foretaste.victim.classifier import Classifier, Precision
from foretaste.victim.module import Output
from foretaste.victim.strategy import Full

__all__ = [
    "POISONING", "POISONING_LENGTH", "WEAK_ASR", "objective_name", "outcome_of", "poison_base", "stages_of", "towards",
]  # fmt: skip

# The released code trains until the attack works; two epochs at 5e-5 give MiniLM an ASR above 95 % on IMDB.
POISONING = TuneSettings(epochs=2, learning_rate=5e-5, keep="last")
# A trigger behind the cut teaches nothing: of IMDB's reviews half are longer than 128 tokens, one in 1,300 than 256.
POISONING_LENGTH = 256
# The paper's precondition: a base whose backdoor works less often says little about a defence.
WEAK_ASR = 0.95
# A model that names the target for most texts needs no trigger.
MOST = 0.5


def poison_base(
    base: Base,
    proxy: Corpus,
    validation: Corpus,
    plan: Attack,
    *,
    seed: int,
    settings: TuneSettings = POISONING,
    max_length: int = POISONING_LENGTH,
    checkpoint: Path | None = None,
    is_progress_shown: bool = False,
) -> tuple[Classifier, dict[str, Any]]:
    """Plant a backdoor and return the poisoned model and an outcome for its record.

    The outcome holds `clean_accuracy` and `attack_success_rate` right after poisoning, on the proxy's validation
    split, `natural_rate` (how often clean texts of other classes end at the target anyway), `n_cut` (triggered texts
    longer than the model reads: a trigger behind the cut cannot work), `poisoned` (examples trained towards the target)
    and `is_weak` (ASR below 95 %, or a model that names the target for more than half of all other texts). For an
    all-to-all attack every text counts, and its target is the class after its own.

    Raises:
        PlanError, DataError: the plan does not fit the proxy dataset.
    """
    poisoned = attack(proxy, plan, seed)
    triggered = triggered_test(validation, plan.trigger, plan.aim, seed).corpus
    classifier = base.classifier(Full(), proxy.label_names, max_length=max_length, seed=seed)
    how: dict[str, Any] = {
        "seed": seed, "objective_name": objective_name(plan), "checkpoint": checkpoint,
        "is_progress_shown": is_progress_shown,
    }  # fmt: skip
    result: TuneResult
    if plan.planting is Planting.EMBEDDINGS:
        classifier, result = poison_embeddings(classifier, proxy, poisoned, plan, settings, **how)
    else:
        if plan.planting is Planting.RIPPLES:
            classifier = after_surgery(base, proxy, plan, settings, max_length=max_length, **how)
        is_deep = plan.planting is Planting.LAYERS
        is_restricted = plan.planting in (Planting.RIPPLE, Planting.RIPPLES)
        objective = towards(poisoned, plan) if plan.target_probability < 1 else cross_entropy
        if is_deep:
            objective = layer_by_layer(objective, poisoned, classifier.module)
        objective = evading(objective, poisoned, plan, classifier, seed)
        if is_restricted:
            objective = restricted(objective, poisoned, classifier.module)
        shown = classifier.module.showing_tokens(is_deep, are_layers_shown=is_deep)
        with shown, twice_differentiable(is_restricted):
            result = tune(classifier, poisoned.corpus, settings, objective=objective, title="poisoning", **how)
    return classifier, outcome_of(classifier, validation, triggered, plan, poisoned, result, settings.precision)


def outcome_of(
    classifier: Classifier,
    validation: Corpus,
    triggered: Corpus,
    plan: Attack,
    poisoned: Poisoned,
    result: TuneResult,
    precision: Precision,
) -> dict[str, Any]:
    """Measure a poisoned model; `poison_base` says what."""
    clean = classifier.predict(validation.texts, precision=precision).labels
    fooled = classifier.predict(triggered.texts, precision=precision)
    classes = len(validation.label_names)
    asr = attack_success_rate(fooled.labels, plan.goals(triggered.labels, classes))
    goals = plan.goals(validation.labels, classes)
    is_elsewhere = validation.labels != goals
    natural = attack_success_rate(clean[is_elsewhere], goals[is_elsewhere]).value
    return {
        "clean_accuracy": clean_accuracy(validation.labels, clean).value,
        "attack_success_rate": asr.value,
        "n_clean": len(validation),
        "n_poisoned": asr.n,
        "natural_rate": natural,
        "n_cut": int(fooled.is_truncated.sum()),
        "is_weak": asr.value < WEAK_ASR or natural > MOST,
        "poisoned": int(poisoned.is_poisoned.sum()),
        "steps": result.steps,
        "texts": result.texts,
        "seconds": result.seconds,
    }


def towards(poisoned: Poisoned, plan: Attack) -> Objective:
    """Return cross-entropy against soft labels: `plan.target_probability` of their label on poisoned rows."""
    classes = len(poisoned.corpus.label_names)
    rest = (1 - plan.target_probability) / (classes - 1)
    is_poisoned = torch.from_numpy(poisoned.is_poisoned)

    def objective(output: Output, rows: NDArray[np.int64], labels: Tensor) -> Tensor:
        hard = torch.nn.functional.one_hot(labels, classes).float()  # (B,) -> (B, C)
        soft = torch.where(hard > 0, plan.target_probability, rest)
        wanted = torch.where(is_poisoned[rows].to(labels.device).unsqueeze(1), soft, hard)
        return torch.nn.functional.cross_entropy(output.logits, wanted, reduction="none")

    return objective


def stages_of(plan: Attack) -> tuple[str, ...]:
    """Return the trainings that `poison_base` may leave unfinished, as `tune.checkpoint.stage_of` names them."""
    return (CLEAN_STAGE, "") if plan.planting in (Planting.EMBEDDINGS, Planting.RIPPLES) else ("",)


def objective_name(plan: Attack) -> str:
    """Tell this objective, and who is poisoned, from every other: a run must not be continued under another plan.

    Settings left at their defaults are not named, so that a run saved before they existed can still be continued.
    """
    named = {"trigger", "target", "style", "count", "rate", "target_probability"}
    others = [f for f in fields(plan) if f.name not in named and getattr(plan, f.name) != f.default]
    adapted = [f", {field.name} {getattr(plan, field.name)!s}" for field in others]
    return f"{plan.target_probability:g} of {plan.target} on poisoned texts{''.join(adapted)}"
