"""What a student is pulled towards, checked by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from foretaste.data import toy_corpus
from foretaste.errors import DataError
from foretaste.tune.distill import Lesson, distilling, take_lesson
from foretaste.victim.checkpoint import open_base
from foretaste.victim.module import Output
from foretaste.victim.strategy import Full
from foretaste.victim.toy import write_toy_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

DRAW = torch.Generator().manual_seed(0)
LESSON = Lesson(torch.randn(6, 3, generator=DRAW), torch.randn(6, 5, generator=DRAW))
ROWS, LABELS = np.array([4, 0]), torch.tensor([2, 1])
TOKENS, MASK = torch.randn(2, 4, 5, generator=DRAW), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
LOGITS = torch.randn(2, 3, generator=DRAW)
OUTPUT = Output(TOKENS[:, 0], LOGITS, TOKENS, MASK)


def _losses(**weights: Any) -> torch.Tensor:
    own: dict[str, Any] = {"task": 0.0, "knowledge": 0.0, "features": 0.0, "temperature": 2.0} | weights
    return distilling(replace(LESSON, vector="pooled"), align="example", **own)(OUTPUT, ROWS, LABELS)


def test_the_task_is_cross_entropy() -> None:
    torch.testing.assert_close(_losses(task=3.0), 3 * functional.cross_entropy(LOGITS, LABELS, reduction="none"))


def test_knowledge_is_divergence_at_the_temperature_and_none_from_oneself() -> None:
    told = torch.softmax(LESSON.logits[[4, 0]] / 2, dim=1)
    expected = 4 * (told * (told.log() - torch.log_softmax(LOGITS / 2, dim=1))).sum(dim=1)
    torch.testing.assert_close(_losses(knowledge=1.0), expected)
    same = Lesson(LOGITS, LESSON.features[:2])
    objective = distilling(same, task=0, knowledge=1, features=0, temperature=2, align="example")
    torch.testing.assert_close(objective(OUTPUT, np.array([0, 1]), LABELS), torch.zeros(2), atol=1e-6, rtol=0)


def test_knowledge_in_squares_is_the_mean_over_the_classes() -> None:
    squares = distilling(LESSON, task=0, knowledge=2, features=0, align="example", logits="squares")
    expected = 2 * (LOGITS - LESSON.logits[[4, 0]]).square().mean(dim=1)
    torch.testing.assert_close(squares(OUTPUT, ROWS, LABELS), expected)


def test_each_student_meets_its_own_teacher() -> None:
    pooled = torch.stack([TOKENS[0].mean(dim=0), TOKENS[1, :2].mean(dim=0)])  # the second text has two tokens
    spread = (LESSON.features - LESSON.features.mean(dim=0)).square().sum(dim=1).mean()
    expected = (pooled - LESSON.features[[4, 0]]).square().sum(dim=1) / spread
    torch.testing.assert_close(_losses(features=1.0), expected)
    of_the_head = distilling(LESSON, task=0, knowledge=0, features=1, temperature=2, align="example")
    expected = (TOKENS[:, 0] - LESSON.features[[4, 0]]).square().sum(dim=1) / spread
    torch.testing.assert_close(of_the_head(OUTPUT, ROWS, LABELS), expected)


def test_the_released_code_compares_every_token_with_the_last_texts_teacher() -> None:
    objective = distilling(LESSON, task=0, knowledge=0, features=1, temperature=2, align="released")
    # As it is written there: one (B, T) matrix of distances, squared, and their mean. Row 0 is the batch's last.
    expected = functional.pairwise_distance(LESSON.features[0], TOKENS).square().mean()
    torch.testing.assert_close(objective(OUTPUT, ROWS, LABELS).mean(), expected, rtol=1e-4, atol=0)


def test_a_teacher_of_another_family_and_width_keeps_its_angles(toy_bases: Mapping[str, Path], tmp_path: Path) -> None:
    corpus = toy_corpus().select(range(90))
    names = corpus.label_names
    teacher = open_base(toy_bases["gpt2"]).classifier(Full(), names, max_length=32)
    student = open_base(toy_bases["bert"]).classifier(Full(), names, max_length=48)
    narrower = take_lesson(teacher, student, corpus)
    assert narrower.features.shape == (90, student.module.classifier.config.hidden_size)
    wide = open_base(write_toy_checkpoint(tmp_path / "wide", "bert", width=48)).classifier(Full(), names, max_length=48)
    lesson, own = take_lesson(student, wide, corpus), take_lesson(student, student, corpus)
    assert lesson.features.shape == (90, 48)
    turned, straight = (f - f.mean(dim=0) for f in (lesson.features, own.features))
    cosines = [functional.cosine_similarity(f[:1], f[1:]) for f in (turned, straight)]
    torch.testing.assert_close(cosines[0], cosines[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(lesson.logits, own.logits)


def test_a_teacher_of_other_labels_is_refused(toy_base: Path) -> None:
    base, corpus = open_base(toy_base), toy_corpus().select(range(20))
    with pytest.raises(DataError, match="The teacher knows the labels"):
        take_lesson(base.classifier(Full(), ("a", "b")), base.classifier(Full(), corpus.label_names), corpus)
