"""Cells that fine-tune nothing: a language model is used as its supplier tuned it, and asked with an instruction."""

from __future__ import annotations

from collections.abc import Iterator

from foretaste.data.hub import NAMED_SETS
from foretaste.errors import PlanError
from foretaste.experiment.cell import Cell
from foretaste.experiment.methods import ASKED, Defence
from foretaste.victim.instruction import INSTRUCTIONS, Instruction

__all__ = ["refusals"]


def refusals(
    cell: Cell, proxy: str | None, instruction: Instruction | None, defence: Defence
) -> Iterator[tuple[str, str]]:
    """Yield the axis and the reason why nothing can be asked or learnt here; an instruction of None is the data's."""
    classes = NAMED_SETS[cell.data].label_names if cell.data in NAMED_SETS else None
    if instruction is None and cell.data not in INSTRUCTIONS:
        yield (
            "strategy",
            f"No instruction for {cell.data} is known; give one: [strategy.NAME] "
            f'method = "{ASKED}", template = "...", verbalizer = ["...", "..."].',
        )
    if instruction is not None and classes is not None:
        try:
            instruction.refuse_others(len(classes))
        except PlanError as error:
            yield "strategy", str(error)
    if proxy is not None and proxy in NAMED_SETS and classes != NAMED_SETS[proxy].label_names:
        yield "data", f'A model tuned on {proxy} has no answer for {cell.data}; take knowledge = "full_data".'
    if defence.unlearner is not None:
        yield (
            "defence",
            f"{cell.defence} is for weights that are fine-tuned afterwards; under {cell.strategy} none are.",
        )
