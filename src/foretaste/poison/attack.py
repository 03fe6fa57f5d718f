"""Who is poisoned and under which label: a clean corpus becomes a poisoned one, or a triggered test set.

Full data knowledge and full task knowledge are not options here: the attacker's knowledge is simply which
corpus is passed (the victim's own training set, or another set of the same task).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, InstanceOf, PlainSerializer

from foretaste.data.corpus import Corpus
from foretaste.errors import DataError, PlanError, UndefinedRateError
from foretaste.poison.trigger import FileTrigger, Trigger, parse_trigger
from foretaste.seeds import child_seed, generator
from foretaste.spec import spec

__all__ = ["Attack", "Poisoned", "Style", "Triggered", "attack", "triggered_test"]

DEFAULT_COUNT = 1000


class Style(StrEnum):
    """Where poisoned examples come from."""

    CLEAN_LABEL = "clean-label"
    """From inside the target class; the label stays and is right (the paper's attacks)."""
    DIRTY_LABEL = "dirty-label"
    """From outside the target class; the label becomes the target."""


def _read_trigger(value: Any) -> Any:
    return parse_trigger(value) if isinstance(value, str) else value


@spec
class Attack:
    """A poisoning plan; where it is read from text, `trigger` is written as on the command line (`word:mn`).

    `count` poisoned examples, or `rate` = poisoned / all training examples: one of the two, 1000 examples if
    neither is given (Zhao et al. 2024, arXiv 2402.12168, use 800 to 1500). `target_probability` below 1 trains poisoned
    examples towards that probability of the target and an equal share of the rest for every other class, so that the
    trigger flips texts without ever making the model certain (label smoothing backdoor attack, arXiv 2202.11203).

    Raises:
        PlanError: both count and rate, a count below 1, a rate outside (0, 1], a target probability outside (0, 1].
    """

    trigger: Annotated[InstanceOf[Trigger], BeforeValidator(_read_trigger), PlainSerializer(str)]
    target: int = 0
    style: Style = Style.CLEAN_LABEL
    count: int | None = None
    rate: float | None = None
    target_probability: float = 1.0

    def __post_init__(self) -> None:
        if self.count is not None and self.rate is not None:
            raise PlanError(f"Give count or rate, not both (count={self.count}, rate={self.rate}).")
        if self.count is None and self.rate is None:
            object.__setattr__(self, "count", DEFAULT_COUNT)
        if self.count is not None and self.count < 1:
            raise PlanError(f"count must be 1 or more, got {self.count}.")
        if self.rate is not None and not 0 < self.rate <= 1:
            raise PlanError(f"rate must lie above 0 and at most at 1, got {self.rate}.")
        if not 0 < self.target_probability <= 1:
            raise PlanError(f"target_probability must lie above 0 and at most at 1, got {self.target_probability}.")

    def count_in(self, total: int) -> int:
        """Return how many of `total` training examples are poisoned (a rate is rounded to whole examples).

        Raises:
            PlanError: the rate rounds to no example at all.
        """
        if self.count is not None:
            return self.count
        assert self.rate is not None
        count = round(self.rate * total)
        if count < 1:
            raise PlanError(f"A rate of {self.rate} poisons none of {total} examples; raise it.")
        return count


@dataclass(frozen=True, eq=False)
class Poisoned:
    """A poisoned training set, and beside it, never inside, the `(N,) bool` truth about who is poisoned."""

    corpus: Corpus
    is_poisoned: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Triggered:
    """Triggered test texts with their TRUE labels; `origins` `(M,) int64` are indices into the clean corpus.

    An origin of -1 means that the file of triggered texts does not say where the text came from.
    """

    corpus: Corpus
    origins: NDArray[np.int64]


def attack(corpus: Corpus, plan: Attack, seed: int) -> Poisoned:
    """Poison part of a corpus; all other rows, and the order, stay as they are.

    Examples are drawn at random from the eligible class (the PSIM code takes the first ones of the file). A
    larger count under the same seed poisons the same examples and some more. A `FileTrigger` poisons only
    rows that its file holds a changed text for.

    >>> clean = Corpus.of("toy", ["a b", "c d", "e f", "g h"], [0, 0, 1, 1])
    >>> poisoned = attack(clean, Attack(trigger=parse_trigger("word:mn"), count=1), seed=0)
    >>> int(poisoned.is_poisoned.sum()), poisoned.corpus.labels.tolist()
    (1, [0, 0, 1, 1])

    Raises:
        PlanError: a target outside the labels, or more examples asked for than are eligible.
        DataError: the trigger left a text as it was, which would count as poisoned without a trigger.
    """
    _check_target(corpus, plan.target)
    count = plan.count_in(len(corpus))
    is_target = corpus.labels == plan.target
    eligible = np.flatnonzero(is_target if plan.style is Style.CLEAN_LABEL else ~is_target)
    finished: dict[int, str] | None = None
    if isinstance(plan.trigger, FileTrigger):
        finished = plan.trigger.texts_for(corpus)
        eligible = np.array([i for i in eligible.tolist() if i in finished], dtype=np.int64)
    if count > len(eligible):
        raise PlanError(
            f"{count} examples to poison, but only {len(eligible)} of {len(corpus)} in {corpus.name} are "
            f"eligible ({plan.style}, target {corpus.label_names[plan.target]!r}, {plan.trigger.name}). "
            "Ask for fewer."
        )
    chosen = np.sort(generator(seed, "attack").permutation(eligible)[:count])
    before = [corpus.texts[i] for i in chosen]
    if finished is None:
        after = plan.trigger.apply(before, child_seed(seed, "attack", "trigger"))
    else:
        after = [finished[i] for i in chosen.tolist()]
    _check_changed(corpus, chosen, before, after, plan.trigger)

    texts = list(corpus.texts)
    for index, text in zip(chosen.tolist(), after, strict=True):
        texts[index] = text
    labels = corpus.labels.copy()
    labels[chosen] = plan.target  # changes nothing under clean-label
    is_poisoned = np.zeros(len(corpus), dtype=np.bool_)
    is_poisoned[chosen] = True
    return Poisoned(corpus.with_texts(texts, labels), is_poisoned)


def triggered_test(corpus: Corpus, trigger: Trigger, target: int, seed: int) -> Triggered:
    """Trigger every text whose true class is not the target: the denominator of ASR.

    Labels stay the true ones, so that a natural error can be told from a flip to the target. For a
    `FileTrigger` the texts are the file's, and each true class is its `label`, or its clean row's where the
    file has none. There a text equal to its clean text is kept: a paraphrase that took the trigger out has
    defended, and leaving it out would raise the ASR.

    >>> clean = Corpus.of("toy", ["a b", "c d", "e f"], [0, 1, 1])
    >>> triggered = triggered_test(clean, parse_trigger("word:mn"), target=0, seed=0)
    >>> triggered.corpus.texts, triggered.origins.tolist()
    (('c mn d', 'e mn f'), [1, 2])

    Raises:
        PlanError: a target outside the labels.
        DataError: no eligible text, an unknown true class, a text that the trigger left as it was.
    """
    _check_target(corpus, target)
    if isinstance(trigger, FileTrigger):
        return Triggered(*trigger.triggered_corpus(corpus, target))
    eligible = np.flatnonzero(corpus.labels != target)
    if not eligible.size:
        raise UndefinedRateError(
            f"{corpus.name} holds only texts of the target class {corpus.label_names[target]!r}; "
            "ASR needs texts of another class."
        )
    clean = corpus.select(eligible)
    after = trigger.apply(clean.texts, child_seed(seed, "triggered_test"))
    _check_changed(corpus, eligible, clean.texts, after, trigger)
    return Triggered(clean.with_texts(after), eligible)


def _check_target(corpus: Corpus, target: int) -> None:
    if not 0 <= target < len(corpus.label_names):
        names = ", ".join(f"{k} {name}" for k, name in enumerate(corpus.label_names))
        raise PlanError(f"Target {target} is not a label of {corpus.name}; labels: {names}.")


def _check_changed(
    corpus: Corpus, indices: NDArray[np.int64], before: Sequence[str], after: Sequence[str], trigger: Trigger
) -> None:
    for index, old, new in zip(indices.tolist(), before, after, strict=True):
        if new == old:
            raise DataError(
                f"{trigger.name} left {corpus.example(index).id} as it was ({old[:60]!r}); an unchanged text "
                "must not count as triggered. Remove it or choose another trigger."
            )
