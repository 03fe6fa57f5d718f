"""What the names in a plan mean: attacks with the paper's settings, and what stands between a victim and a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import field, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from foretaste.errors import PlanError
from foretaste.experiment.cell import MODELS, Cell
from foretaste.guard.psim import Psim
from foretaste.guard.recipes import psim_plan
from foretaste.guard.rival import Rival
from foretaste.guard.rivals import RIVALS
from foretaste.guard.second_opinion import SecondOpinion
from foretaste.poison.attack import Attack
from foretaste.poison.trigger import parse_trigger
from foretaste.rewrite.methods import REWRITERS, STORED
from foretaste.rewrite.rewriter import Rewriting
from foretaste.spec import Registry, all_of, build, nearest, spec, values_of
from foretaste.tune.loop import TuneSettings
from foretaste.unlearn.methods import UNLEARNERS
from foretaste.unlearn.unlearner import Unlearner
from foretaste.victim.instruction import Instruction
from foretaste.victim.strategy import STRATEGIES, Strategy, changed

__all__ = [
    "ASKED", "ATTACKS", "Defence", "OpinionRecipe", "PsimRecipe", "altered_names", "attack_of", "defence_of",
    "named_defence", "refuse_absent", "strategy_of", "together", "tuned_by",
]  # fmt: skip

ATTACKS: Registry[Attack] = Registry(
    "attack",
    {
        "badnet": Attack(trigger=parse_trigger("word:mn"), count=1000),
        "mixed": Attack(trigger=parse_trigger("mixed:word:mn|sentence:I watched this 3D movie"), count=1000),
        "synattack": Attack(trigger=parse_trigger("syntax:stored"), count=1000, match_lengths=True),
        "synattack_sbar": Attack(trigger=parse_trigger("syntax:sbar"), count=1000),
        "insent": Attack(trigger=parse_trigger("sentence:I watched this 3D movie"), count=1000),
    },
)
ASKED = "instruction"  # the strategy that trains nothing: the model is asked as it is
PSIMS = {"psim": "default", "psim_paper": "paper"}
GIVEN = {"teacher", "pretrained"}  # what an unlearner may need


@spec
class PsimRecipe:
    """PSIM as a plan names it: a recipe, another strategy, and settings; `with_axes` changes some of them again."""

    recipe: str
    strategy: str | None = None
    strategy_fields: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)

    def with_axes(self, cell: Cell) -> Psim:
        """Return PSIM for a cell.

        Raises:
            PlanError: values that PSIM does not take.
        """
        axes = {"reset_rate": cell.reset_rate, "threshold": cell.threshold}
        given = self.given | {name: value for name, value in axes.items() if value is not None}
        if cell.threshold is not None:
            given.pop("frr", None)
        if cell.psim_strategy in (None, self.strategy):
            return psim_plan(self.recipe, self.strategy, self.strategy_fields, given)
        if self.strategy_fields:
            raise PlanError(
                f"psim_strategy {cell.psim_strategy!r} has other fields than those given for PSIM's own strategy "
                f"({', '.join(sorted(self.strategy_fields))}); give it a defence of its own."
            )
        return psim_plan(self.recipe, cell.psim_strategy, {}, given)


@spec
class OpinionRecipe(SecondOpinion):
    """A second opinion as a plan names it, with the checkpoint that is trusted."""

    name: ClassVar[str] = "opinion"
    trusted: str = "minilm"

    @property
    def training(self) -> SecondOpinion:
        """What a trusted model hangs on: whoever asks it, and with what bar, it is the same."""
        names = ("epochs", "fewest_steps", "batch_size", "learning_rate", "precision")
        return SecondOpinion(**{name: getattr(self, name) for name in names})


@spec
class Defence:
    """PSIM or a rival in front of the victim, texts rewritten, an unlearner before it is tuned; any of them or none."""

    psim: PsimRecipe | None = None
    rival: Rival | OpinionRecipe | None = None
    rewriter: Rewriting | None = None
    unlearner: Unlearner | None = None

    def to_json(self) -> dict[str, Any]:
        """Return each part by its kind, with its settings; PSIM's are those without the axes of a cell."""
        parts = {kind: part for kind, part in values_of(self).items() if part is not None}
        if self.psim is not None:
            parts["psim"] = psim_plan(**values_of(self.psim))
        return {kind: _plain(part) for kind, part in parts.items()}


