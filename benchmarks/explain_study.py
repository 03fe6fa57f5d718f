"""How often the words that are said to carry a flag are the trigger's: the figures of docs/explain.md.

    OMP_NUM_THREADS=1 python benchmarks/explain_study.py --store runs/psim-study      # a minute per attack and seed

Needs the bases and the `recipe-*-task-*-lora` guards of psim_study.py and SST-2. Prints one row per attack and seed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from psim_study import SEEDS, TRIGGERS

from foretaste.data.load import load_corpus
from foretaste.guard.artefact import load_psim
from foretaste.guard.explain import Finding, explain
from foretaste.guard.fragments import shared_fragments
from foretaste.guard.psim_guard import PsimGuard
from foretaste.poison.attack import triggered_test
from foretaste.poison.trigger import parse_trigger

HEAD = (
    "| trigger | seed | refused | explained | exactly the trigger | only words of it | mostly | guard passes a word | "
    "seconds | shared by refused texts | clean texts refused | explained | words marked in them, median |"
)


class _Counting:
    """A guard that counts the texts it scores."""

    def __init__(self, guard: PsimGuard) -> None:
        self.guard, self.threshold, self.count, self.reach = guard, guard.threshold, 0, guard.reach

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        self.count += len(texts)
        return self.guard.score(texts)


def measure(store: Path, attack: str, seed: int, count: int) -> str:
    """Return one row: `count` triggered test texts, and as many clean ones as the guard refuses."""
    guard = _Counting(load_psim(store / f"recipe-{attack}-task-{seed}-lora"))
    clean = load_corpus("sst2", "test")
    triggered = triggered_test(clean, parse_trigger(TRIGGERS[attack]), 0, seed).corpus.sample(count, 0)
    trigger = TRIGGERS[attack].split(":")[1].split()
    start = time.monotonic()
    found = explain(guard, triggered.texts)
    seconds = time.monotonic() - start
    explained = [explanation for explanation in found if explanation.is_explained]
    refused = [explanation for explanation in found if explanation.finding is not Finding.ACCEPTED]
    exact = sum(list(explanation.carrying) == trigger for explanation in explained)
    inside = [np.mean([word in trigger for word in explanation.carrying]) for explanation in explained]
    words = sum(len(explanation.words) for explanation in refused)
    passes = (guard.count - len(found)) / words
    scores = guard.score(clean.texts)
    accepted = [text for text, score in zip(clean.texts, scores, strict=True) if score <= guard.threshold]
    false = explain(guard, [text for text, score in zip(clean.texts, scores, strict=True) if score > guard.threshold])
    shared = shared_fragments(refused, accepted)
    marked = [len(explanation.carrying) for explanation in false if explanation.is_explained]
    cells = [
        f"`{' '.join(trigger)}`", seed, len(refused), len(explained), exact, sum(share == 1 for share in inside),
        sum(share > 0.5 for share in inside), f"{passes:.2f}", f"{seconds:.0f}",
        "; ".join(f"`{fragment.text}` ({fragment.texts})" for fragment in shared) or "nothing",
        len(false), len(marked), f"{np.median(marked):.0f}" if marked else "-",
    ]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100, help="triggered texts per attack and seed")
    arguments = parser.parse_args()
    sys.stdout.write(f"{HEAD}\n{'| --- ' * (HEAD.count('|') - 1)}|\n")
    for attack in TRIGGERS:
        for seed in SEEDS:
            sys.stdout.write(measure(arguments.store, attack, seed, arguments.count) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
