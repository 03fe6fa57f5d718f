"""`foretaste cleanse`: audit, unlearn what the audit names, audit again, until it says clean."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from foretaste.audit.audit import Audit
from foretaste.cli.audit_page import audit_report
from foretaste.cli.auditing import run_audit
from foretaste.cli.commands import Training
from foretaste.cli.place import refuse_page, refuse_place
from foretaste.cli.splits import Source, load_split
from foretaste.cli.unlearning import refuse_other_labels, unlearn
from foretaste.cost import measured_cost
from foretaste.data.corpus import Corpus
from foretaste.errors import PlanError
from foretaste.files import new_directory, write_json
from foretaste.poison.trigger import SentenceTrigger
from foretaste.record import Record
from foretaste.report.cleanse import CleanseReport, Step, write_cleanse_report
from foretaste.report.page import software_facts
from foretaste.unlearn.named import NamedTriggers, in_sight
from foretaste.victim.artefact import load_victim
from foretaste.victim.checkpoint import open_base
from foretaste.victim.classifier import Classifier

PLAN = "cleansing.json"
LOOKED_AT = 400  # texts that an unlearned fragment is tried in

__all__ = ["cleanse", "cleanse_summary", "named_by", "turned_by"]


@dataclass(frozen=True)
class Round:
    """What one audit answered, and the model it was about; `unlearned` says how often each fragment still turns it.

    None: no text is answered right without the fragment.
    """

    model: str
    answer: dict[str, Any]
    record: Record
    unlearned: dict[str, float | None]
    clean_accuracy: float | None


def cleanse(
    model: str,
    source: Source,
    out: Path,
    training: Training,
    plan: Audit,
    method: NamedTriggers,
    *,
    base: str | None = None,
    reference: str = "minilm",
    rounds: int = 3,
    report: Path | None = None,
) -> dict[str, Any]:
    """Go round at most `rounds` times and return what was found and where the clean model is.

    Every round starts from the checkpoint as it came and unlearns all that was named so far. All that is made is kept
    in `out`, and what is there is not made again, so that an interrupted run continues.
    """
    refuse_place(out / "model-1", "victim", model, base, reference)
    parts = [load_split(source, split) for split in ("train", "validation", "test")]
    suspect = open_base(model, base=base)
    refuse_other_labels(suspect, parts[0])
    _take_place(
        out,
        {
            "audit": repr(plan),
            "data": [part.digest for part in parts],
            "max_length": training.max_length,
            "method": repr(method),
            "reference": reference,
            "seed": training.seed,
            "suspect": suspect.fingerprint,
        },
    )
    if report is not None:
        refuse_page(report)
    done: list[Round] = []
    named: dict[str, set[int]] = {}
    left: dict[str, float | None] = {}
    accuracy: float | None = None
    with measured_cost() as meter:
        for number in range(rounds + 1):
            subject = model if number == 0 else str(out / f"model-{number}")
            if number > 0:
                for fragment, targets in named_by(done[-1].answer, plan).items():
                    named.setdefault(fragment, set()).update(targets)
                before, accuracy = _washed(model, base, source, Path(subject), training, method, list(named))
                done[0] = replace(done[0], clean_accuracy=before)
                washed = load_victim(subject)  # checked before it is handed on
                left = turned_by(washed, parts[1], named, training.seed)
            done.append(_audited(subject, base if number == 0 else None, source, plan, out / f"audit-{number}",
                                 reference, training.seed, left, accuracy))  # fmt: skip
            if not named_by(done[-1].answer, plan).keys() - named:
                break  # clean, or nothing new to unlearn
    last = done[-1]
    result = {
        "verdict": last.answer["verdict"],
        "model": None if len(done) == 1 else last.model,
        "rounds": [
            {
                "model": each.model,
                "verdict": each.answer["verdict"],
                "unlearned": each.unlearned,
                "named": list(named_by(each.answer, plan)),
                "clean_accuracy": each.clean_accuracy,
                "is_cut_short": each.answer["is_cut_short"],
                "is_blind": each.answer["is_blind"],
            }
            for each in done
        ],
        "seconds": meter.cost.seconds,
    }
    record = Record.now(
        "cleanse",
        settings={"model": model, "base": base, "reference": reference, "audit": plan, "method": method},
        seeds={"root": training.seed},
        outcome=result,
        data=last.record.data,
        cost=meter.cost,
    )
    record.write(out / "record.json")
    if report is not None:
        record.write(report.with_suffix(".json"))
        write_cleanse_report(report, _page(model, done, result, record))
        result["report"] = str(report)
    return result


def named_by(answer: Mapping[str, Any], plan: Audit) -> dict[str, set[int]]:
    """The fragments of an audit's answer that are worth unlearning, all that made it suspicious, and their targets."""
    named: dict[str, set[int]] = {}
    for each in answer["candidates"] if answer["verdict"] != "clean" else ():
        if not each["is_telling"] and each["score"] >= plan.suspicion:
            named.setdefault(each["text"], set()).add(each["target"])
    return named