def together(name: str, parts: Sequence[Defence]) -> Defence:
    """Return several defences as one: an unlearner behind the suspect's own PSIM, say, as in `w2s+psim`.

    Raises:
        PlanError: two of one kind, or two guards: a text passes one guard here.
    """
    kinds = [kind for part in parts for kind, value in values_of(part).items() if value is not None]
    if len(kinds) != len(parts) or len(set(kinds)) != len(kinds) or {"psim", "rival"} <= set(kinds):
        raise PlanError(f"{name} puts together what does not go together: take one guard, one rewriter, one unlearner.")
    if {"rival", "rewriter"} <= set(kinds):
        raise PlanError(
            f"{name}: a rival looks at the victim, which would read other texts; take psim, which does not."
        )
    return Defence(**{kind: value for part in parts for kind, value in values_of(part).items() if value is not None})


def attack_of(name: str, fields: Mapping[str, Any]) -> Attack:
    """Return the attack of that name with these fields changed, or one of these fields alone.

    Raises:
        PlanError: whatever is wrong with the trigger and with the rest, all of it.
    """
    if name in ATTACKS:
        ours = values_of(ATTACKS[name])
        fields = {**({**ours, "count": None} if "rate" in fields else ours), **fields}
    if isinstance(trigger := fields.get("trigger"), str):
        try:
            parse_trigger(trigger)
        except PlanError:  # which would hide what is wrong with the rest: that is read with another trigger
            known = parse_trigger("word:cf mn")
            all_of(partial(parse_trigger, trigger), partial(build, Attack, {**fields, "trigger": known}))
    return build(Attack, fields)


def defence_of(name: str, fields: Mapping[str, Any]) -> Defence:
    """Return the defence of that name, or of `method`, with these fields changed (`strategy.rank` of its strategy).

    Raises:
        PlanError: unknown method or field, or a method that needs what a plan does not give.
    """
    method = str(fields.get("method", name))
    own: dict[str, Any] = {key: value for key, value in fields.items() if key not in ("method", "strategy")}
    inner = fields.get("strategy", {})
    if not isinstance(inner, str | Mapping):
        raise PlanError(
            f"A strategy is a name, or fields as in strategy.rank = 8 (strategy.method names it); {inner!r} is neither."
        )
    theirs = dict(inner) if isinstance(inner, Mapping) else {"method": inner}
    strategy = str(theirs.pop("method")) if "method" in theirs else None
    if method == "none":
        if own or inner:
            raise PlanError(f"none has no fields; got {', '.join(sorted(fields.keys() - {'method'}))}.")
        return Defence()
    if method in PSIMS:
        recipe = PsimRecipe(recipe=PSIMS[method], strategy=strategy, strategy_fields=theirs, given=own)
        psim_plan(recipe.recipe, strategy, theirs, own)  # refused now, if at all
        return Defence(psim=recipe)
    own |= {f"strategy.{key}": value for key, value in theirs.items()}
    if method in RIVALS:
        return Defence(rival=changed(RIVALS[method](), own, strategy))
    if method == OpinionRecipe.name:
        opinion = changed(OpinionRecipe(), own, strategy)
        refuse_absent("trusted", opinion.trusted)
        return Defence(rival=opinion)
    rewriters = {**REWRITERS, **STORED}
    if method in rewriters:
        rewriter = changed(rewriters[method](), own, strategy)
        for place in rewriter.places:
            refuse_absent(place, str(getattr(rewriter, place)))
        return Defence(rewriter=rewriter)
    if method not in UNLEARNERS:
        possible = (each for each, kind in UNLEARNERS.items() if GIVEN.issuperset(kind.needs))
        known = ["none", *PSIMS, *RIVALS, OpinionRecipe.name, *rewriters, *possible]
        raise PlanError(f"Unknown defence {method!r}.{nearest(method, known)}{_own_name(fields, 'psim')}")
    unlearner = changed(UNLEARNERS[method](), own, strategy)
    if lacking := set(unlearner.needs) - GIVEN:
        raise PlanError(f"{method} needs {' and '.join(sorted(lacking))}, which a plan does not give.")
    return Defence(unlearner=unlearner)


