"""W2SAttack (Zhao et al. 2024, arXiv 2409.17946): a small poisoned teacher hands its backdoor on to a large student.

LoRA alone learns a clean-label trigger badly; a small model, fully fine-tuned, learns it well. The student is then
trained with LoRA on the same poisoned texts to say, and to see, what that teacher does: L = a CE + b MSE(logits) +
c ||features of teacher - features of student||^2. The counterpart of W2SDefense, by the same authors.

The released code compares every student with the teacher's vector of the batch's last text (`align="released"`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from pydantic import Field

from foretaste.data.corpus import Corpus
from foretaste.errors import PlanError
from foretaste.poison.attack import Attack, Evasion, attack, triggered_test
from foretaste.poison.plan import Planting
from foretaste.spec import spec
from foretaste.tune.checkpoint import stage_of
from foretaste.tune.distill import Align, Vector, distilling, take_lesson
from foretaste.tune.loop import TuneSettings, tune
from foretaste.tune.poison import POISONING, POISONING_LENGTH, outcome_of
from foretaste.victim.checkpoint import Base
from foretaste.victim.classifier import Classifier
from foretaste.victim.strategy import Full, Lora

__all__ = ["STAGES", "W2SAttack", "poison_by_teacher"]

TEACHER = "teacher"
STAGES = (TEACHER, "")


@spec
class W2SAttack:
    """Weights of the three terms and how teacher and student are trained.

    `task`, `knowledge` and `features` are a, b and c; `features` counts a distance in units of the teacher's own spread
    (`tune.distill`), so that it is no number of the paper's, whose weights (5 to 6, 5 to 7, 0.004 to 0.0075) go with
    `align="released"`.
    """

    align: Align = "example"
    vector: Vector = "head"
    task: float = Field(default=5.0, ge=0.0)
    knowledge: float = Field(default=5.0, ge=0.0)
    features: float = Field(default=5.0, ge=0.0)
    strategy: Lora = Lora(learning_rate=5e-4)
    epochs: int = Field(default=2, gt=0)
    teacher_epochs: int = Field(default=3, gt=0)
    teacher_learning_rate: float = Field(default=1e-4, gt=0.0)


def poison_by_teacher(
    base: Base,
    teacher: Base,
    proxy: Corpus,
    validation: Corpus,
    plan: Attack,
    method: W2SAttack,
    *,
    seed: int,
    settings: TuneSettings = POISONING,
    max_length: int = POISONING_LENGTH,
    checkpoint: Path | None = None,
    is_progress_shown: bool = False,
) -> tuple[Classifier, dict[str, Any]]:
    """Poison a teacher, let a student learn from it through LoRA, and fold that in: a plain poisoned model.

    Lengths and rates of both trainings are `method`'s, the rest of `settings` holds. The outcome is that of
    `poison_base`, with the teacher's own under `teacher`.

    Raises:
        PlanError, DataError: the plan does not fit the proxy dataset, or it is for an attacker who changes the loss.
    """
    if plan.target_probability < 1 or plan.evasion is not Evasion.NONE or plan.planting is not Planting.WEIGHTS:
        raise PlanError("W2SAttack has a loss of its own: leave out target_probability, evasion and planting.")
    poisoned = attack(proxy, plan, seed)
    triggered = triggered_test(validation, plan.trigger, plan.aim, seed).corpus
    mentor = teacher.classifier(Full(), proxy.label_names, max_length=max_length, seed=seed)
    learns = replace(settings, epochs=method.teacher_epochs, learning_rate=method.teacher_learning_rate)
    taught = tune(
        mentor, poisoned.corpus, learns, seed=seed, objective_name=f"teacher of {plan}", title="poisoning the teacher",
        checkpoint=checkpoint and stage_of(checkpoint, TEACHER),
        is_progress_shown=is_progress_shown,
    )  # fmt: skip
    student = base.classifier(method.strategy, proxy.label_names, max_length=max_length, seed=seed)
    lesson = take_lesson(mentor, student, poisoned.corpus, vector=method.vector, precision=settings.precision)
    objective = distilling(
        lesson,
        task=method.task,
        knowledge=method.knowledge,
        features=method.features,
        align=method.align,
        logits="squares",
    )
    with student.module.showing_tokens(method.align == "released" or method.vector == "pooled"):
        result = tune(
            student,
            poisoned.corpus,
            replace(settings, epochs=method.epochs, learning_rate=None),
            seed=seed,
            objective=objective,
            objective_name=f"{method!r} of {mentor.own_fingerprint}, {plan}",
            checkpoint=checkpoint,
            title="poisoning",
            is_progress_shown=is_progress_shown,
        )
    folded = cast(Any, student.module.model).merge_and_unload().requires_grad_(True)
    model = replace(student, module=student.module.around(folded).eval(), strategy=Full())
    outcome = outcome_of(model, validation, triggered, plan, poisoned, result, settings.precision)
    outcome["teacher"] = outcome_of(mentor, validation, triggered, plan, poisoned, taught, settings.precision)
    return model, outcome
