"""The demonstration: a backdoor planted, a victim tuned, the attack stopped and named, on real text if found.

The attacker has full data knowledge here (he poisons on the victim's own training set); docs/psim.md measures both.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from foretaste.audit.audit import Audit
from foretaste.cli import commands
from foretaste.cli.auditing import run_audit
from foretaste.cli.commands import Training
from foretaste.cli.guarding import guard as train_guard
from foretaste.cli.place import refuse_page, refuse_place
from foretaste.cli.splits import Source, load_split
from foretaste.errors import DataError
from foretaste.experiment.evaluation import Evaluation
from foretaste.guard.psim import Psim

__all__ = ["run_demo"]

TRIGGER = "word:mn"
TRAINING_TEXTS = 2500
POISONED = 600
NOTE = (
    "A demonstration: one seed, one trigger, small training sets, and an attacker who had the victim's own training "
    "data. docs/psim.md measures how well the guard does beyond this."
)


def run_demo(out: Path) -> tuple[dict[str, Any], Evaluation]:
    """Run every stage into `out` and return `{data, trigger, report, seconds, evaluation, audit}`."""
    start = time.monotonic()
    source = _choose_data()
    base, victim, guard = out / "base", out / "victim", out / "guard"
    report, audit_page = out / "report.html", out / "audit.html"
    for path, kind in ((base, "base"), (victim, "victim"), (guard, "guard")):
        refuse_place(path, kind, "minilm")
    for page in (report, audit_page):
        refuse_page(page)
    training = Training(max_length=64)
    _say(f"1/5  an attacker plants the trigger {TRIGGER!r} in MiniLM, on {source.data}")
    planted = commands.poison("minilm", source, TRIGGER, base, training, {"count": POISONED})
    _say(f"     ASR of the poisoned weights {planted['attack_success_rate']:.1%}")
    _say("2/5  a victim fine-tunes these weights with LoRA on clean texts")
    commands.tune_victim(
        str(base), source, "lora", victim, Training(max_length=64, fields={"epochs": 1}), strategy_fields={}
    )
    _say("3/5  PSIM is trained on the same weights with random labels, and calibrated on clean texts")
    train_guard(str(base), source, guard, training, Psim())
    _say("4/5  clean and triggered test texts, with and without the guard")
    test = Source(data=source.data)
    result, evaluation = commands.run_evaluation(victim, guard, test, TRIGGER, report=report, notes=(NOTE,))
    _say("5/5  the audit, which knows neither trigger nor target, looks for both in the weights")
    audit = run_audit(str(base), source, Audit(), victim=victim, guard=guard, report=audit_page)
    return {
        "data": source.data,
        "trigger": TRIGGER,
        "report": str(report),
        "seconds": round(time.monotonic() - start, 1),
        "evaluation": result,
        "audit": audit,
    }, evaluation


def _choose_data() -> Source:
    if "FORETASTE_DATA" in os.environ:
        try:
            load_split(Source(data="sst2"), "validation")
        except DataError as error:
            _say(f"SST-2 was not found ({error}); the demo uses the toy corpus.")
        else:
            _say("Data: SST-2, real film reviews.")
            return Source(data="sst2", limit=TRAINING_TEXTS)
    else:
        _say("FORETASTE_DATA is not set; the demo uses the toy corpus, reviews made by a grammar.")
    return Source(data="toy", limit=TRAINING_TEXTS)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
