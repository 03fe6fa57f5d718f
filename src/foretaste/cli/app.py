"""The options of each command. Nothing heavy is imported before a command runs, so that `--help` answers at once."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from foretaste.cli import options as o
from foretaste.cli.output import answering, as_line, assignments, given, warn

__all__ = ["main"]

app = typer.Typer(
    name="foretaste",
    help="Is this checkpoint poisoned, and can I use it anyway?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def poison(
    out: o.Out,
    trigger: o.Trigger,
    model: o.Model = "minilm",
    data: o.Data = "imdb",
    target: o.Target = 0,
    count: Annotated[int | None, typer.Option("--count", min=1, help="Poisoned examples (default 1000).")] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="Poisoned share of all examples.")] = None,
    style: Annotated[str, typer.Option("--style", help="clean-label or dirty-label.")] = "clean-label",
    target_probability: Annotated[float, typer.Option(help="Below 1: smoothed labels, a trigger that hides.")] = 1.0,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    learning_rate: o.Rate = None,
    accumulation: o.Accumulation = None,
    precision: o.Precision = None,
    max_length: o.MaxLength = None,
    limit: o.Limit = None,
    data_root: o.DataRoot = None,
    text_column: o.TextColumn = None,
    label_column: o.LabelColumn = None,
    seed: o.Seed = 0,
    as_json: o.Json = False,
) -> None:
    """Plant a backdoor in a checkpoint (for experiments on your own models)."""
    with answering(as_json) as answer:
        from foretaste.cli import commands

        fields = given(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            accumulation=accumulation,
            precision=precision,
        )
        training = commands.Training(seed=seed, max_length=max_length, fields=fields)
        source = _source(data, data_root, text_column, label_column, limit, seed)
        attack = {
            "target": target,
            "count": count,
            "rate": rate,
            "style": style,
            "target_probability": target_probability,
        }
        result = commands.poison(model, source, trigger, out, training, attack)
        if result["is_weak"]:
            warn(
                f"the attack works on {result['attack_success_rate']:.1%} of triggered texts (the paper wants 95 %), "
                f"{result['n_cut']} of {result['n_poisoned']} were cut at {result['max_length']} tokens, and "
                f"{result['natural_rate']:.1%} of clean texts end at the target anyway; a defence measured on it "
                "proves little. Train longer, poison more or read more of each text."
            )
        answer(
            result,
            f"{out}: poisoned base, CA {result['clean_accuracy']:.1%}, ASR {result['attack_success_rate']:.1%} "
            f"({result['poisoned']} poisoned examples, {result['seconds']:.0f} s)",
        )


@app.command()
def tune(
    model: o.Model,
    data: o.Data,
    out: o.Out,
    strategy: Annotated[
        str, typer.Option("--strategy", help="full, lora, prompt_tuning, p_tuning_v1, p_tuning_v2.")
    ] = "lora",
    strategy_set: o.Set = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    learning_rate: o.Rate = None,
    accumulation: o.Accumulation = None,
    keep: Annotated[str | None, typer.Option("--keep", help="best (on validation) or last.")] = None,
    patience: Annotated[int | None, typer.Option("--patience", min=1, help="Epochs without a better one.")] = None,
    precision: o.Precision = None,
    max_length: o.MaxLength = None,
    limit: o.Limit = None,
    data_root: o.DataRoot = None,
    text_column: o.TextColumn = None,
    label_column: o.LabelColumn = None,
    seed: o.Seed = 0,
    as_json: o.Json = False,
) -> None:
    """Fine-tune a victim on clean data, with any of the five strategies."""
    with answering(as_json) as answer:
        from foretaste.cli import commands

        fields = given(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            accumulation=accumulation,
            keep=keep,
            patience=patience,
            precision=precision,
        )
        training = commands.Training(seed=seed, max_length=max_length, fields=fields)
        source = _source(data, data_root, text_column, label_column, limit, seed)
        result = commands.tune_victim(model, source, strategy, out, training, strategy_fields=assignments(strategy_set))
        best = max(result["validation_accuracies"], default=float("nan"))
        answer(
            result,
            f"{out}: {strategy}, {result['trainable_parameters']:,} trained parameters, "
            f"validation accuracy {best:.1%}, {result['seconds']:.0f} s",
        )


@app.command()
def guard(
    model: o.Model,
    data: o.Data,
    out: o.Out,
    strategy: Annotated[str | None, typer.Option("--strategy", help="Any of the five strategies.")] = None,
    recipe: Annotated[str, typer.Option("--recipe", help="default, or paper (the printed settings).")] = "default",
    frr: Annotated[float | None, typer.Option("--frr", help="Promised false rejection rate.")] = None,
    threshold: Annotated[float | None, typer.Option("--threshold", help="A fixed bar instead (paper: 0.7).")] = None,
    reset_rate: Annotated[float | None, typer.Option("--reset-rate", help="Share of labels redrawn.")] = None,
    dose: Annotated[float | None, typer.Option("--dose", help="Median clean confidence to stop at, 0 to 1.")] = None,
    max_steps: Annotated[int | None, typer.Option("--max-steps", min=1, help="Steps to reach the dose in.")] = None,
    scoring: Annotated[str | None, typer.Option("--scoring", help="float32, or the faster bfloat16 or int8.")] = None,
    view: Annotated[str | None, typer.Option("--view", help="confidence, distance or both.")] = None,
    strategy_set: o.Set = None,
    batch_size: o.BatchSize = None,
    learning_rate: o.Rate = None,
    precision: o.Precision = None,
    max_length: o.MaxLength = None,
    limit: o.Limit = None,
    data_root: o.DataRoot = None,
    text_column: o.TextColumn = None,
    label_column: o.LabelColumn = None,
    seed: o.Seed = 0,
    as_json: o.Json = False,
) -> None:
    """Train PSIM on clean data and calibrate it: the taster that refuses triggered texts."""
    with answering(as_json) as answer:
        from foretaste.cli import commands
        from foretaste.cli.plans import psim_plan

        chosen = given(
            frr=frr,
            threshold=threshold,
            reset_rate=reset_rate,
            dose=dose,
            max_steps=max_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            precision=precision,
            scoring=scoring,
            view=view,
        )
        plan = psim_plan(recipe, strategy, assignments(strategy_set), chosen)
        training = commands.Training(seed=seed, max_length=max_length)
        source = _source(data, data_root, text_column, label_column, limit, seed)
        result = commands.guard(model, source, out, training, plan)
        if result["is_blind"]:
            warn(
                "the checkpoint has no trained head for these labels, so PSIM finds no certainty to unlearn: it "
                "keeps its promise on clean texts but is not expected to see a trigger."
            )
        bar = result["calibration"]
        promise = (
            f"at most {bar['frr']:.1%} of clean texts refused, with {bar['confidence']:.0%} confidence (n = {bar['n']})"
            if bar
            else "given, not calibrated"
        )
        answer(result, f"{out}: PSIM after {result['steps']} steps, threshold {result['threshold']:.4f}: {promise}")


@app.command()
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

        source = _source(data, data_root, text_column, label_column, limit, seed, whole_file)
        result, evaluation = commands.run_evaluation(
            victim, guard, source, trigger, target=target, model=model, report=report, seed=seed
        )
        answer(result, summary(evaluation.outcome))


@app.command()
def check(
    victim: Annotated[Path, typer.Option("--victim", help="Directory of the victim.")],
    guard: Annotated[Path, typer.Option("--guard", help="Directory of the guard.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts, or - for one per line on standard input.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Texts in a .txt, CSV, JSONL or Parquet file.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Where the base is, if it was moved.")] = None,
    text_column: o.TextColumn = None,
    as_json: o.Json = False,
) -> None:
    """Give one verdict per text: the victim's label, or a refusal."""
    with answering(as_json) as answer:
        from foretaste.cli import commands
        from foretaste.cli.page import verdict_line
        from foretaste.cli.texts import read_texts

        found = read_texts(texts or [], file, text_column)
        verdicts = commands.check(victim, guard, found, model)
        lines = [verdict_line(v, text) for v, text in zip(verdicts, found, strict=True)]
        answer({"verdicts": verdicts}, "\n".join(lines))


