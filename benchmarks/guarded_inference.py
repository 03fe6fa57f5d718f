"""Guarded inference against the unguarded victim and against one text at a time, as the released code runs it.

    make bench            # or: python benchmarks/guarded_inference.py --json out.json

Every figure comes from this one run; on a busy or shared machine trust the ratios, not the milliseconds. Each way of
running is repeated in turn and its best round counts. Peak memory is measured in a process of its own per way.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from foretaste.cli import commands
from foretaste.cli.guarding import guard
from foretaste.cli.splits import Source, load_split
from foretaste.cost import measured_cost
from foretaste.guard.artefact import load_guard
from foretaste.guard.guarded import GuardedClassifier
from foretaste.guard.psim import Psim
from foretaste.victim.artefact import load_victim

ROUNDS = 3
LATENCY_TEXTS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, help="keep the trained models here and use them again")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        _peak_memory(arguments.store, arguments.measure)
        return
    with tempfile.TemporaryDirectory() as temporary:
        store = arguments.store or Path(temporary)
        source = Source(data="sst2" if "FORETASTE_DATA" in os.environ else "toy")
        figures = {"data": source.data, "torch_threads": torch.get_num_threads(), **_train(store, source)}
        figures |= _infer(store, source)
        for way in WAYS:
            command = [sys.executable, __file__, "--store", str(store), "--measure", way]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            figures[way]["peak_memory_mb"] = round(int(done.stdout.split()[-1]) / 2**20)
    _print(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def unguarded(store: Path) -> Callable[[Sequence[str]], Any]:
    """The victim alone, in length-bucketed batches."""
    victim = load_victim(store / "victim")
    return lambda texts: victim.predict(texts).labels


def guarded(store: Path) -> Callable[[Sequence[str]], Any]:
    """PSIM, then the victim on what it lets pass, in length-bucketed batches; all in float32."""
    return GuardedClassifier(load_victim(store / "victim"), load_guard(store / "guard"))


def guard_int8(store: Path) -> Callable[[Sequence[str]], Any]:
    """As `guarded`, with a guard that scores, and was calibrated, in int8: the victim's answers stay what they were."""
    return GuardedClassifier(load_victim(store / "victim"), load_guard(store / "guard-int8"))


def both_int8(store: Path) -> Callable[[Sequence[str]], Any]:
    """As `guard_int8`, with the victim in int8 too."""
    return GuardedClassifier(load_victim(store / "victim").in_int8(), load_guard(store / "guard-int8"))


def one_at_a_time(store: Path) -> Callable[[Sequence[str]], Any]:
    """Both models text by text, confidence rounded, as in the released code: plain transformers and PEFT."""
    tokenizer = AutoTokenizer.from_pretrained(store / "base")
    victim, guard = (
        PeftModel.from_pretrained(
            AutoModelForSequenceClassification.from_pretrained(store / "base"), str(store / name)
        ).eval()
        for name in ("victim", "guard")
    )
    threshold = load_guard(store / "guard").threshold

    def run(texts: Sequence[str]) -> list[int | None]:
        answers: list[int | None] = []
        with torch.no_grad():
            for text in texts:
                inputs = tokenizer(text, truncation=True, max_length=128, return_tensors="pt", padding=False)
                certainty = round(float(torch.softmax(guard(**inputs).logits, dim=1).max()), 3)
                if certainty > threshold:
                    answers.append(None)
                else:
                    answers.append(int(victim(**inputs).logits.argmax()))
        return answers

    return run


WAYS = {
    "unguarded": unguarded,
    "guarded": guarded,
    "guard_int8": guard_int8,
    "both_int8": both_int8,
    "one_at_a_time": one_at_a_time,
}
GUARDED = ("guarded", "guard_int8", "both_int8")


