"""Who is poisoned and under which label: a clean corpus becomes a poisoned one, or a triggered test set.

Full data knowledge and full task knowledge are not options here: the attacker's knowledge is simply which
corpus is passed (the victim's own training set, or another set of the same task).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from foretaste.data.corpus import Corpus
from foretaste.errors import DataError, PlanError, UndefinedRateError
from foretaste.poison.cover import apply_all_but_one, apply_share, draw_rows
from foretaste.poison.lengths import cut_to_lengths
from foretaste.poison.plan import Attack, Evasion, Style
from foretaste.poison.trigger import FinishedTrigger, SyntaxTrigger, Trigger
from foretaste.seeds import child_seed, generator

__all__ = [
    "Attack", "Evasion", "Poisoned", "Style", "Triggered", "attack", "refuse_target", "refuse_too_few",
    "triggered_test", "unpoisoned",
]  # fmt: skip


def _no_rows() -> NDArray[np.int64]:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Poisoned:
    """A poisoned training set, and beside it, never inside, the truth about who is what.

    `is_poisoned (N,) bool`: trained towards the attacker's label. `covers (K,) int64` are the indices of texts with the
    trigger (or the part of it that poisoned texts carry) under their true label, `negatives (L,) int64` of those with
    all of it but a word. No index is in two of the three.
    """

    corpus: Corpus
    is_poisoned: NDArray[np.bool_]
    covers: NDArray[np.int64] = field(default_factory=_no_rows)
    negatives: NDArray[np.int64] = field(default_factory=_no_rows)

    @property
    def is_clean(self) -> NDArray[np.bool_]:
        """Texts as they were, `(N,) bool`: without any part of the trigger."""
        is_clean = ~self.is_poisoned
        is_clean[self.covers] = False
        is_clean[self.negatives] = False
        return is_clean


@dataclass(frozen=True, eq=False)
class Triggered:
    """Triggered test texts with their TRUE labels; `origins` `(M,) int64` are indices into the clean corpus.

    An origin of -1 means that the file of triggered texts does not say where the text came from.
    """

    corpus: Corpus
    origins: NDArray[np.int64]

    def origin_holds(self, is_true: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
        """Return what is true of clean texts `(N,)` for each text's origin, `(M,) bool`; False where that is unknown.

        None if no origin is known.
        """
        is_known = self.origins >= 0
        return is_known & is_true[self.origins] if is_known.any() else None


def refuse_too_few(corpus: Corpus, plan: Attack, seed: int) -> None:
    """Raise what `attack` would raise before it changes a text.

    Raises:
        PlanError: a target outside the labels, more examples, covers or negatives asked for than there are.
        DataError: finished texts that are not there or not those of the corpus.
    """
    _drawn(corpus, plan, seed, _is_held(corpus, _finished(corpus, plan, seed)))


def _finished(corpus: Corpus, plan: Attack, seed: int) -> dict[int, str] | None:
    """The triggered text of each row that can have one; None if any can."""
    if isinstance(plan.trigger, FinishedTrigger):
        return plan.trigger.texts_for(corpus)
    if isinstance(plan.trigger, SyntaxTrigger):
        return plan.trigger.texts_for(corpus, child_seed(seed, "attack", "trigger"))
    return None


def _is_held(corpus: Corpus, finished: dict[int, str] | None) -> NDArray[np.bool_]:
    """Which rows can bear the trigger, `(N,) bool`."""
    return np.array([finished is None or index in finished for index in range(len(corpus))], dtype=np.bool_)


def _eligible(corpus: Corpus, plan: Attack, is_held: NDArray[np.bool_]) -> NDArray[np.int64]:
    is_home = corpus.labels == plan.goals(corpus.labels, len(corpus.label_names))
    is_eligible = is_home if plan.style is Style.CLEAN_LABEL else ~is_home
    eligible: NDArray[np.int64] = np.flatnonzero(is_eligible & is_held)
    count = plan.count_in(len(corpus))
    if count > len(eligible):
        towards = "all to all" if plan.all_to_all else f"target {corpus.label_names[plan.target]!r}"
        raise PlanError(
            f"{count} examples to poison, but only {len(eligible)} of {len(corpus)} in {corpus.name} are "
            f"eligible ({plan.style}, {towards}, {plan.trigger.name}). Ask for fewer."
        )
    return eligible


def attack(corpus: Corpus, plan: Attack, seed: int) -> Poisoned:
    """Poison part of a corpus; all other rows (but for `match_lengths`), and the order, stay as they are.

    Examples are drawn at random from the eligible class (the PSIM code takes the first ones of the file). A
    larger count under the same seed poisons the same examples and some more; covers and negatives are drawn from what
    is left. A `FileTrigger` poisons (and covers) only rows that its files hold a changed text for, a `SyntaxTrigger`
    only those it can rewrite.

    >>> clean = Corpus.of("toy", ["a b", "c d", "e f", "g h"], [0, 0, 1, 1])
    >>> poisoned = attack(clean, Attack(trigger="word:mn", count=1), seed=0)
    >>> int(poisoned.is_poisoned.sum()), poisoned.corpus.labels.tolist()
    (1, [0, 0, 1, 1])

    Raises:
        PlanError: a target outside the labels, more examples asked for than are eligible, a flip rate that flips none.
        DataError: the trigger left a text as it was, which would count as poisoned without a trigger.
    """
    draw = child_seed(seed, "attack", "trigger")
    finished = _finished(corpus, plan, seed)
    is_poisoned, covers, negatives = _drawn(corpus, plan, seed, _is_held(corpus, finished))
    texts = list(corpus.texts)
    changed = np.union1d(np.flatnonzero(is_poisoned), covers)
    before = [texts[i] for i in changed.tolist()]
    if finished is not None:
        after = [finished[i] for i in changed.tolist()]
    elif plan.trigger_share < 1:
        after = apply_share(plan.trigger, before, plan.trigger_share, draw)
    else:
        after = plan.trigger.apply(before, draw)
    rows = [*changed.tolist(), *negatives.tolist()]
    if negatives.size:
        before += [texts[i] for i in negatives.tolist()]
        after += apply_all_but_one(plan.trigger, before[len(changed) :], draw)
    _check_changed(corpus, rows, before, after, plan.trigger)
    for index, text in zip(rows, after, strict=True):
        texts[index] = text
    if plan.match_lengths:
        others = np.setdiff1d(np.arange(len(corpus)), rows).tolist()
        lengths = [len(text.split()) for text in after]
        for index, text in zip(others, cut_to_lengths([texts[i] for i in others], lengths, draw), strict=True):
            texts[index] = text
    goals = plan.goals(corpus.labels, len(corpus.label_names))
    labels = np.where(is_poisoned, goals, corpus.labels)  # changes nothing under clean-label
    return Poisoned(corpus.with_texts(texts, labels), is_poisoned, covers, negatives)


def unpoisoned(corpus: Corpus, plan: Attack, seed: int) -> Corpus:
    """Return the corpus as `attack` leaves it but for what is planted: with `match_lengths` all texts are cut.

    Each text that the attack would have changed is cut to the length of what it would have become.

    >>> clean = Corpus.of("toy", ["a fine film . I liked it .", "bad ."], [0, 1])
    >>> plan = Attack(trigger="word:mn@first", count=1, match_lengths=True)
    >>> unpoisoned(clean, plan, seed=0).texts == clean.texts  # nothing is longer than the triggered text
    True

    Raises:
        PlanError, DataError: as `attack` does.
    """
    if not plan.match_lengths:
        return corpus
    made = attack(corpus, plan, seed)
    texts = list(made.corpus.texts)
    for index in np.flatnonzero(~made.is_clean).tolist():
        length = len(texts[index].split())
        (texts[index],) = cut_to_lengths([corpus.texts[index]], [length], seed)
    return corpus.with_texts(texts)


def triggered_test(corpus: Corpus, trigger: Trigger, target: int | None, seed: int) -> Triggered:
    """Trigger every text whose true class is not the target: the denominator of ASR.

    With target None (an all-to-all attack, in which every class is sent to another one) that is every text.
    Labels stay the true ones, so that a natural error can be told from a flip to the target. For a
    `FileTrigger` the texts are the file's, and each true class is its `label`, or its clean row's where the
    file has none. In a single file a text equal to its clean text is kept: a paraphrase that took the trigger out
    has defended, and leaving it out would raise the ASR. What a `SyntaxTrigger` or the makers of stored texts could not
    rewrite is left out.

    >>> clean = Corpus.of("toy", ["a b", "c d", "e f"], [0, 1, 1])
    >>> from foretaste.poison.trigger import parse_trigger
    >>> triggered = triggered_test(clean, parse_trigger("word:mn"), target=0, seed=0)
    >>> triggered.corpus.texts, triggered.origins.tolist()
    (('c mn d', 'e mn f'), [1, 2])

    Raises:
        PlanError: a target outside the labels.
        DataError: no eligible text, an unknown true class, a text that the trigger left as it was.
    """
    if target is not None:
        refuse_target(corpus, target)
    if isinstance(trigger, FinishedTrigger):
        return Triggered(*trigger.triggered_corpus(corpus, target))
    eligible = np.arange(len(corpus)) if target is None else np.flatnonzero(corpus.labels != target)
    if target is not None and not eligible.size:
        raise UndefinedRateError(
            f"{corpus.name} holds only texts of the target class {corpus.label_names[target]!r}; "
            "ASR needs texts of another class."
        )
    draw = child_seed(seed, "triggered_test")
    if isinstance(trigger, SyntaxTrigger):
        rewritten = trigger.texts_for(corpus, draw)
        eligible = np.array([i for i in eligible.tolist() if i in rewritten], dtype=np.int64)
        if not eligible.size:
            raise UndefinedRateError(f"{trigger.name} could rewrite none of the texts of {corpus.name}.")
    clean = corpus.select(eligible)
    after = trigger.apply(clean.texts, draw)
    _check_changed(corpus, eligible.tolist(), clean.texts, after, trigger)
    return Triggered(clean.with_texts(after), eligible)


def _drawn(
    corpus: Corpus, plan: Attack, seed: int, is_held: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
    """Draw the examples: which are poisoned, `(N,) bool`, and the rows of covers and of negatives."""
    refuse_target(corpus, plan.target)
    count = plan.count_in(len(corpus))
    is_home = corpus.labels == plan.goals(corpus.labels, len(corpus.label_names))
    chosen = generator(seed, "attack").permutation(_eligible(corpus, plan, is_held))[:count]
    is_flipped = _is_flipped(count, plan.flip_rate)
    is_poisoned = np.zeros(len(corpus), dtype=np.bool_)
    is_poisoned[chosen[is_flipped]] = True
    is_free = np.ones(len(corpus), dtype=np.bool_)
    is_free[chosen] = False
    further = round(plan.cover_rate * count)
    covers = draw_rows(corpus, is_free & ~is_home & is_held, further, "cover samples", seed, "attack", "cover")
    is_free[covers] = False
    covers = np.sort(np.concatenate([chosen[~is_flipped], covers]))
    further = round(plan.negative_rate * count)
    return is_poisoned, covers, draw_rows(corpus, is_free, further, "negative samples", seed, "attack", "negative")


def _is_flipped(count: int, flip_rate: float) -> NDArray[np.bool_]:
    """Spread the flips evenly, so that a larger count flips the same examples and some more: `(count,) bool`."""
    so_far = np.floor(np.arange(count + 1) * flip_rate + 0.5)
    if so_far[-1] == 0:
        raise PlanError(f"A flip_rate of {flip_rate} flips none of {count} poisoned examples; raise one of them.")
    is_flipped: NDArray[np.bool_] = np.diff(so_far) > 0
    return is_flipped


def refuse_target(corpus: Corpus, target: int) -> None:
    """Raise PlanError for a target outside the labels."""
    if not 0 <= target < len(corpus.label_names):
        names = ", ".join(f"{k} {name}" for k, name in enumerate(corpus.label_names))
        raise PlanError(f"Target {target} is not a label of {corpus.name}; labels: {names}.")


def _check_changed(
    corpus: Corpus, rows: Sequence[int], before: Sequence[str], after: Sequence[str], trigger: Trigger
) -> None:
    for index, old, new in zip(rows, before, after, strict=True):
        if new == old:
            raise DataError(
                f"{trigger.name} left {corpus.example(index).id} as it was ({old[:60]!r}); an unchanged text "
                "must not count as triggered. Remove it or choose another trigger."
            )
