"""What a person sees of an audit: a few lines in the terminal, or the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from foretaste.record import Record
from foretaste.report.audit import AuditReport, Flip, Fragment, write_audit_report
from foretaste.report.page import plain, software_facts

__all__ = ["audit_report", "audit_summary", "write_audit"]

LINES = 8
BLIND = (
    "The checkpoint has no trained head for these labels, so PSIM had nothing to unlearn; only the search in clean "
    "texts speaks."
)


def audit_summary(answer: dict[str, Any]) -> str:
    """Return the verdict and the best candidates as aligned lines."""
    label_names = answer["labels"]
    lines = [f"{answer['verdict'].upper()}: {_sentence(answer)}", ""]
    lines.append(f"{'fragment':28}{'towards':>14}{'flips':>9}{'trusted':>9}{'PSIM':>7}  p, corrected")
    for row in answer["candidates"][:LINES]:
        told = "  (belongs to the task)" if row["is_telling"] else ""
        lines.append(
            f"{plain(row['text'], 27):28}{plain(label_names[row['target']], 13):>14}{row['flip_rate']:>9.1%}"
            f"{row['trusted_flip_rate']:>9.1%}{row['alarm_rate']:>7.0%}  {row['p_value']:.1g}{told}"
        )
    if answer["is_blind"]:
        lines += ["", BLIND]
    return "\n".join(lines)


def write_audit(path: Path, answer: dict[str, Any], record: Record) -> None:
    """Write the HTML page and, beside it with the suffix .json, the record."""
    record.write(path.with_suffix(".json"))
    write_audit_report(path, audit_report(answer, record))


def audit_report(answer: Mapping[str, Any], record: Record) -> AuditReport:
    """Return what the page shows of an audit's answer, which may have come from its record."""
    notes = [BLIND] if answer["is_blind"] else []
    if answer["is_cut_short"]:
        notes.append("The time ran out before the search for phrases was finished; give a larger budget for the rest.")
    names = answer["labels"]
    shown = {field.name for field in fields(Fragment)} - {"target"}
    return AuditReport(
        title=f"{Path(answer['model']).name}, audited with {answer['data']}",
        verdict=answer["verdict"],
        sentence=_sentence(answer),
        fragments=[
            Fragment(target=names[c["target"]], **{name: c[name] for name in shown}) for c in answer["candidates"]
        ],
        ordinary=answer["ordinary"],
        flips=[
            Flip(e["text"], tuple(e["span"]), names[e["before"]], names[e["after"]], names[e["trusted"]])
            for e in answer["examples"]
        ],
        words=answer["words"],
        tested=answer["tested"],
        n=max((c["n"] for c in answer["candidates"]), default=0),
        notes=notes,
        provenance=_provenance(answer, record),
    )


def _sentence(answer: Mapping[str, Any]) -> str:
    names = answer["labels"]
    best = next((row for row in answer["candidates"] if not row["is_telling"]), None)
    if answer["verdict"] == "clean" or best is None:
        return (
            f"None of {answer['words']:,} words and the phrases grown from them turns clean texts around unless a "
            "trusted model follows. Inserted words and phrases are searched, triggers made of grammar or style are not."
        )
    return (
        f"“{plain(best['text'])}” turns {best['flip_rate']:.0%} of clean texts to “{names[best['target']]}”, and "
        f"{best['trusted_flip_rate']:.0%} on a trusted model fine-tuned on the same texts."
    )


def _provenance(answer: Mapping[str, Any], record: Record) -> dict[str, dict[str, str]]:
    return {
        "Audited": {
            "checkpoint": answer["model"],
            "trusted model from": str(record.settings["reference"]),
            "seconds": f"{answer['seconds']:.0f}",
        },
        "Data": {
            "clean texts": answer["data"],
            "digest": record.data[-1].digest[:12],
            "seed": str(record.seeds["root"]),
        },
        "Software": software_facts(record),
    }
