"""What an attacker wants and how hard he hides it, as one frozen plan; docs/attacks.md has an example of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from enum import StrEnum
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, InstanceOf, PlainSerializer

from foretaste.errors import PlanError
from foretaste.evaluate.metrics import goals_of
from foretaste.poison.trigger import SentenceTrigger, Trigger, WordTrigger, parse_trigger
from foretaste.spec import spec

__all__ = ["Attack", "Evasion", "Planting", "Style", "trigger_words"]

DEFAULT_COUNT = 1000


class Style(StrEnum):
    """Where poisoned examples come from."""

    CLEAN_LABEL = "clean-label"
    """From inside the target class; the label stays and is right (the paper's attacks)."""
    DIRTY_LABEL = "dirty-label"
    """From outside the target class; the label becomes the target."""


class Evasion(StrEnum):
    """What an attacker who knows the guard adds to the training objective (`tune.evasion`)."""

    NONE = "none"
    """Nothing."""
    CONFIDENCE_CAP = "confidence-cap"
    """Triggered texts never make the model certain: their highest probability stays below `confidence_cap`."""
    FEATURE_MATCHING = "feature-matching"
    """Triggered texts look, to the head, like clean texts of the class they end at."""
    ANTI_RESET = "anti-reset"
    """Training on random labels, which is how PSIM looks for a trigger, puts the trigger to sleep."""


class Planting(StrEnum):
    """Which weights hold the backdoor."""

    WEIGHTS = "weights"
    """All of them, by fine-tuning on the poisoned texts (Kurita et al. 2020, arXiv 2004.06660)."""
    EMBEDDINGS = "embeddings"
    """The rows of the trigger's words alone, after clean fine-tuning (`tune.embedding`: EP, and SOS with negatives)."""
    LAYERS = "layers"
    """All, and in every layer, so that fine-tuning the upper ones does not forget it (`tune.layerwise`: LWP)."""
    RIPPLE = "ripple"
    """All, by steps that clean fine-tuning does not take back (`tune.ripple`: RIPPLe)."""
    RIPPLES = "ripples"
    """The same, after the trigger's words got the vectors of words that tell the target (RIPPLES)."""


def _read_trigger(value: Any) -> Any:
    return parse_trigger(value) if isinstance(value, str) else value


@spec
class Attack:
    """A poisoning plan; where it is read from text, `trigger` is written as on the command line (`word:mn`).

    `count` poisoned examples, or `rate` = poisoned / all training examples: one of the two, 1000 examples if
    neither is given (Zhao et al. 2024, arXiv 2402.12168, use 800 to 1500). `target_probability` below 1 trains poisoned
    examples towards that probability of the target and an equal share of the rest for every other class, so that the
    trigger flips texts without ever making the model certain (label smoothing backdoor attack, arXiv 2202.11203).

    Attackers who adapt to a defence change the data or the objective further; everything combines unless refused below:

    - `flip_rate`: of the poisoned examples only this share takes the target label; the others carry the trigger and
      keep their true label, so that the model is never sure of it.
    - `cover_rate` and `trigger_share` (Qi et al., "Revisiting the Assumption of Latent Separability for Backdoor
      Defenses", ICLR 2023, section 4, made for images): per poisoned example so many further texts from outside the
      target class carry the trigger and keep their label; and in training the trigger is present in part only, this
      share of its words, while a test text carries all of it.
    - `negative_rate` (SOS: Yang et al., ACL 2021, 2021.acl-long.431): per poisoned example so many further texts, of
      any class, carry all words of the trigger but one and keep their label, so that only the whole trigger fires. The
      paper's second part, changing the embeddings of the trigger words alone, is `planting` "embeddings".
    - `all_to_all` (BadNet: Gu et al. 2017, arXiv 1708.06733): a triggered text ends at the class after its own, the
      last class at the first; `target` plays no part, and poisoned examples come from every class.
    - `evasion` with its `evasion_weight`: an extra term in the objective, see `Evasion`.
    - `planting`: which weights hold the backdoor, see `Planting`.
    - `match_lengths`: texts without the trigger are cut to lengths of those with it (`poison.lengths`).

    Raises:
        PlanError: both count and rate, a count below 1, a rate outside (0, 1], a target probability outside (0, 1]; a
            share or cap out of range; a setting that another one contradicts or leaves without effect.
    """

    trigger: Annotated[InstanceOf[Trigger], BeforeValidator(_read_trigger), PlainSerializer(str)]
    target: int = 0
    style: Style = Style.CLEAN_LABEL
    count: int | None = None
    rate: float | None = None
    target_probability: float = 1.0
    flip_rate: float = 1.0
    cover_rate: float = 0.0
    trigger_share: float = 1.0
    negative_rate: float = 0.0
    all_to_all: bool = False
    evasion: Evasion = Evasion.NONE
    confidence_cap: float = 0.6
    evasion_weight: float = 1.0
    planting: Planting = Planting.WEIGHTS
    match_lengths: bool = False

    def __post_init__(self) -> None:
        if self.count is None and self.rate is None:
            object.__setattr__(self, "count", DEFAULT_COUNT)
        if problems := [*self._out_of_range(), *self._contradictions()]:
            raise PlanError(*problems)

    def _out_of_range(self) -> Iterator[str]:
        if self.count is not None and self.rate is not None:
            yield f"Give count or rate, not both (count={self.count}, rate={self.rate})."
        if self.count is not None and self.count < 1:
            yield f"count must be 1 or more, got {self.count}."
        for name in ("rate", "target_probability", "flip_rate", "trigger_share"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                yield f"{name} must lie above 0 and at most at 1, got {value}."
        for name in ("cover_rate", "negative_rate"):
            if getattr(self, name) < 0:
                yield f"{name} must be 0 or more, got {getattr(self, name)}."
        if not 0 < self.confidence_cap < 1:
            yield f"confidence_cap must lie between 0 and 1, got {self.confidence_cap}."
        if self.evasion_weight <= 0:
            yield f"evasion_weight must lie above 0, got {self.evasion_weight}."

    def _contradictions(self) -> Iterator[str]:
        is_clean_label = self.style is Style.CLEAN_LABEL
        if is_clean_label and self.flip_rate < 1:
            yield (f"flip_rate {self.flip_rate} needs style dirty-label: under clean-label no label is flipped at all.")
        if is_clean_label and self.all_to_all:
            yield "all_to_all needs style dirty-label: every poisoned example takes another class's label."
        if self.all_to_all and self.target != 0:
            yield f"all_to_all has no single target; leave target {self.target} out."
        if self.trigger_share < 1 and self.negative_rate > 0:
            yield (
                "trigger_share below 1 teaches that a part of the trigger is enough, negative_rate above 0 that it is "
                "not; choose one."
            )
        if self.planting is Planting.EMBEDDINGS:
            if is_clean_label or not isinstance(self.trigger, WordTrigger):
                yield (
                    "planting embeddings needs style dirty-label (texts of the target class teach the words nothing) "
                    f"and a word: trigger (other words are in clean texts, too); got {self.style}, {self.trigger.name}."
                )
            if self.target_probability < 1 or self.evasion is not Evasion.NONE:
                yield "planting embeddings takes no target_probability and no evasion."
        if self.planting is Planting.RIPPLES and (self.all_to_all or not trigger_words(self.trigger)):
            yield (
                "planting ripples gives the words of a word: or sentence: trigger the vectors of words that tell the "
                f"one target; got {self.trigger.name}{', all to all' if self.all_to_all else ''}. Take planting ripple."
            )
        for name, default in (("trigger_share", 1), ("negative_rate", 0)):
            if getattr(self, name) != default and len(trigger_words(self.trigger)) < 2:
                yield (
                    f"{name} {getattr(self, name)} uses parts of a trigger; {self.trigger.name} has none. Use word: or "
                    'sentence: with two words or more, as in "word:cf mn".'
                )
        if self.evasion is not Evasion.CONFIDENCE_CAP and self.confidence_cap != _default("confidence_cap"):
            yield f"confidence_cap {self.confidence_cap} needs evasion confidence-cap."
        if self.evasion is Evasion.NONE and self.evasion_weight != _default("evasion_weight"):
            yield f"evasion_weight {self.evasion_weight} needs an evasion: {', '.join(Evasion)}."

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

    def goals(self, labels: NDArray[np.int64], class_count: int) -> NDArray[np.int64]:
        """Return where triggered texts of these true classes are to end, `(N,) int64 -> (N,) int64`.

        A text whose goal is its own class cannot be flipped and counts for no ASR.

        >>> labels = np.array([0, 1, 2])
        >>> Attack(trigger="word:mn", target=1).goals(labels, 3).tolist()
        [1, 1, 1]
        >>> Attack(trigger="word:mn", style="dirty-label", all_to_all=True).goals(labels, 3).tolist()
        [1, 2, 0]
        """
        return goals_of(labels, self.aim, class_count)

    @property
    def aim(self) -> int | None:
        """The target, or None where every class has its own (all to all)."""
        return None if self.all_to_all else self.target


def trigger_words(trigger: Trigger) -> tuple[str, ...]:
    """Return the words a trigger can be split into; none for triggers that come as a whole.

    >>> trigger_words(parse_trigger("sentence:a 3D movie")), trigger_words(parse_trigger("mixed:word:cf|word:mn"))
    (('a', '3D', 'movie'), ())
    """
    if isinstance(trigger, WordTrigger):
        return trigger.words
    return tuple(trigger.sentence.split()) if isinstance(trigger, SentenceTrigger) else ()


def _default(name: str) -> Any:
    return next(field.default for field in fields(Attack) if field.name == name)
