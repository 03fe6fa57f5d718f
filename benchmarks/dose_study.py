"""When PSIM has had enough: the dose study behind docs/psim.md, resumable, one JSON record per finished piece.

    export OMP_NUM_THREADS=1                                   # one process and one thread per core
    python benchmarks/dose_study.py run --store runs/dose-study --bases DIR --part 0/2    # beside it: --part 1/2
    python benchmarks/dose_tables.py table --store runs/dose-study            # prints the tables of docs/psim.md
    python benchmarks/dose_tables.py plot --store runs/dose-study --out docs/dose.png

DIR holds poisoned bases: badnet-data-0 and so on from benchmarks/psim_study.py (without the `base-`), and smooth-0 to
smooth-2, the same on SST-2 with labels smoothed to 0.6 (1,000 examples from outside the target class, trigger `mn`).

A `follow` piece is a way to train PSIM, a base and a draw (of labels, batches, adapter and split). Training is followed
down to a low dose; where it passes each of `DOSES`, the weights on the line between the two readings around it are
judged on the validation split: 400 clean and 150 triggered texts. A `test` piece fits the default, calibrates it on the
validation split, once more on that and all training texts it never touched, and reports on the test split.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foretaste.data.corpus import Corpus
from foretaste.data.load import load_corpus
from foretaste.evaluate.metrics import auroc, far_at_frr
from foretaste.evaluate.threshold import calibrate
from foretaste.files import write_json
from foretaste.guard.dose import READ_EVERY, dose_of
from foretaste.guard.looks import Looks, View
from foretaste.guard.psim import PSIM_STRATEGIES, Psim
from foretaste.poison.attack import triggered_test
from foretaste.poison.trigger import parse_trigger
from foretaste.tune.expose import reset_labels
from foretaste.tune.loop import TuneSettings, cross_entropy, tune
from foretaste.victim.batch import training_batches
from foretaste.victim.checkpoint import open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.module import Output
from foretaste.victim.strategy import Strategy

DOSES = (0.2, 0.1)
DRAWS = 5
FOLLOWED = ("badnet-data-0", "insent-data-1", "insent-task-0", "smooth-0", "smooth-2")
PLAIN = (("badnet", "insent"), ("task", "data"), range(3))
Array = NDArray[np.float64]
VIEWS: tuple[View, ...] = ("confidence", "distance", "both")
MONITOR, REFERENCE, CLEAN, TRIGGERED = 128, 1200, 400, 150
LENGTH = 64
# Ways that hover above the lowest dose are not followed for ever.
LONG_ENOUGH = 40


@dataclass(frozen=True)
class Way:
    """How PSIM is trained: strategy, at its own rate, and whether the labels are drawn or every class at once."""

    strategy: Strategy
    is_even: bool = False


WAYS = {name: Way(PSIM_STRATEGIES[name]) for name in ("lora", "full", "prompt_tuning", "p_tuning_v1", "p_tuning_v2")}
WAYS["lora_even"] = Way(PSIM_STRATEGIES["lora"], is_even=True)
TRIGGERS = {"badnet": "word:mn", "insent": "sentence:I watched this 3D movie", "smooth": "word:mn"}


def follow(store: Path, bases: Path, way_name: str, base_name: str, draw: int) -> None:
    """Train one PSIM, judge it where it passes each dose, and keep the curve."""
    way = WAYS[way_name]
    train, validation = load_corpus("sst2", "train"), load_corpus("sst2", "validation")
    clean = validation.sample(CLEAN, 0)
    trigger = parse_trigger(TRIGGERS[base_name.split("-", maxsplit=1)[0]])
    triggered = triggered_test(validation, trigger, 0, 0).corpus.sample(TRIGGERED, 0)
    train, monitor, reference = _parts(train, draw)
    train = train.with_texts(train.texts, reset_labels(train, 1.0, draw))
    classifier = open_base(bases / base_name).classifier(way.strategy, train.label_names, max_length=LENGTH, seed=draw)
    classifier.module.head.requires_grad_(False)
    watched = classifier.encode(monitor.texts)
    parts = [classifier.encode(c.texts) for c in (reference, clean, triggered)]
    curve: list[tuple[int, float]] = [(0, _dose(classifier, watched))]
    judged: dict[str, Any] = {}
    before = _copy(classifier)
    took = 0.0

    def judge(name: str, dose: float) -> None:
        rated, low, high = (classifier.predict(p, precision="auto") for p in parts)
        looks = Looks.fit(rated)
        judged[name] = {"step": curve[-1][0], "dose": dose}
        for view in VIEWS:
            scores = looks.score(low, view), looks.score(high, view)
            judged[name][view] = {"auroc": auroc(*scores), "far": far_at_frr(*scores, 0.01).value}

    def should_stop(step: int) -> bool:
        nonlocal before, took
        if step % READ_EVERY:
            return False
        last, dose = curve[-1][1], _dose(classifier, watched)
        curve.append((step, dose))
        start = time.monotonic()
        now = _copy(classifier)
        for wanted in DOSES:
            if str(wanted) not in judged and dose <= wanted:
                judge(str(wanted), _between(classifier, watched, before, now, wanted, last, dose))
                _put(classifier, now)
        before = now
        took += time.monotonic() - start
        return dose <= DOSES[-1] or (step >= LONG_ENOUGH and str(DOSES[0]) in judged)

    settings = TuneSettings(max_steps=Psim().max_steps, batch_size=Psim().batch_size, keep="last")
    result = tune(
        classifier,
        train,
        settings,
        seed=draw,
        should_stop=should_stop,
        objective=even if way.is_even else cross_entropy,
    )
    outcome = {"curve": curve, "judged": judged, "seconds": result.seconds - took, "steps": result.steps}
    path = store / f"{way_name}-{base_name}-{draw}"
    write_json(path / "record.json", outcome)


def _parts(train: Corpus, draw: int) -> tuple[Corpus, Corpus, Corpus]:
    """Split as `Psim` does: what trains, what the dose is read on, what the looks are fitted on."""
    train, monitor = train.partition([len(train) - MONITOR, MONITOR], draw)
    train, reference = train.partition([len(train) - REFERENCE, REFERENCE], draw)
    return train, monitor, reference


def even(output: Output, rows: NDArray[np.int64], labels: Tensor) -> Tensor:
    """Return the cross-entropy against all classes alike, `(B,)`: the mean over all redraws of the labels."""
    return -torch.log_softmax(output.logits, dim=1).mean(dim=1)


def _between(
    classifier: Classifier, watched: Any, above: Any, below: Any, wanted: float, high: float, low: float
) -> float:
    """Set the weights between two steps that hit the dose to within 0.01; return the dose."""
    left, right, dose = 0.0, 1.0, low
    for _ in range(6):
        if abs(dose - wanted) <= 0.01:
            break
        share = left + (right - left) * min(0.9, max(0.1, (high - wanted) / max(high - low, 1e-6)))
        _put(classifier, {k: above[k] + share * (below[k] - above[k]) for k in below})
        dose = _dose(classifier, watched)
        if dose > wanted:
            left, high = share, dose
        else:
            right, low = share, dose
    return dose


def _copy(classifier: Classifier) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in classifier.trainable.items()}


def _put(classifier: Classifier, weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in classifier.trainable.items():
            parameter.copy_(weights[name])


def _dose(classifier: Classifier, texts: Any) -> float:
    return dose_of(classifier.predict(texts, precision="auto"))


def test(store: Path, bases: Path, base_name: str, draw: int) -> None:
    """Fit LoRA, the default then, as a user would and report on the test split, in bfloat16 to save hours."""
    train, validation, clean = (load_corpus("sst2", split) for split in ("train", "validation", "test"))
    trigger = parse_trigger(TRIGGERS[base_name.split("-", maxsplit=1)[0]])
    triggered = triggered_test(clean, trigger, 0, int(base_name[-1])).corpus
    plan = Psim(strategy=PSIM_STRATEGIES["lora"], scoring="bfloat16")
    guard = plan.fit(open_base(bases / base_name), train, validation, seed=draw, max_length=LENGTH)
    trained = _parts(train, draw)[0]
    encoded = guard.classifier.encode(trained.texts)
    assert guard.training is not None
    assert guard.looks is not None
    used = np.concatenate(training_batches(encoded.lengths, plan.batch_size, draw, 0)[: guard.training.steps])
    rest = trained.select(np.setdiff1d(np.arange(len(trained)), used))
    said = {
        name: guard.predict(corpus.texts)
        for name, corpus in {"bar": validation, "rest": rest, "clean": clean, "triggered": triggered}.items()
    }
    outcome: dict[str, Any] = {
        "doses": guard.doses,
        "steps": guard.training.steps,
        "seconds": guard.training.seconds,
        "views": {},
        "more": {},
    }
    for view in VIEWS:
        scores = {name: guard.looks.score(predictions, view) for name, predictions in said.items()}
        outcome["views"][view] = judge_test(scores["bar"], scores["clean"], scores["triggered"])
        more = np.concatenate([scores["bar"], scores["rest"]])
        outcome["more"][view] = judge_test(more, scores["clean"], scores["triggered"])
    write_json(store / f"test-{base_name}-{draw}" / "record.json", outcome)


def judge_test(calibration: Array, clean: Array, triggered: Array) -> dict[str, float]:
    """Return what a bar from calibration scores does to test scores, each `(N,)`."""
    bar = calibrate(calibration)
    return {
        "n": bar.n,
        "frr": float(np.mean(clean > bar.threshold)),
        "far": float(np.mean(triggered <= bar.threshold)),
        "auroc": auroc(clean, triggered),
        "far_at_1": far_at_frr(clean, triggered, 0.01).value,
    }


def run(store: Path, bases: Path, part: int, parts: int, only: list[str] | None) -> None:
    """Do this part of the pieces that are not done yet."""
    followed = [("follow", (way, base, draw)) for draw in range(DRAWS) for base in FOLLOWED for way in WAYS]
    tested = [("test", (f"{attack}-{known}-{seed}", seed)) for attack, known, seed in product(*PLAIN)]
    tested += [("test", (f"smooth-{seed}", draw)) for seed, draw in product(range(3), range(3))]
    for kind, inputs in (followed + tested)[part::parts]:
        name = "-".join(map(str, inputs if kind == "follow" else (kind, *inputs)))
        if (store / name / "record.json").exists() or (only and not any(word in name for word in only)):
            continue
        start = time.monotonic()
        (follow if kind == "follow" else test)(store, bases, *inputs)
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {name}: {time.monotonic() - start:.0f} s\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run"])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--bases", type=Path, required=True, help="directory of the poisoned bases")
    parser.add_argument("--part", default="0/1", help="this share of the pieces: one process per core")
    parser.add_argument("--only", nargs="*", help="pieces whose name holds one of these words")
    arguments = parser.parse_args()
    part, parts = map(int, arguments.part.split("/"))
    run(arguments.store, arguments.bases, part, parts, arguments.only)


if __name__ == "__main__":
    main()
