"""Knowledge distillation: what a teacher says of a corpus, worked out once, and the objective of who learns from it.

Feature alignment as in W2SDefense (Zhao et al. 2024, arXiv 2410.14425) and its counterpart W2SAttack (2409.17946).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from foretaste.data.corpus import Corpus
from foretaste.errors import DataError
from foretaste.tune.loop import Objective
from foretaste.victim.classifier import Classifier, Precision
from foretaste.victim.module import Output

__all__ = ["Align", "Apart", "Lesson", "Vector", "distilling", "take_lesson"]

Align = Literal["example", "released"]
Vector = Literal["head", "pooled"]
Apart = Literal["divergence", "squares"]


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a teacher says of N texts: `logits (N, C) float32` and, one per text, `features (N, H) float32`.

    `H` is the student's width: features of another width are turned into it (`take_lesson`). `vector` says which
    features they are: what the classification head reads, or the mean of the last layer over the text's tokens.
    """

    logits: Tensor
    features: Tensor
    vector: Vector = "head"


def take_lesson(
    teacher: Classifier,
    student: Classifier,
    corpus: Corpus,
    *,
    vector: Vector = "head",
    precision: Precision = "auto",
) -> Lesson:
    """Ask the teacher for its logits and its features of every text, once, in the teacher's own tokens.

    Where teacher and student differ in width, the teacher's are mapped to the student's by the rotation (orthogonal
    Procrustes; its part of full rank) that brings them nearest to what the student says now, centred and scaled to the
    same spread: it keeps all angles (of a wider teacher, in the part that fits), needs no training and is a function of
    the texts alone. The paper trains a linear layer into the teacher instead.

    Raises:
        DataError: the teacher names other labels than the student.
    """
    if teacher.label_names != student.label_names:
        raise DataError(f"The teacher knows the labels {teacher.label_names}, the student {student.label_names}.")
    is_pooled = vector == "pooled"
    logits, features = _features(teacher, corpus, precision, is_pooled)
    width = student.module.classifier.config.hidden_size
    if features.shape[1] != width:
        features = _turned(features, _features(student, corpus, precision, is_pooled)[1])
    return Lesson(torch.from_numpy(logits), torch.from_numpy(features), vector)


def distilling(
    lesson: Lesson,
    *,
    task: float,
    knowledge: float,
    features: float,
    align: Align,
    temperature: float = 1.0,
    logits: Apart = "divergence",
) -> Objective:
    """Return `task` CE + `knowledge` T^2 KL(teacher || student) + `features` squared distance of features.

    With `logits` "squares" knowledge is the mean squared distance of the logits instead, and T has no part in it.
    `align` "example" compares each student's vector with its own teacher's; a distance of 1 is the teacher's own spread
    (the mean squared distance of its vectors from their mean), so that the weight means the same for models of every
    width and scale. "released" does what the published code does: the teacher's vector of the batch's last text is
    compared with every token, pads included, of every student in the batch; squared distance, the mean over tokens.
    """
    spread = (lesson.features - lesson.features.mean(dim=0)).square().sum(dim=1).mean().clamp(min=1e-12)

    def objective(output: Output, rows: NDArray[np.int64], labels: Tensor) -> Tensor:
        device = output.logits.device
        losses = task * functional.cross_entropy(output.logits, labels, reduction="none")
        if knowledge and logits == "squares":
            said = output.logits.float()
            losses = losses + knowledge * (said - lesson.logits[rows].to(device)).square().mean(dim=1)
        elif knowledge:
            told = torch.softmax(lesson.logits[rows].to(device) / temperature, dim=1)
            said = torch.log_softmax(output.logits / temperature, dim=1)
            apart = functional.kl_div(said, told, reduction="none").sum(dim=1)  # (B, C) -> (B,)
            losses = losses + knowledge * temperature**2 * apart
        if features:
            wanted = lesson.features[rows].to(device)  # (B, H)
            if align == "released":
                assert output.tokens is not None
                apart = (output.tokens - wanted[-1]).square().sum(dim=2).mean(dim=1)  # (B, T, H) -> (B,)
            else:
                own = output.features if lesson.vector == "head" else output.pooled
                apart = (own - wanted).square().sum(dim=1) / spread.to(device)
            losses = losses + features * apart
        return losses

    return objective


def _features(
    model: Classifier, corpus: Corpus, precision: Precision, is_pooled: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    with model.module.showing_tokens(is_pooled):
        said = model.predict(corpus.texts, precision=precision, is_pooled=is_pooled)
    return said.logits, said.features


def _turned(theirs: NDArray[np.float32], ours: NDArray[np.float32]) -> NDArray[np.float32]:
    """`(N, H')` onto `(N, H)`."""
    theirs, ours = theirs.astype(np.float64), ours.astype(np.float64)
    centred = theirs - theirs.mean(axis=0)
    target = ours - ours.mean(axis=0)
    left, _, right = np.linalg.svd(centred.T @ target, full_matrices=False)  # (H', H)
    turned = centred @ (left @ right)
    turned *= np.linalg.norm(target) / max(float(np.linalg.norm(turned)), 1e-12)
    result: NDArray[np.float32] = (turned + ours.mean(axis=0)).astype(np.float32)
    return result
