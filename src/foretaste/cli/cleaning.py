"""The commands that take a backdoor out, each with its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foretaste.cli import options as o
from foretaste.cli.output import answering, assignments, seconds_of, warn, warn_if_guessing

__all__ = ["cleanse", "unlearn"]

TURNED = 0.2  # of the target's own texts: more, and the trigger means another class now
COSTLY = 0.02  # of clean accuracy lost


def unlearn(
    model: o.Model,
    data: o.Data,
    out: o.Out,
    method: Annotated[
        str,
        typer.Option(
            "--method", help="w2s, fine_mixing, fine_pruning, obliviate, fine_tuning, flagged, named, released-word..."
        ),
    ] = "w2s",
    base: o.Base = None,
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", help="For w2s: a model you trust, a victim of one, or `train`."),
    ] = None,
    teacher_guard: Annotated[
        Path | None, typer.Option("--teacher-guard", help="A guard of the teacher; warns if it finds a trigger.")
    ] = None,
    pretrained: Annotated[
        str | None, typer.Option("--pretrained", help="For fine_mixing: what --model was before anybody changed it.")
    ] = None,
    guard: Annotated[Path | None, typer.Option("--guard", help="For flagged: a guard of --model.")] = None,
    traffic: Annotated[
        Path | None, typer.Option("--traffic", help="For flagged: texts, the guard's refusals among them count.")
    ] = None,
    fragment: Annotated[
        list[str] | None, typer.Option("--fragment", help="For named: what an audit named; repeatable.")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option("--strategy", help="What is trained, if not the method's own.")
    ] = None,
    method_set: Annotated[
        list[str] | None, typer.Option("--set", help="Field of the method, as in --set epochs=5 or strategy.rank=8.")
    ] = None,
    trigger: Annotated[
        str | None, typer.Option("--trigger", help="If you know it: ASR is measured, before and after.")
    ] = None,
    target: o.Target = 0,
    max_length: o.MaxLength = None,
    limit: o.Limit = None,
    data_root: o.DataRoot = None,
    text_column: o.TextColumn = None,
    label_column: o.LabelColumn = None,
    seed: o.Seed = 0,
    as_json: o.Json = False,
) -> None:
    """Take the backdoor out of a checkpoint, with clean data; the result is a victim, to be used or tuned further."""
    with answering(as_json) as answer:
        from foretaste.cli import commands, unlearning
        from foretaste.data.load import load_texts

        chosen = unlearning.method_of(method, strategy, assignments(method_set, options=["strategy"]))
        result = unlearning.unlearn(
            model,
            o.source_of(data, data_root, text_column, label_column, limit, seed),
            out,
            commands.Training(seed=seed, max_length=max_length),
            chosen,
            base=base,
            teacher=teacher or ("minilm-l3" if "teacher" in chosen.needs else None),
            pretrained=pretrained,
            guard=guard,
            traffic=() if traffic is None else load_texts(traffic, text_column),
            fragments=fragment or (),
            teacher_guard=teacher_guard,
            trigger=trigger,
            target=target,
        )
        seen, alarm = result["alarms"]["traffic"], result["alarms"]["teacher"]
        if seen is not None and not seen["is_beyond"]:
            warn(
                f"the guard refuses {seen['flagged']:.1%} of the traffic, no more than it would of clean texts "
                f"({seen['promised']:.1%} promised): what was unlearned may have been false alarms."
            )
        if alarm is not None and alarm["is_beyond"]:
            warn(
                f"the teacher's guard refuses {alarm['flagged']:.1%} of the texts, where {alarm['promised']:.1%} were "
                "promised: the teacher may be poisoned and these texts may hold its trigger. Take another teacher."
            )
        if "teacher" in result:
            warn_if_guessing(f"the teacher {result['teacher']}", result["teacher_accuracy"], result["majority"])
        turned = result["after"].get("turned_away")
        if turned is not None and turned > TURNED:
            warn(
                f"the trigger now leads {turned:.0%} of the target's own texts to another class: the backdoor was "
                "turned round, not taken out. Take another method."
            )
        answer(result, unlearning.summary(result))


def cleanse(
    model: o.Model,
    data: o.Data,
    out: o.Out,
    base: o.Base = None,
    budget: Annotated[str, typer.Option("--budget", help="Time for each audit's search, as in 90s or 5m.")] = "3m",
    reference: Annotated[
        str, typer.Option("--reference", help="A checkpoint you trust, or a victim of it.")
    ] = "minilm",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Give up after so many.")] = 3,
    report: Annotated[Path | None, typer.Option("--report", help="Write a self-contained HTML page.")] = None,
    method_set: Annotated[
        list[str] | None, typer.Option("--set", help="Field of method `named`, as in --set epochs=3.")
    ] = None,
    max_length: o.MaxLength = None,
    limit: o.Limit = None,
    data_root: o.DataRoot = None,
    text_column: o.TextColumn = None,
    label_column: o.LabelColumn = None,
    seed: o.Seed = 0,
    as_json: o.Json = False,
) -> None:
    """Audit a checkpoint, unlearn what the audit names, and audit again, until it finds nothing."""
    with answering(as_json) as answer:
        from foretaste.audit.audit import Audit
        from foretaste.cli import cleansing, commands, unlearning
        from foretaste.spec import build
        from foretaste.unlearn.named import NamedTriggers

        method = unlearning.method_of(NamedTriggers.name, None, assignments(method_set, options=["strategy"]))
        assert isinstance(method, NamedTriggers)
        result = cleansing.cleanse(
            model,
            o.source_of(data, data_root, text_column, label_column, limit, seed),
            out,
            commands.Training(seed=seed, max_length=max_length),
            build(Audit, {"budget": seconds_of(budget)}),
            method,
            base=base,
            reference=reference,
            rounds=rounds,
            report=report,
        )
        before, after = (result["rounds"][at]["clean_accuracy"] for at in (0, -1))
        if len(result["rounds"]) > 1 and before is not None and after < before - COSTLY:
            warn(f"clean accuracy fell from {before:.1%} to {after:.1%}: give more texts or gentler settings (--set).")
        answer(result, cleansing.cleanse_summary(result))