def _train(store: Path, source: Source) -> dict[str, Any]:
    """Train victim and PSIM with their defaults (once, if a store is kept); their seconds are in the records."""
    training = commands.Training()
    base = store / "base"
    if not base.exists():
        few = replace(source, limit=2500)
        commands.poison("minilm", few, "word:mn", base, commands.Training(fields={"epochs": 1}), {"count": 600})
    if not (store / "victim").exists():
        commands.tune_victim(str(base), source, "lora", store / "victim", training, strategy_fields={})
    for name, plan in (("guard", Psim(scoring="float32")), ("guard-int8", Psim(scoring="int8"))):
        if not (store / name).exists():
            guard(str(base), source, store / name, training, plan)
    records = {
        name: json.loads((store / name / "record.json").read_text(encoding="utf-8")) for name in ("victim", "guard")
    }
    seconds = {name: record["cost"]["seconds"] for name, record in records.items()}
    seconds["guard, without calibration"] = records["guard"]["outcome"]["training_seconds"]
    return {"training_seconds": seconds, "guard_share_of_victim_training": seconds["guard"] / seconds["victim"]}


def _infer(store: Path, source: Source) -> dict[str, Any]:
    texts = load_split(source, "test").texts
    ways = {name: make(store) for name, make in WAYS.items()}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, run in ways.items():
            share = texts[: len(texts) // 4] if name == "one_at_a_time" else texts
            start = time.perf_counter()
            run(share)
            rates[name].append(len(share) / (time.perf_counter() - start))
    figures: dict[str, Any] = {"texts": len(texts)}
    for name, run in ways.items():
        spans = []
        for text in texts[:LATENCY_TEXTS]:
            start = time.perf_counter()
            run([text])
            spans.append(1e3 * (time.perf_counter() - start))
        figures[name] = {
            "texts_per_s": max(rates[name]),
            "texts_per_s_rounds": rates[name],
            "p50_ms": float(np.percentile(spans, 50)),
            "p99_ms": float(np.percentile(spans, 99)),
        }
    rate = {name: figures[name]["texts_per_s"] for name in ways}
    answers = {name: [v.label for v in ways[name](texts)] for name in GUARDED}
    for name in GUARDED:
        figures[name]["over_one_at_a_time"] = rate[name] / rate["one_at_a_time"]
        figures[name]["over_unguarded"] = rate[name] / rate["unguarded"]
        pairs = zip(answers[name], answers["guarded"], strict=True)
        figures[name]["same_answers"] = float(np.mean([a == b for a, b in pairs]))
    return figures


def _peak_memory(store: Path, way: str) -> None:
    run = WAYS[way](store)
    with measured_cost() as meter:
        run(["a film of quiet charm that never quite finds its feet , though it tries"] * 256)
    sys.stdout.write(f"{meter.cost.peak_memory_bytes}\n")


def _print(figures: dict[str, Any]) -> None:
    lines = [f"{figures['texts']} test texts of {figures['data']}, {figures['torch_threads']} threads"]
    lines.append(f"{'':18}{'texts/s':>10}{'p50 ms':>10}{'p99 ms':>10}{'peak MB':>10}")
    for name in WAYS:
        row = figures[name]
        cells = f"{row['texts_per_s']:>10.0f}{row['p50_ms']:>10.1f}{row['p99_ms']:>10.1f}{row['peak_memory_mb']:>10}"
        lines.append(f"{name:18}{cells}")
    lines.append(f"{'':18}{'/ one by one':>14}{'/ unguarded':>14}{'same answers':>14}   (targets 8 and 0.5)")
    for name in GUARDED:
        row = figures[name]
        cells = f"{row['over_one_at_a_time']:>13.2f}x{row['over_unguarded']:>13.2f}x{row['same_answers']:>14.2%}"
        lines.append(f"{name:18}{cells}")
    seconds = figures["training_seconds"]
    lines.append(
        f"training: PSIM {seconds['guard']:.0f} s, victim {seconds['victim']:.0f} s: "
        f"{figures['guard_share_of_victim_training']:.1%} of the victim's, without calibration "
        f"{seconds['guard, without calibration'] / seconds['victim']:.1%}"
    )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