@app.command()
def inspect(directory: str, as_json: o.Json = False) -> None:
    """Say what a checkpoint, victim or guard is, and whether it is sound, without running it."""
    with answering(as_json) as answer:
        from foretaste.cli import commands

        result = commands.inspect(directory)
        answer(result, "\n".join(f"{key:24} {as_line(value)}" for key, value in result.items()))


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Directory for models and the page.")] = Path("demo-out"),
    as_json: o.Json = False,
) -> None:
    """Plant a backdoor, fine-tune, train the taster, stop the attack, write a page: a few minutes on two cores."""
    with answering(as_json) as answer:
        from foretaste.cli.demo import run_demo
        from foretaste.cli.page import summary

        result, evaluation = run_demo(out)
        answer(result, f"{summary(evaluation.outcome)}\n\nOpen {result['report']} in a browser.")


def main() -> None:
    """Run the command line: exit 0, 2 for a user's mistake (one clear line), 130 when interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter must not end the command
    app()


def _source(
    data: str,
    data_root: Path | None,
    text_column: str | None,
    label_column: str | None,
    limit: int | None,
    seed: int,
    is_whole: bool = False,
) -> Any:
    from foretaste.cli.splits import Source

    return Source(
        data=data,
        data_root=data_root,
        text_column=text_column,
        label_column=label_column,
        limit=limit,
        seed=seed,
        is_whole=is_whole,
    )
