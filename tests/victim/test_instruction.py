"""Instructions: one place for the text, one for the answer, one word for each class."""

from __future__ import annotations

import pytest

from foretaste.data.hub import NAMED_SETS
from foretaste.errors import PlanError
from foretaste.spec import build
from foretaste.victim.instruction import INSTRUCTIONS, Instruction

WORDS = ("bad", "good")


@pytest.mark.parametrize(
    ("template", "words", "message"),
    [
        ("It was {mask}.", WORDS, "one {text}"),
        ("{text} {text} It was {mask}.", WORDS, "one {text}"),
        ("{text} It was good.", WORDS, "one {mask}"),
        ("{text} {mask} {mask}", WORDS, "one {mask}"),
        ("{text} It was {mask}.", ("bad",), "two classes or more"),
        ("{text} It was {mask}.", ("bad", "very good"), "'very good'"),
        ("{text} It was {mask}.", ("bad", ""), "''"),
        ("{text} It was {mask}.", ("bad", "bad"), "same word"),
    ],
)
def test_what_is_no_instruction_is_refused(template: str, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Instruction(template=template, verbalizer=words)


def test_words_may_come_from_a_command_line_and_other_fields_may_not() -> None:
    assert build(Instruction, {"template": "{text} {mask}", "verbalizer": "no,yes"}).verbalizer == ("no", "yes")
    with pytest.raises(PlanError, match="Did you mean 'verbalizer'"):
        build(Instruction, {"template": "{text} {mask}", "verbaliser": WORDS})


@pytest.mark.parametrize("name", [*NAMED_SETS, "toy"])
def test_every_named_set_has_an_instruction_with_a_word_for_each_class(name: str) -> None:
    count = len(NAMED_SETS[name].label_names) if name in NAMED_SETS else 2
    INSTRUCTIONS[name].refuse_others(count)
    with pytest.raises(PlanError, match="classes"):
        INSTRUCTIONS[name].refuse_others(count + 1)
