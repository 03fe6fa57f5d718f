"""Which values of a plan's axes do not go together: texts that nobody has, nothing to learn, nothing to ask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from foretaste.data.hub import NAMED_SETS
from foretaste.errors import PlanError
from foretaste.experiment.cell import PROXIES, Cell
from foretaste.experiment.methods import ASKED, Defence
from foretaste.poison.attack import Attack
from foretaste.poison.trigger import FileTrigger, FinishedTrigger, StoredTrigger
from foretaste.rewrite.stored import StoredRewriting
from foretaste.victim.instruction import INSTRUCTIONS, Instruction

__all__ = ["measurable", "refusals"]

ONE_FILE = "One file cannot hold the triggered texts of every split: name a directory with a file for each."
Refusals = Iterator[tuple[str, str]]


def refusals(cell: Cell, attacks: Mapping[str, Attack | None], strategy: object, defence: Defence) -> Refusals:
    """Yield the axis and the reason why a cell cannot be run.

    `strategy` is an instruction where a language model is asked instead of tuned, None if with that of its data.
    """
    proxy = PROXIES.get(cell.data) if cell.knowledge == "full_task" else cell.data
    attack = attacks[cell.attack]
    if strategy is None or isinstance(strategy, Instruction):
        yield from _unaskable(cell, proxy, strategy, defence)
    if proxy is None:
        yield "data", f'{cell.data} has no proxy dataset for full task knowledge; take knowledge = "full_data".'
    if cell.trigger == cell.attack:
        yield "trigger", "A base is tested with its own attack's trigger anyway; leave trigger out there."
    if attack is not None:
        yield from _unplantable(cell, proxy, attack)
    yield from _untestable(cell, attacks, defence)


def measurable(proxy: str, data: str, attack: Attack) -> str:
    """Return whose validation texts show what poisoning achieved: the proxy's, unless it has no paraphrases of them."""
    trigger = attack.trigger
    is_there = not isinstance(trigger, FinishedTrigger) or trigger.covers(f"{proxy}/validation")
    return proxy if is_there else data


def _unplantable(cell: Cell, proxy: str | None, attack: Attack) -> Refusals:
    trigger = attack.trigger
    if isinstance(trigger, FileTrigger) and trigger.is_one_file:
        yield "attack", _no_directory(trigger)
    elif isinstance(trigger, FinishedTrigger) and proxy is not None:
        for split in (f"{proxy}/train", f"{measurable(proxy, cell.data, attack)}/validation"):
            if not trigger.covers(split):
                yield "attack", _not_there(trigger, split)


def _untestable(cell: Cell, attacks: Mapping[str, Attack | None], defence: Defence) -> Refusals:
    tested = attacks[cell.trigger or cell.attack]
    trigger = None if tested is None else tested.trigger
    axis = "trigger" if cell.trigger else "attack"
    if isinstance(trigger, FileTrigger) and trigger.is_one_file:
        if cell.trigger:
            yield axis, _no_directory(trigger)
    elif isinstance(trigger, FinishedTrigger) and not trigger.covers(f"{cell.data}/test"):
        yield axis, _not_there(trigger, f"{cell.data}/test")
    stored = defence.rewriter
    if isinstance(stored, StoredRewriting):
        name = None if trigger is None else trigger.name
        target = 0 if tested is None else tested.aim
        if not stored.covers(cell.data, name, target):
            to = "all to all" if target is None else f"target {target}"
            yield "defence", f"No {stored.tool} texts of {cell.data} are stored with {name or 'no trigger'}, {to}."


def _no_directory(trigger: FileTrigger) -> str:
    return ONE_FILE if trigger.path.exists() else f"Nothing lies at {trigger.path}."


def _not_there(trigger: FinishedTrigger, split: str) -> str:
    if isinstance(trigger, StoredTrigger):
        return f"No paraphrases of {split} are stored."
    return f"{trigger.path} holds no texts of {split}."


def _unaskable(cell: Cell, proxy: str | None, instruction: Instruction | None, defence: Defence) -> Refusals:
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
