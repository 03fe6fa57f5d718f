"""The commands that use, measure or inspect what was trained, each with its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foretaste.cli import options as o
from foretaste.cli.output import answering, as_line, assignments, seconds_of

__all__ = ["audit", "check", "demo", "evaluate", "inspect", "rewrite"]


def evaluate(
    victim: Annotated[Path, typer.Option("--victim", help="Directory of the victim.")],
    data: o.Data,
    trigger: o.Trigger,
    guard: Annotated[Path | None, typer.Option("--guard", help="Directory of the guard.")] = None,
    target: o.Target = 0,
    model: Annotated[str | None, typer.Option("--model", help="Where the base is, if it was moved.")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write a self-contained HTML page.")] = None,
    whole_file: Annotated[bool, typer.Option("--whole-file", help="A single file is all test texts.")] = False,
    limit: o.Limit = None,
    data_root: o.DataRoot = None,
    text_column: o.TextColumn = None,
    label_column: o.LabelColumn = None,
    seed: o.Seed = 0,
    as_json: o.Json = False,
) -> None:
    """Measure clean accuracy and attack success, with and without the guard."""
    with answering(as_json) as answer:
        from foretaste.cli import commands
        from foretaste.cli.page import summary

        source = o.source_of(data, data_root, text_column, label_column, limit, seed, whole_file)
        result, evaluation = commands.run_evaluation(
            victim, guard, source, trigger, target=target, model=model, report=report, seed=seed
        )
        answer(result, summary(evaluation.outcome))


def check(
    victim: Annotated[Path, typer.Option("--victim", help="Directory of the victim.")],
    guard: Annotated[Path, typer.Option("--guard", help="Directory of the guard.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts, or - for one per line on standard input.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Texts in a .txt, CSV, JSONL or Parquet file.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Where the base is, if it was moved.")] = None,
    text_column: o.TextColumn = None,
    explain: Annotated[bool, typer.Option("--explain", help="Name the words that carry each refusal.")] = False,
    as_json: o.Json = False,
) -> None:
    """Give one verdict per text: the victim's label, or a refusal."""
    with answering(as_json) as answer:
        from foretaste.cli import commands
        from foretaste.cli.page import verdict_line
        from foretaste.cli.texts import read_texts

        found = read_texts(texts or [], file, text_column)
        if not explain:
            verdicts = commands.check(victim, guard, found, model)
            lines = [verdict_line(v, text) for v, text in zip(verdicts, found, strict=True)]
            answer({"verdicts": verdicts}, "\n".join(lines))
            return
        from foretaste.cli.explaining import explanation_line, shared_lines

        verdicts, explained = commands.check_and_explain(victim, guard, found, model)
        lines = []
        for index, (verdict, text) in enumerate(zip(verdicts, found, strict=True)):
            lines.append(verdict_line(verdict, text))
            if index in explained.by_index:
                lines.append(explanation_line(explained.by_index[index]))
        answer(
            {
                "verdicts": [{**v, "explanation": explained.to_json(i)} for i, v in enumerate(verdicts)],
                "shared_fragments": explained.shared_json(),
                "not_explained": explained.left_out,
            },
            "\n".join([*lines, *shared_lines(explained)]),
        )


def audit(
    model: o.Model,
    data: o.Data,
    base: o.Base = None,
    budget: Annotated[str, typer.Option("--budget", help="Time for the search, as in 90s or 5m.")] = "3m",
    victim: Annotated[Path | None, typer.Option("--victim", help="A victim of this base, if there is one.")] = None,
    guard: Annotated[Path | None, typer.Option("--guard", help="A guard of this base, if there is one.")] = None,
    reference: Annotated[
        str, typer.Option("--reference", help="A checkpoint you trust, or a victim of it.")
    ] = "minilm",
    report: Annotated[Path | None, typer.Option("--report", help="Write a self-contained HTML page.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Keep the models here; an interrupted audit continues.")
    ] = None,
    limit: o.Limit = None,
    data_root: o.DataRoot = None,
    text_column: o.TextColumn = None,
    label_column: o.LabelColumn = None,
    seed: o.Seed = 0,
    as_json: o.Json = False,
) -> None:
    """Is this checkpoint backdoored, and by which words? Searches with clean texts alone."""
    with answering(as_json) as answer:
        from foretaste.audit.audit import Audit
        from foretaste.cli.audit_page import audit_summary
        from foretaste.cli.auditing import run_audit
        from foretaste.spec import build

        source = o.source_of(data, data_root, text_column, label_column, limit, seed)
        plan = build(Audit, {"budget": seconds_of(budget)})
        result = run_audit(
            model,
            source,
            plan,
            base=base,
            out=out,
            victim=victim,
            guard=guard,
            reference=reference,
            report=report,
            seed=seed,
        )
        answer(result, audit_summary(result))


def inspect(directory: str, as_json: o.Json = False) -> None:
    """Say what a checkpoint, victim or guard is, and whether it is sound, without running it."""
    with answering(as_json) as answer:
        from foretaste.cli import commands

        result = commands.inspect(directory)
        answer(result, "\n".join(f"{key:24} {as_line(value)}" for key, value in result.items()))


def rewrite(
    data: o.Data,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts, or - for one per line on standard input.")] = None,
    method: Annotated[str, typer.Option("--method", help="onion, back_translation or scpd.")] = "onion",
    method_set: Annotated[
        list[str] | None, typer.Option("--set", help="Field of the method, as in --set model=DIR or --set loss=0.2.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Texts in a .txt, CSV, JSONL or Parquet file.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="Rewrite this split of --data instead.")] = None,
    trigger: Annotated[str | None, typer.Option("--trigger", help="Trigger the split's texts first.")] = None,
    target: o.Target = 0,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="A .jsonl file for the split.")] = None,
    data_root: o.DataRoot = None,
    text_column: o.TextColumn = None,
    label_column: o.LabelColumn = None,
    seed: o.Seed = 0,
    as_json: o.Json = False,
) -> None:
    """Rewrite texts as a defence would before the victim reads them."""
    with answering(as_json) as answer:
        from foretaste.cli import rewriting
        from foretaste.cli.texts import read_texts

        found = [] if split is not None and not texts and file is None else read_texts(texts or [], file, None)
        source = o.source_of(data, data_root, text_column, label_column, None, seed)
        result = rewriting.rewrite(
            method, assignments(method_set), source, found, split=split, trigger=trigger, target=target, out=out,
            seed=seed,
        )  # fmt: skip
        lines = [as_line(text) for text in result.get("rewritten", ())]
        took = f"{result['changed']} of {result['texts']} texts changed in {result['seconds']:.1f} s"
        answer(result, "\n".join(lines) if lines else f"{result['out']}: {took}")


def demo(
    out: Annotated[Path, typer.Option("--out", help="Directory for models and the page.")] = Path("demo-out"),
    as_json: o.Json = False,
) -> None:
    """Plant a backdoor, fine-tune, train the taster, stop and name the attack: a few minutes on two cores."""
    with answering(as_json) as answer:
        from foretaste.cli.audit_page import audit_summary
        from foretaste.cli.demo import run_demo
        from foretaste.cli.page import summary

        result, evaluation = run_demo(out)
        pages = f"Open {result['report']} and {result['audit']['report']} in a browser."
        answer(result, f"{summary(evaluation.outcome)}\n\n{audit_summary(result['audit'])}\n\n{pages}")
