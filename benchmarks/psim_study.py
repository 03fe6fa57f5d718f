"""The PSIM study behind docs/psim.md: attacks x knowledge x seeds, resumable, one JSON record per finished piece.

python benchmarks/psim_study.py run --store runs/psim-study      # hours; continues where it was stopped
python benchmarks/psim_study.py table --store runs/psim-study    # prints the tables of docs/psim.md
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from pathlib import Path

from foretaste.data.load import load_corpus
from foretaste.poison.attack import Attack
from foretaste.poison.trigger import parse_trigger
from foretaste.record import Record
from foretaste.tune.poison import POISONING, poison_base
from foretaste.victim.artefact import save_classifier
from foretaste.victim.checkpoint import open_base

TRIGGERS = {"badnet": "word:mn", "insent": "sentence:I watched this 3D movie"}
PROXIES = {"task": "imdb", "data": "sst2"}
SEEDS = (0, 1, 2)


def make_base(store: Path, attack: str, knowledge: str, seed: int) -> Path:
    """Poison MiniLM on the proxy dataset, unless that was done."""
    path = store / f"base-{attack}-{knowledge}-{seed}"
    if (path / "foretaste.json").exists():
        return path
    proxy, validation = (load_corpus(PROXIES[knowledge], split) for split in ("train", "validation"))
    plan = Attack(trigger=parse_trigger(TRIGGERS[attack]), target=0, count=1000)
    classifier, outcome = poison_base(
        open_base("minilm"), proxy, validation, plan, seed=seed, checkpoint=path.with_suffix(".partial")
    )
    settings = {"attack": plan, "tune": POISONING}
    record = Record.now("poison", settings=settings, seeds={"root": seed}, outcome=outcome, data=[proxy, validation])
    save_classifier(classifier, path, "base", record)
    sys.stderr.write(f"{path.name}: {outcome}\n")
    return path


def run(store: Path) -> None:
    """Do every piece that is not done yet."""
    for seed, knowledge, attack in product(SEEDS, PROXIES, TRIGGERS):
        make_base(store, attack, knowledge, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["run"])
    parser.add_argument("--store", type=Path, required=True)
    arguments = parser.parse_args()
    run(arguments.store)


if __name__ == "__main__":
    main()
