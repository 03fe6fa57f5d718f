"""The dose: read while PSIM trains, until it is low enough."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from foretaste.data import toy_corpus
from foretaste.guard.dose import READ_EVERY, Monitor
from foretaste.victim.checkpoint import open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.strategy import Lora

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = toy_corpus("validation").texts[:64]


@pytest.fixture
def classifier(toy_stack: Mapping[str, Path]) -> Classifier:
    base = open_base(toy_stack["base"])
    return base.classifier(Lora(layers="feed_forward"), toy_corpus("train").label_names, max_length=64, seed=0)


def _shrink_head(classifier: Classifier, share: float) -> None:
    """Stand in for a step: a head of zeros is undecided about everything."""
    with torch.no_grad():
        for parameter in classifier.module.head.parameters():
            parameter.mul_(share)


def test_training_stops_at_the_first_reading_that_is_low_enough(classifier: Classifier) -> None:
    seen: list[tuple[int, float]] = []
    watch = Monitor(
        classifier, classifier.encode(TEXTS), 0.1, "float32", lambda step, _, dose: seen.append((step, dose))
    )
    _shrink_head(classifier, 0.9)
    assert not watch.should_stop(READ_EVERY)
    _shrink_head(classifier, 0.0)
    assert not watch.should_stop(READ_EVERY + 1)
    assert watch.should_stop(2 * READ_EVERY)
    assert watch.doses[0] > watch.doses[1] > 0.1 > watch.doses[2] == pytest.approx(0.0, abs=1e-6)
    assert seen == [(READ_EVERY, watch.doses[1]), (2 * READ_EVERY, watch.doses[2])]


def test_without_a_dose_nothing_stops_and_nothing_is_read(classifier: Classifier) -> None:
    watch = Monitor(classifier, classifier.encode(TEXTS), None, "float32")
    _shrink_head(classifier, 0.0)
    assert not watch.should_stop(READ_EVERY)
    assert len(watch.doses) == 1
