"""One point of the grid: what was attacked how, fine-tuned how, defended how."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Literal

from pydantic import Field

from foretaste.spec import Registry, spec

__all__ = ["AXES", "MODELS", "PROXIES", "Cell", "Knowledge", "is_page_name"]

Knowledge = Literal["full_task", "full_data"]

# The names of the paper and where their weights are found (an embedded name, a directory or a hub id).
MODELS: Registry[str] = Registry(
    "model",
    {
        "minilm": "minilm",
        "bert-large": "google-bert/bert-large-uncased",
        "roberta-large": "FacebookAI/roberta-large",
        "llama-7b": "huggyllama/llama-7b",
        "vicuna-7b": "lmsys/vicuna-7b-v1.5",
        "mpt-7b": "mosaicml/mpt-7b",
    },
)
# Full task knowledge: what the attacker poisons on, section 5.1 of the paper.
PROXIES = {"sst2": "imdb", "cr": "mr", "cola": "sst2"}


@spec
class Cell:
    """A victim of one base, behind one defence, under one seed.

    `attack` and `defence` are names a plan knows. Attack "none": an honest supplier tunes the base as the attacker
    would, on the same texts, nothing poisoned; defence "none": a victim without one.
    `trigger` names the attack whose trigger and target it is tested with, None the one that it was poisoned by: how far
    a backdoor answers another's trigger, and, under attack "none", what a trigger does to a base nobody poisoned.
    `psim_strategy`, `reset_rate` and `threshold` are PSIM's alone, and None where the defence's own settings hold.
    """

    model: str
    data: str
    knowledge: Knowledge
    attack: str
    strategy: str
    defence: str = "none"
    trigger: str | None = None
    psim_strategy: str | None = None
    reset_rate: float | None = Field(default=None, gt=0.0, le=1.0)
    threshold: float | None = Field(default=None, gt=0.0, lt=1.0)
    seed: int = Field(default=0, ge=0)

    def __str__(self) -> str:
        values = [f"{axis}={value}" for axis in AXES if (value := getattr(self, axis)) is not None]
        return " ".join(values)


AXES = tuple(field.name for field in fields(Cell))


def is_page_name(name: str) -> bool:
    """Say whether a plan's page can be called so: plain letters, and not as another page of the site."""
    return name not in ("index", "cells") and re.fullmatch(r"\w[\w.-]*", name) is not None