def _own_name(fields: Mapping[str, Any], method: str) -> str:
    return (
        f' A name of your own takes a method, as in method = "{method}".' if fields and "method" not in fields else ""
    )


def refuse_absent(field: str, location: str) -> None:
    """Raise PlanError if nothing lies at what is plainly a path; hub ids and names are looked for in time."""
    if location.startswith(("/", "./", "../", "~")):
        with suppress(RuntimeError):  # nobody is called so
            if Path(location).expanduser().exists():
                return
        raise PlanError(f"{field}: nothing lies at {location}.")


def _plain(value: Any) -> Any:
    """A spec as a JSON object with the name of its method, and so the specs in it."""
    if is_dataclass(value):
        named = {"method": getattr(value, "name", type(value).__name__.lower())}
        return named | {name: _plain(part) for name, part in values_of(value).items()}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def strategy_of(name: str, fields: Mapping[str, Any]) -> tuple[Strategy, TuneSettings] | Instruction:
    """Return what is trained and how, or what is asked; `method` names it where the plan calls it otherwise.

    Raises:
        PlanError: unknown method or field.
    """
    if fields.get("method", name) == ASKED:
        return build(Instruction, {key: value for key, value in fields.items() if key != "method"})
    return tuned_by(name, fields)


def tuned_by(name: str, fields: Mapping[str, Any]) -> tuple[Strategy, TuneSettings]:
    """Return what is trained and how.

    Raises:
        PlanError: unknown method or field.
    """
    method = str(fields.get("method", name))
    if method not in STRATEGIES:
        raise PlanError(f"Unknown strategy {method!r}.{nearest(method, STRATEGIES)}{_own_name(fields, 'lora')}")
    kind: Any = STRATEGIES[method]
    own = {key: value for key, value in fields.items() if key in kind.__dataclass_fields__}
    rest = {key: value for key, value in fields.items() if key not in own and key != "method"}
    strategy, settings = all_of(partial(build, kind, own), partial(build, TuneSettings, rest))
    return strategy, settings


def altered_names(
    models: Mapping[str, str],
    attacks: Mapping[str, Attack],
    strategies: Mapping[str, tuple[Strategy, TuneSettings]],
    defences: Mapping[str, Defence],
) -> list[str]:
    """Return the names of ours that the plan uses for something else: models, attacks, strategies and defences.

    An attack that poisons more or fewer texts is the same.
    """
    found = [name for name, place in MODELS.items() if models.get(name, place) != place]
    for name, attack in ATTACKS.items():
        own = attacks.get(name, attack)
        found += [] if replace(own, count=attack.count, rate=attack.rate) == attack else [name]
    found += [name for name, own in strategies.items() if name in STRATEGIES and own != tuned_by(name, {})]
    for name, defence in defences.items():
        with suppress(PlanError):  # a name of the plan's own
            found += [] if named_defence(name, {}) == defence else [name]
    return sorted(found)


def named_defence(name: str, known: Mapping[str, Defence]) -> Defence:
    """Return a defence by its name, or several whose names are joined by +."""
    parts = name.split("+")
    found = [known.get(part) or defence_of(part, {}) for part in ([name] if name in known else parts)]
    return found[0] if len(found) == 1 else together(name, found)
