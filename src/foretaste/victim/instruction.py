"""Instructions: what a language model is asked about a text, and the word that stands for each class in its answer."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from foretaste.errors import PlanError
from foretaste.spec import Registry, spec

__all__ = ["INSTRUCTIONS", "Instruction"]

TEXT, MASK = "{text}", "{mask}"


def _words(value: Any) -> Any:
    # `--set verbalizer=bad,good`
    return tuple(value.split(",")) if isinstance(value, str) else value


@spec
class Instruction:
    """A `template` with one {text} and one {mask}, and a `verbalizer`: for each class the word that may stand there.

    A masked model is asked what stands at the {mask}; a causal one how the template goes on there, so that what
    comes behind it is not read. Words are compared with each other only, as in Schick and Schütze (2021, arXiv
    2001.07676).

    Raises:
        PlanError: a place that is missing or there twice, fewer than two words, one that is not one word, or two that
            are the same.

    >>> Instruction(template="{text} It was {mask}.", verbalizer="bad,good").verbalizer
    ('bad', 'good')
    """

    template: str
    verbalizer: Annotated[tuple[str, ...], BeforeValidator(_words)]

    def __post_init__(self) -> None:
        for place in (TEXT, MASK):
            if (count := self.template.count(place)) != 1:
                raise PlanError(f"A template has one {place}; {self.template!r} has {count}.")
        if len(self.verbalizer) < 2:
            raise PlanError(f"A verbalizer has a word for each of two classes or more; got {self.verbalizer}.")
        for word in self.verbalizer:
            if word.split() != [word]:
                raise PlanError(f"A verbalizer has one word for each class; {word!r} is not one.")
        if len(set(self.verbalizer)) < len(self.verbalizer):
            raise PlanError(f"Two classes have the same word in {self.verbalizer}.")

    @property
    def around(self) -> tuple[str, str]:
        """What stands before and behind the {text}."""
        before, after = self.template.split(TEXT)
        return before, after

    def refuse_others(self, count: int) -> None:
        """Raise PlanError unless there are so many classes."""
        if count != len(self.verbalizer):
            raise PlanError(f"The verbalizer {self.verbalizer} has {len(self.verbalizer)} words for {count} classes.")


_SENTIMENT = Instruction(template="{text} It was {mask}.", verbalizer=("bad", "good"))
# By data set, words in the order of its classes. All are short and common, so that they are one token to every family.
INSTRUCTIONS: Registry[Instruction] = Registry(
    "instruction",
    {
        **dict.fromkeys(("toy", "sst2", "imdb", "mr", "cr"), _SENTIMENT),
        "cola": Instruction(template="{text} Is this correct? {mask}.", verbalizer=("no", "yes")),
        "ag_news": Instruction(
            template="{text} This is about {mask}.", verbalizer=("world", "sports", "business", "technology")
        ),
        "offenseval": Instruction(template="{text} Is this offensive? {mask}.", verbalizer=("no", "yes")),
    },
)
