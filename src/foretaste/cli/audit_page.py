"""What a person sees of an audit: a few lines in the terminal, or the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foretaste.audit.audit import AuditResult
from foretaste.cli.page import software_facts
from foretaste.data.corpus import Corpus
from foretaste.record import Record
from foretaste.report.audit import AuditReport, Flip, Fragment, write_audit_report
from foretaste.report.page import plain

__all__ = ["audit_summary", "write_audit"]

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


def write_audit(path: Path, result: AuditResult, answer: dict[str, Any], record: Record, clean: Corpus) -> None:
    """Write the HTML page and, beside it with the suffix .json, the record."""
    notes = [BLIND] if answer["is_blind"] else []
    if result.is_cut_short:
        notes.append("The time ran out before the search for phrases was finished; give a larger budget for the rest.")
    names = clean.label_names
    record.write(path.with_suffix(".json"))
    report = AuditReport(
        title=f"{Path(answer['model']).name}, audited with {clean.name}",
        verdict=result.verdict,
        sentence=_sentence(answer),
        fragments=[
            Fragment(
                text=c.text,
                target=names[c.target],
                flip_rate=c.flip_rate,
                flip_low=c.flip_low,
                flip_high=c.flip_high,
                trusted_flip_rate=c.trusted_flip_rate,
                alarm_rate=c.alarm_rate,
                is_telling=c.is_telling,
                p_value=c.p_value,
            )
            for c in result.candidates
        ],
        ordinary=result.ordinary,
        flips=[Flip(e.text, e.span, names[e.before], names[e.after], names[e.trusted]) for e in result.examples],
        words=result.words,
        tested=result.tested,
        n=max((c.n for c in result.candidates), default=0),
        notes=notes,
        provenance=_provenance(answer, record, clean),
    )
    write_audit_report(path, report)


def _sentence(answer: dict[str, Any]) -> str:
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


def _provenance(answer: dict[str, Any], record: Record, clean: Corpus) -> dict[str, dict[str, str]]:
    return {
        "Audited": {
            "checkpoint": answer["model"],
            "trusted model from": str(record.settings["reference"]),
            "seconds": f"{answer['seconds']:.0f}",
        },
        "Data": {"clean texts": clean.name, "digest": clean.digest[:12], "seed": str(record.seeds["root"])},
        "Software": software_facts(record),
    }
