"""The dose: read while PSIM trains, and met on the line between two readings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from foretaste.data import toy_corpus
from foretaste.guard import dose as dose_module
from foretaste.guard.dose import READ_EVERY, TOLERANCE, Monitor
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


@pytest.mark.parametrize("wanted", [0.02, 0.1, 0.3])
def test_a_step_too_far_is_taken_back_to_the_dose(classifier: Classifier, wanted: float) -> None:
    watch = Monitor(classifier, classifier.encode(TEXTS), wanted, "float32")
    _shrink_head(classifier, 0.9)
    assert not watch.should_stop(READ_EVERY)
    _shrink_head(classifier, 0.0)
    assert watch.should_stop(2 * READ_EVERY)
    assert watch.doses[0] > watch.doses[1] > wanted > watch.doses[2] == pytest.approx(0.0, abs=1e-6)
    watch.land()
    assert wanted - TOLERANCE <= watch.doses[-1] <= wanted
    again = Monitor(classifier, classifier.encode(TEXTS), wanted, "float32")
    assert again.doses == [watch.doses[-1]]  # the weights are those at which the dose was read


def test_a_dose_met_at_a_step_is_left_as_it_is(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Monitor(classifier, classifier.encode(TEXTS), 0.2, "float32")
    _shrink_head(classifier, 0.0)
    assert watch.should_stop(READ_EVERY)
    monkeypatch.setattr(dose_module, "TOLERANCE", 0.5)
    watch.land()
    assert watch.doses[-1] == pytest.approx(0.0, abs=1e-6)


def test_a_base_below_the_dose_from_the_start_stays_where_training_stopped(classifier: Classifier) -> None:
    _shrink_head(classifier, 0.0)
    watch = Monitor(classifier, classifier.encode(TEXTS), 0.2, "float32")
    assert watch.should_stop(READ_EVERY)
    before = {name: p.clone() for name, p in classifier.trainable.items()}
    watch.land()
    assert len(watch.doses) == 2
    assert all(torch.equal(before[name], p) for name, p in classifier.trainable.items())


def test_without_a_dose_nothing_stops_and_nothing_is_read(classifier: Classifier) -> None:
    watch = Monitor(classifier, classifier.encode(TEXTS), None, "float32")
    _shrink_head(classifier, 0.0)
    assert not watch.should_stop(READ_EVERY)
    watch.land()
    assert len(watch.doses) == 1
    assert all(not p.any() for p in classifier.module.head.parameters() if p.requires_grad)