def cleanse_summary(result: Mapping[str, Any]) -> str:
    """One line per audit, and where the model is."""
    lines = []
    for number, each in enumerate(result["rounds"]):
        when = "as it came" if number == 0 else f"after round {number}"
        accuracy = "" if each["clean_accuracy"] is None else f", CA {each['clean_accuracy']:.1%}"
        worst = max((rate for rate in each["unlearned"].values() if rate is not None), default=None)
        left = "" if worst is None else f", what was unlearned turns {worst:.0%} of texts at most"
        named = f"; named: {', '.join(each['named'])}" if each["named"] else ""
        lines.append(f"{when:14} {each['verdict'].upper()}{accuracy}{left}{named}")
    lines.append(_sentence(result))
    if result["rounds"][-1]["is_cut_short"]:
        lines.append("The last audit ran out of time before its search for phrases was finished (--budget).")
    if result["rounds"][-1]["is_blind"]:
        lines.append("The model has no trained head for these labels, so that the audit's PSIM had nothing to unlearn.")
    if result["model"] is not None:
        lines.append(f"cleansed model: {result['model']}")
    return "\n".join(lines)


def _take_place(out: Path, identity: dict[str, Any]) -> None:
    """Say in `out` which cleansing it holds; refuse a directory that holds another one, or anything else."""
    note = out / PLAN
    if note.exists():
        try:
            found = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PlanError(f"{note} cannot be read ({error}); delete {out} to start over.") from error
        if found != identity:
            raise PlanError(f"{out} holds the cleansing of another model, or with other settings; name another place.")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PlanError(f"{out} holds something else; name a new directory.")
    write_json(note, identity)


def _audited(
    model: str,
    base: str | None,
    source: Source,
    plan: Audit,
    kept: Path,
    reference: str,
    seed: int,
    unlearned: dict[str, float | None],
    accuracy: float | None,
) -> Round:
    if not (kept / "record.json").exists():
        _share_trusted(kept)
        run_audit(model, source, plan, base=base, out=kept, reference=reference, seed=seed)
    record = Record.read(kept / "record.json")
    answer: Any = record.outcome
    return Round(model, answer, record, unlearned, accuracy)


def _share_trusted(kept: Path) -> None:
    """Give an audit the trusted model that the first one made: it depends on the texts and the reference alone."""
    made, place = kept.parent / "audit-0" / "trusted", kept / "trusted"
    if made != place and (made / "record.json").exists() and not place.exists():
        with new_directory(place) as beside:
            shutil.copytree(made, beside, dirs_exist_ok=True)


def _washed(
    model: str,
    base: str | None,
    source: Source,
    out: Path,
    training: Training,
    method: NamedTriggers,
    named: Sequence[str],
) -> tuple[float | None, float]:
    """Unlearn, unless that was done; return CA on the test split, before and after."""
    if not (out / "record.json").exists():
        unlearn(model, source, out, training, method, base=base, fragments=named)
    outcome: Any = Record.read(out / "record.json").outcome
    before = outcome["before"]
    return None if before is None else before["clean_accuracy"], outcome["after"]["clean_accuracy"]


def turned_by(model: Classifier, corpus: Corpus, named: Mapping[str, set[int]], seed: int) -> dict[str, float | None]:
    """Share of texts of other classes, answered right without it, that a fragment sends to its target; the worst."""
    some = corpus.sample(min(LOOKED_AT, len(corpus)), seed)
    hosts = in_sight(model, list(some.texts))
    is_right = model.predict(hosts, precision="auto").labels == some.labels
    turned: dict[str, float | None] = {}
    for fragment, targets in named.items():
        rates = []
        for target in targets:
            own = [hosts[i] for i in np.flatnonzero(is_right & (some.labels != target))]
            if own:
                texts = SentenceTrigger(sentence=fragment).apply(own, seed)
                rates.append(float((model.predict(texts, precision="auto").labels == target).mean()))
        turned[fragment] = max(rates, default=None)
    return turned


def _sentence(result: Mapping[str, Any]) -> str:
    if result["model"] is None:
        return "Nothing was found that could be unlearned." if result["verdict"] != "clean" else "Nothing to unlearn."
    found, place = result["rounds"][0]["verdict"], Path(result["model"])
    rounds = "one round" if len(result["rounds"]) == 2 else f"{len(result['rounds']) - 1} rounds"
    if result["verdict"] == "clean":
        return f"It came {found}; after {rounds} the audit finds nothing any more in {place.name}."
    return f"It came {found}; after {rounds} something is left in {place.name}: do not use it without a guard."


def _page(model: str, done: Sequence[Round], result: Mapping[str, Any], record: Record) -> CleanseReport:
    return CleanseReport(
        title=f"{Path(model).name}, cleansed",
        steps=[Step(audit_report(each.answer, each.record), each.unlearned, each.clean_accuracy) for each in done],
        sentence=_sentence(result),
        notes=["An audit finds inserted words and phrases; triggers made of grammar or style it does not."],
        provenance={
            "Cleansed": {"checkpoint": model, "seconds": f"{result['seconds']:.0f}"},
            "Data": {use.name: use.digest[:12] for use in record.data},
            "Software": software_facts(record),
        },
    )
