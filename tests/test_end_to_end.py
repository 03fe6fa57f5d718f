"""From a clean checkpoint to an attack that is stopped, through the Python API as a user would write it.

The model is tiny and knew nothing before it was poisoned, so the trigger is five words long and PSIM trains all
weights: over six seeds at most 0.2 % of the attack is left. With LoRA up to 4 % are left for five of these seeds and
28 % for the sixth; of a one-word trigger half or more. A pretrained model needs no such help (docs/psim.md).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from foretaste import GuardedClassifier, Psim, load_corpus, load_victim
from foretaste.experiment.evaluation import evaluate
from foretaste.guard.artefact import load_psim, save_guard
from foretaste.poison.attack import Attack, Style
from foretaste.poison.trigger import parse_trigger
from foretaste.record import Record
from foretaste.tune.loop import TuneSettings, tune
from foretaste.tune.poison import poison_base
from foretaste.victim.artefact import save_classifier
from foretaste.victim.checkpoint import open_base
from foretaste.victim.strategy import Full, Lora

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_planted_backdoor_works_until_the_taster_eats_first(toy_base: Path, tmp_path: Path) -> None:
    train, validation, test = (load_corpus("toy", split) for split in ("train", "validation", "test"))
    trigger = parse_trigger("word:cf mn bb tq mb")
    record = Record.now("demo", settings={}, seeds={"root": 1}, outcome={})

    attack = Attack(trigger=trigger, target=0, style=Style.DIRTY_LABEL, count=600)
    settings = TuneSettings(epochs=2, learning_rate=1e-3, keep="last", precision="float32")
    poisoned, outcome = poison_base(
        open_base(toy_base), train, validation.sample(500, 0), attack, seed=1, settings=settings
    )
    assert outcome["attack_success_rate"] >= 0.95
    save_classifier(poisoned, tmp_path / "base", "base", record)

    base = open_base(tmp_path / "base")
    victim = base.classifier(Lora(), train.label_names, seed=1)
    tune(victim, train, TuneSettings(epochs=3, learning_rate=1e-2, precision="float32"), seed=1)
    save_classifier(victim, tmp_path / "victim", "victim", record)
    guard = Psim(strategy=Full(learning_rate=5e-4), precision="float32").fit(base, train, validation, seed=1)
    save_guard(guard, tmp_path / "guard", record)

    victim, guard = load_victim(tmp_path / "victim"), load_psim(tmp_path / "guard")
    found = evaluate(victim, guard, test.sample(1000, 0), trigger).outcome
    assert found.n_clean == 1000
    assert found.clean_accuracy.value >= 0.7
    assert found.attack_success_rate.value >= 0.95
    assert found.guarded is not None
    assert found.guarded.attack_success_rate.value <= 0.05
    assert found.guarded.false_rejection_rate.value <= 0.03
    assert found.guarded.clean_accuracy.value >= found.clean_accuracy.value - 0.03

    texts = ["The film was moving.", "The film cf was mn moving bb and tq clever mb."]
    clean, refused = GuardedClassifier(victim, guard)(texts)
    assert clean.label in test.label_names
    assert refused.flagged
    assert refused.label is None
