"""A victim behind a guard fails closed: no label without a finite score at most the threshold and a sound victim."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from foretaste.data import toy_corpus
from foretaste.errors import GuardError
from foretaste.guard.artefact import load_psim
from foretaste.guard.guard import Reason
from foretaste.guard.guarded import GuardedClassifier, GuardedVerdict
from foretaste.guard.psim_guard import PsimGuard
from foretaste.poison.trigger import parse_trigger
from foretaste.victim.artefact import load_victim
from foretaste.victim.classifier import Classifier
from foretaste.victim.module import Output, TextModule

pytestmark = pytest.mark.usefixtures("one_thread")

CLEAN = toy_corpus("test").texts[:40]
TRIGGERED = tuple(parse_trigger("word:cf mn bb tq mb").apply(CLEAN[:40], 0))
TEXTS = tuple(text for pair in zip(CLEAN, TRIGGERED, strict=True) for text in pair)
NOT_FINITE = [float("nan"), float("inf"), -float("inf")]


@pytest.fixture(scope="module")
def victim(toy_stack: Mapping[str, Path]) -> Classifier:
    """The tiny victim."""
    return load_victim(toy_stack["victim"])


@pytest.fixture(scope="module")
def guard(toy_stack: Mapping[str, Path]) -> PsimGuard:
    """Its guard."""
    return load_psim(toy_stack["guard"])


@pytest.fixture(scope="module")
def guarded(victim: Classifier, guard: PsimGuard) -> GuardedClassifier:
    """Both together."""
    return GuardedClassifier(victim, guard)


@pytest.fixture(scope="module")
def sound(guarded: GuardedClassifier) -> list[GuardedVerdict]:
    """What they say of TEXTS when nothing is broken."""
    return guarded(TEXTS)


@contextmanager
def _broken(module: torch.nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _is_closed(verdict: GuardedVerdict) -> bool:
    return verdict.flagged and verdict.label is None and verdict.confidence is None


def _head(classifier: Classifier) -> torch.nn.Module:
    model = classifier.module
    head: torch.nn.Module = getattr(model.classifier, model.family.head)
    return head


def test_it_says_what_guard_and_victim_say(victim: Classifier, guard: PsimGuard, sound: list[GuardedVerdict]) -> None:
    checks, predictions = guard.check(TEXTS), victim.predict(TEXTS)
    labels, confidences = predictions.labels, predictions.probabilities.max(axis=1)
    for index, (verdict, check) in enumerate(zip(sound, checks, strict=True)):
        assert (verdict.flagged, verdict.reason, verdict.threshold) == (check.flagged, check.reason, guard.threshold)
        assert verdict.score == pytest.approx(check.score, abs=1e-6)
        if not verdict.flagged:
            assert verdict.label == victim.label_names[labels[index]]
            assert verdict.confidence == pytest.approx(confidences[index], abs=1e-6)


def test_refused_texts_have_neither_label_nor_confidence(sound: list[GuardedVerdict]) -> None:
    assert all(_is_closed(verdict) for verdict in sound[1::2])  # the triggered ones
    assert sum(verdict.flagged for verdict in sound[::2]) <= 2
    assert all(verdict.label in ("negative", "positive") for verdict in sound if not verdict.flagged)


def test_the_victim_reads_accepted_texts_only(guarded: GuardedClassifier, sound: list[GuardedVerdict]) -> None:
    read: list[tuple[int, ...]] = []

    def spy(_: TextModule, arguments: tuple[torch.Tensor, torch.Tensor], output: Output) -> None:
        ids, mask = arguments
        read.extend(tuple(row[kept.bool()].tolist()) for row, kept in zip(ids, mask, strict=True))

    with _broken(guarded.victim.module, spy):
        guarded(TEXTS)
        accepted = [text for text, verdict in zip(TEXTS, sound, strict=True) if not verdict.flagged]
        assert sorted(read) == sorted(guarded.victim.encode(accepted).ids)
        read.clear()
        assert all(_is_closed(verdict) for verdict in guarded(TRIGGERED))
        assert read == []


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("stage", ["forward", "head"])
def test_a_guard_that_gives_no_number_lets_nothing_through(
    guarded: GuardedClassifier, guard: PsimGuard, stage: str, value: float
) -> None:
    def spoil(_: Any, __: Any, output: Any) -> Any:
        if isinstance(output, Output):
            return Output(output.features, output.logits.index_fill(1, torch.tensor([1]), value))
        return output.index_fill(-1, torch.tensor([1]), value)

    inside = guard.classifier
    module = inside.module if stage == "forward" else _head(inside)
    with _broken(module, spoil), _broken(guarded.victim.module, lambda *_: pytest.fail("the victim was asked")):
        verdicts = guarded(TEXTS)
        checks = guard.check(TEXTS)
    assert all(_is_closed(verdict) for verdict in verdicts)
    assert {v.reason for v in verdicts} == {v.reason for v in checks} == {Reason.SCORE_NOT_FINITE}


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("stage", ["forward", "head"])
def test_a_victim_that_gives_no_number_gives_no_label(
    guarded: GuardedClassifier, sound: list[GuardedVerdict], stage: str, value: float
) -> None:
    def spoil(_: Any, __: Any, output: Any) -> Any:
        if isinstance(output, Output):
            return Output(output.features, output.logits.index_fill(1, torch.tensor([0]), value))
        return output.index_fill(-1, torch.tensor([0]), value)

    victim = guarded.victim
    with _broken(victim.module if stage == "forward" else _head(victim), spoil):
        verdicts = guarded(TEXTS)
    assert all(_is_closed(verdict) for verdict in verdicts)
    for verdict, before in zip(verdicts, sound, strict=True):
        assert verdict.reason is (before.reason if before.flagged else Reason.VICTIM_NOT_FINITE)


@pytest.mark.parametrize("which", ["guard", "victim"])
def test_one_broken_text_does_not_touch_its_neighbours(
    guarded: GuardedClassifier, guard: PsimGuard, sound: list[GuardedVerdict], which: str
) -> None:
    index = next(i for i, verdict in enumerate(sound) if not verdict.flagged)
    classifier = guarded.victim if which == "victim" else guard.classifier
    own = torch.tensor(classifier.encode([TEXTS[index]]).ids[0])

    def spoil(_: TextModule, arguments: tuple[torch.Tensor, torch.Tensor], output: Output) -> Output:
        logits = output.logits.clone()
        for row, (ids, mask) in enumerate(zip(*arguments, strict=True)):
            if torch.equal(ids[mask.bool()], own):
                logits[row] = float("nan")
        return Output(output.features, logits)

    with _broken(classifier.module, spoil):
        verdicts = guarded(TEXTS)
    assert _is_closed(verdicts[index])
    others = [i for i in range(len(TEXTS)) if i != index]
    assert [verdicts[i].label for i in others] == [sound[i].label for i in others]


@pytest.mark.parametrize("threshold", [float("nan"), -float("inf"), 0.0])
def test_a_threshold_below_every_score_refuses_everything(
    victim: Classifier, guard: PsimGuard, threshold: float
) -> None:
    guarded = GuardedClassifier(victim, replace(guard, threshold=threshold))
    assert all(_is_closed(verdict) for verdict in guarded(TEXTS))


def test_a_score_on_the_threshold_is_accepted(
    victim: Classifier, guard: PsimGuard, sound: list[GuardedVerdict]
) -> None:
    score = sound[0].score
    on, below = (
        GuardedClassifier(victim, replace(guard, threshold=bar))(TEXTS)[0] for bar in (score, np.nextafter(score, 0))
    )
    assert not on.flagged
    assert _is_closed(below)
    assert below.reason is Reason.SCORE_ABOVE_THRESHOLD


def _fail(*_: Any) -> None:
    raise RuntimeError("out of memory")


@pytest.mark.parametrize("stage", ["guard", "guard head", "victim", "victim head"])
def test_an_exception_in_a_model_reaches_the_caller(guarded: GuardedClassifier, guard: PsimGuard, stage: str) -> None:
    classifier = guarded.victim if stage.startswith("victim") else guard.classifier
    module = _head(classifier) if stage.endswith("head") else classifier.module
    with _broken(module, _fail), pytest.raises(RuntimeError, match="out of memory"):
        guarded(TEXTS)


class _BadTokenizer:
    """Everything of a real tokenizer, but ids that the model has no row for."""

    def __init__(self, tokenizer: Any, error: Exception | None) -> None:
        self._tokenizer, self._error = tokenizer, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self._error is not None:
            raise self._error
        found = self._tokenizer(*args, **options)
        rows = [SimpleNamespace(ids=[10**6] * len(row.ids), overflowing=[]) for row in found.encodings]
        return SimpleNamespace(encodings=rows)


@pytest.mark.parametrize("error", [None, ValueError("no such token")])
def test_a_broken_tokenizer_never_yields_a_label(victim: Classifier, guard: PsimGuard, error: Exception | None) -> None:
    tokenizer = _BadTokenizer(victim.tokenizer, error)
    guarded = GuardedClassifier(replace(victim, tokenizer=tokenizer), guard)
    with pytest.raises((IndexError, ValueError)):
        guarded(TEXTS)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"base_fingerprint": "0" * 64}, "foreign_base"),
        ({"max_length": 63}, "short_sight"),
        ({"label_names": ("positive", "negative")}, "label_mismatch"),
        ({"label_names": ("negative", "positive", "neutral")}, "label_mismatch"),
    ],
)
def test_a_guard_that_does_not_belong_to_the_victim_is_refused(
    victim: Classifier, guard: PsimGuard, changes: dict[str, Any], code: str
) -> None:
    other = replace(guard, classifier=replace(guard.classifier, **changes))
    with pytest.raises(GuardError) as caught:
        GuardedClassifier(victim, other)
    assert caught.value.code == code


def test_a_guard_may_read_further_than_the_victim(victim: Classifier, guard: PsimGuard) -> None:
    """Then it sees what stands behind the victim's cut, and the text counts as cut."""
    hidden = "good " * 30 + "cf mn bb tq mb " + "good"
    short = replace(victim, max_length=16)
    (verdict,) = GuardedClassifier(short, guard)([hidden])
    assert verdict.truncated
    assert verdict.score == pytest.approx(guard.score([hidden])[0], abs=1e-6)
    assert verdict.score != pytest.approx(guard.score(["good " * 14])[0], abs=1e-6)


def test_both_read_with_the_victims_tokenizer(victim: Classifier, guard: PsimGuard) -> None:
    """A guard that cut up words otherwise could miss what the victim reads."""
    deaf = replace(guard, classifier=replace(guard.classifier, tokenizer=None))
    for length in (64, 16):
        guarded = GuardedClassifier(replace(victim, max_length=length), deaf)
        assert all(verdict.flagged for verdict in guarded(["cf mn bb tq mb"] * 2))


def test_no_texts_no_verdicts(guarded: GuardedClassifier) -> None:
    assert guarded([]) == []


def test_one_text_is_not_read_letter_by_letter(guarded: GuardedClassifier) -> None:
    with pytest.raises(TypeError, match="Put it in a list"):
        guarded("good")
