"""The commands that train something, each with its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foretaste.cli import options as o
from foretaste.cli.output import answering, assignments, given, warn, warn_if_guessing

__all__ = ["guard", "poison", "tune"]


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
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="W2SAttack: poison this small model, which teaches --model by LoRA.")
    ] = None,
    method_set: Annotated[
        list[str] | None, typer.Option("--w2s-set", help="Field of W2SAttack, as in --w2s-set features=10.")
    ] = None,
    attack_set: Annotated[
        list[str] | None, typer.Option("--set", help="Field of the attack, as in --set cover_rate=0.5.")
    ] = None,
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
        source = o.source_of(data, data_root, text_column, label_column, limit, seed)
        attack = {
            "target": target,
            "count": count,
            "rate": rate,
            "style": style,
            "target_probability": target_probability,
        }
        attack |= assignments(attack_set, options=["trigger", *attack])
        result = commands.poison(
            model, source, trigger, out, training, attack, teacher=teacher, method=assignments(method_set)
        )
        if result["is_weak"]:
            warn(
                f"the attack works on {result['attack_success_rate']:.1%} of triggered texts (the paper wants 95 %), "
                f"{result['n_cut']} of {result['n_poisoned']} were cut at {result['max_length']} tokens, and "
                f"{result['natural_rate']:.1%} of clean texts end at the target anyway; a defence measured on it "
                "proves little. Train longer, poison more or read more of each text."
            )
        seconds = result["seconds"] + result.get("teacher", {}).get("seconds", 0.0)
        answer(
            result,
            f"{out}: poisoned base, CA {result['clean_accuracy']:.1%}, ASR {result['attack_success_rate']:.1%} "
            f"({result['poisoned']} poisoned examples, {seconds:.0f} s)",
        )


def tune(
    model: o.Model,
    data: o.Data,
    out: o.Out,
    base: o.Base = None,
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
        source = o.source_of(data, data_root, text_column, label_column, limit, seed)
        result = commands.tune_victim(
            model, source, strategy, out, training, strategy_fields=assignments(strategy_set), base=base
        )
        best = max(result["validation_accuracies"], default=float("nan"))
        answer(
            result,
            f"{out}: {strategy}, {result['trainable_parameters']:,} trained parameters, "
            f"validation accuracy {best:.1%}, {result['seconds']:.0f} s",
        )


def guard(
    model: o.Model,
    data: o.Data,
    out: o.Out,
    base: o.Base = None,
    strategy: Annotated[str | None, typer.Option("--strategy", help="Any of the five strategies.")] = None,
    recipe: Annotated[str, typer.Option("--recipe", help="default, or paper (the printed settings).")] = "default",
    frr: Annotated[float | None, typer.Option("--frr", help="Promised false rejection rate.")] = None,
    threshold: Annotated[float | None, typer.Option("--threshold", help="A fixed bar instead (paper: 0.7).")] = None,
    reset_rate: Annotated[float | None, typer.Option("--reset-rate", help="Share of labels redrawn.")] = None,
    dose: Annotated[float | None, typer.Option("--dose", help="Median clean confidence to stop at, 0 to 1.")] = None,
    max_steps: Annotated[int | None, typer.Option("--max-steps", min=1, help="Steps to reach the dose in.")] = None,
    scoring: Annotated[str | None, typer.Option("--scoring", help="float32, bfloat16 or int8.")] = None,
    view: Annotated[str | None, typer.Option("--view", help="confidence, distance or both (default); opinion.")] = None,
    trusted: Annotated[
        list[str] | None, typer.Option("--trusted", help="A model you trust, for a second opinion; repeatable.")
    ] = None,
    transplant: Annotated[
        float | None,
        typer.Option("--transplant", min=0.0, max=1.0, help="Try decisive words of this share of texts in others."),
    ] = None,
    victim: Annotated[
        Path | None, typer.Option("--victim", help="The victim that --trusted, --transplant ask.")
    ] = None,
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
        from foretaste.cli import commands, guarding
        from foretaste.cli.plans import guard_plan
        from foretaste.guard.transplant import TransplantTest
        from foretaste.spec import build

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
        plan = guard_plan(recipe, strategy, assignments(strategy_set), chosen)
        training = commands.Training(seed=seed, max_length=max_length)
        source = o.source_of(data, data_root, text_column, label_column, limit, seed)
        transplants = None if transplant is None else build(TransplantTest, {"share": transplant})
        result = guarding.guard(
            model,
            source,
            out,
            training,
            plan,
            base=base,
            trusted=trusted or (),
            victim=victim,
            transplants=transplants,
        )
        if result["is_blind"]:
            warn(
                "the checkpoint has no trained head for these labels, so PSIM finds no certainty to unlearn: it "
                "keeps its promise on clean texts but is not expected to see a trigger."
            )
        for found in result["trusted"]:
            warn_if_guessing(found["model"], found["accuracy"], found["majority"])
        bar = result["calibration"]
        promise = (
            f"at most {bar['frr']:.1%} of clean texts refused, with {bar['confidence']:.0%} confidence (n = {bar['n']})"
            if bar
            else "given, not calibrated"
        )
        made = [] if result["steps"] is None else [f"PSIM after {result['steps']} steps"]
        made += [
            f"second opinion of {found['model']} (accuracy {found['accuracy']:.1%}; costs {found['cost']:.0%} of "
            "the victim's time)"
            for found in result["trusted"]
        ]
        if result["transplants"] is not None:
            examined = result["transplants"]
            made.append(
                f"transplants for {examined['share']:.0%} of clean texts (cost {examined['cost']:.1f} times the "
                "victim's time)"
            )
        answer(result, f"{out}: {', '.join(made)}, threshold {result['threshold']:.4f}: {promise}")
