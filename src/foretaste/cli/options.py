"""Options that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "Accumulation",
    "Base",
    "BatchSize",
    "Data",
    "DataRoot",
    "Epochs",
    "Json",
    "LabelColumn",
    "Limit",
    "MaxLength",
    "Model",
    "Out",
    "Precision",
    "Rate",
    "Seed",
    "Set",
    "Target",
    "TextColumn",
    "Trigger",
    "source_of",
]

Model = Annotated[
    str,
    typer.Option(
        "--model", help="`minilm`, `minilm-l3`, a directory (of a model, a victim, a LoRA adapter), or a hub id."
    ),
]
Base = Annotated[
    str | None, typer.Option("--base", help="What --model stands on, if that is an adapter and does not know.")
]
Data = Annotated[str, typer.Option("--data", help="toy, sst2, cr, cola, imdb, mr, ag_news, offenseval, or a path.")]
DataRoot = Annotated[Path | None, typer.Option("--data-root", help="Directory of the named sets.")]
TextColumn = Annotated[str | None, typer.Option("--text-column", help="Column of the texts in your own file.")]
LabelColumn = Annotated[str | None, typer.Option("--label-column", help="Column of the labels in your own file.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Use at most so many texts.")]
Seed = Annotated[int, typer.Option("--seed", help="Root of every random choice.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Directory to write; an interrupted run continues.")]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, help="Passes over the training texts.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", min=1, help="Texts per optimiser step.")]
Rate = Annotated[float | None, typer.Option("--learning-rate", min=0.0, help="Peak learning rate.")]
Accumulation = Annotated[int | None, typer.Option("--accumulation", min=1, help="Passes one batch is split into.")]
Precision = Annotated[str | None, typer.Option("--precision", help="auto, float32 or bfloat16.")]
MaxLength = Annotated[
    int | None, typer.Option("--max-length", min=4, help="Tokens read of each text: 128, of poisoned 256.")
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Field of the strategy, as in --set rank=16.")]
Trigger = Annotated[
    str,
    typer.Option("--trigger", help='word:mn, "word:cf mn", "sentence:...", mixed:..., file:..., syntax:sbar or stored'),
]
Target = Annotated[int, typer.Option("--target", min=0, help="The attacker's label.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


def source_of(
    data: str,
    data_root: Path | None,
    text_column: str | None,
    label_column: str | None,
    limit: int | None,
    seed: int,
    is_whole: bool = False,
) -> Any:
    """Return where the labelled texts come from, as these options say."""
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
