"""W2SDefense (Zhao et al. 2024, arXiv 2410.14425): a small clean teacher takes the backdoor out of a large student.

The teacher is fully fine-tuned on clean texts and then held still; the poisoned student learns from it through LoRA:
L = a CE + b T^2 KL(teacher || student) + c ||features of teacher - features of student||^2.

The released code compares every student of a batch, at every token, with the teacher's vector of the batch's last text
(`align="released"`, with the published weights as presets); we compare each with its own teacher's (`align="example"`).
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from foretaste.errors import PlanError
from foretaste.evaluate.metrics import clean_accuracy
from foretaste.spec import Registry, spec
from foretaste.tune.distill import Align, Vector, distilling, take_lesson
from foretaste.unlearn.unlearner import Job, Unlearned, Unlearner
from foretaste.victim.checkpoint import Base
from foretaste.victim.classifier import Classifier
from foretaste.victim.fresh import FRESH, fresh_classifier
from foretaste.victim.strategy import Full, Lora, Strategy

__all__ = ["RELEASED", "W2SDefense"]

FRESH_EPOCHS, FRESH_RATE = 5, 1e-3  # of a teacher from random weights; it knows no more after these


@spec
class W2SDefense(Unlearner):
    """Weights of the three terms, how teacher and student are trained, and whose vector is compared with whose.

    `task`, `knowledge` and `features` are a, b and c. `vector` is what is aligned: what the head reads, or the mean
    over the text's tokens. Settings of the teacher matter only if it is a
    checkpoint; a classifier is taken as it is.
    """

    name: ClassVar[str] = "w2s"
    needs: ClassVar[tuple[str, ...]] = ("teacher",)

    align: Align = "example"
    vector: Vector = "head"
    task: float = Field(default=1.0, ge=0.0)
    knowledge: float = Field(default=1.0, ge=0.0)
    features: float = Field(default=100.0, ge=0.0)
    temperature: float = Field(default=2.0, gt=0.0)
    strategy: Strategy = Lora(rank=64, alpha=64, dropout=0.0, layers="all", learning_rate=1e-3)
    epochs: int = Field(default=5, gt=0)
    teacher_epochs: int = Field(default=3, gt=0)
    teacher_learning_rate: float = Field(default=1e-4, gt=0.0)

    def __post_init__(self) -> None:
        if not self.knowledge and not self.features:
            raise PlanError("Without knowledge and features the teacher teaches nothing; use method fine_tuning.")

    @property
    def stages(self) -> tuple[str, ...]:
        """The teacher's training, if it needs one, and the student's."""
        return ("teacher", "student")

    def wash(self, job: Job) -> Unlearned:
        """Train the teacher if need be, ask it once, train the student."""
        teacher = self._taught(job)
        student = job.student(self.strategy)
        lesson = take_lesson(teacher, student, job.corpus, vector=self.vector, precision=self.precision)
        objective = distilling(
            lesson,
            task=self.task,
            knowledge=self.knowledge,
            features=self.features,
            temperature=self.temperature,
            align=self.align,
        )
        with student.module.showing_tokens(self.align == "released" or self.vector == "pooled"):
            result = job.tune(
                student,
                self.settings(len(job.corpus)),
                objective=objective,
                objective_name=f"{self!r} of {teacher.own_fingerprint}",
                stage="student",
            )
        held_out = job.validation or job.corpus
        said = teacher.predict(held_out.texts, precision="auto")
        return Unlearned.of(
            student,
            result,
            teacher=teacher.base_location,
            teacher_accuracy=clean_accuracy(held_out.labels, said.labels).value,
            majority=held_out.majority,
        )

    def _taught(self, job: Job) -> Classifier:
        assert job.teacher is not None
        found = job.teacher
        if found == FRESH:
            teacher = fresh_classifier(job.corpus.texts, job.corpus.label_names, max_length=job.length, seed=job.seed)
            settings = self.settings(len(job.corpus), FRESH_EPOCHS, learning_rate=FRESH_RATE)
            job.tune(teacher, settings, stage="teacher")
            return teacher
        assert not isinstance(found, str)
        marks = {found.fingerprint} if isinstance(found, Base) else {found.base_fingerprint, found.own_fingerprint}
        if job.base.fingerprint in marks:
            raise PlanError("The teacher holds the very weights that are to be cleaned; name another one.")
        if isinstance(found, Classifier):
            return found
        teacher = found.classifier(Full(), job.corpus.label_names, max_length=job.length, seed=job.seed)
        settings = self.settings(len(job.corpus), self.teacher_epochs, learning_rate=self.teacher_learning_rate)
        job.tune(teacher, settings, stage="teacher")
        return teacher


# a, b and c of the published code, by the trigger they were chosen for (which a defender does not know). What it
# aligns is the first token's vector, here the one that the head reads; it warms nothing up, trains a layer and a ReLU
# into the teacher where we turn its features, and keeps the best epoch.
RELEASED = Registry(
    "preset",
    {
        name: W2SDefense(
            align="released",
            task=task,
            knowledge=knowledge,
            features=features,
            strategy=Lora(rank=512, alpha=512, learning_rate=2e-4),
            epochs=5,
            least_steps=0,
            teacher_epochs=5,
            teacher_learning_rate=2e-5,
        )
        for name, task, knowledge, features in (
            ("released-word", 5.0, 0.001, 0.001),
            ("released-sentence", 3.0, 0.01, 0.001),
            ("released-syntax", 1.0, 0.035, 0.002),
        )
    },
)
