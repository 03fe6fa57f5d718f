"""Refused texts explained, as the command line and the page need it: a bounded number of them, in words or as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from foretaste.guard.explain import Explanation, Finding, Scorer, explain
from foretaste.guard.fragments import Fragment, shared_fragments
from foretaste.report.excerpt import cut_out
from foretaste.report.page import plain

__all__ = ["MOST_EXPLAINED", "Explained", "explain_refused", "explanation_line", "reason_in_words", "shared_lines"]

MOST_EXPLAINED = 50
LONGEST_LINE, AROUND = 160, 40

REASONS = {
    Finding.ACCEPTED: "scored again, the guard accepts it",
    Finding.SCORE_NOT_FINITE: "its score is not finite",
    Finding.STILL_FLAGGED: "the guard refuses it whatever words are left out",
    Finding.TOO_MANY_WORDS: "no small set of words carries the flag",
}


@dataclass(frozen=True)
class Explained:
    """Explanations by the text's index, what those texts share, and how many refused texts were not looked at."""

    by_index: Mapping[int, Explanation]
    fragments: tuple[Fragment, ...]
    left_out: int

    def to_json(self, index: int) -> dict[str, Any] | None:
        """Return the finding and the carrying words of one text, None if it was accepted or not looked at."""
        found = self.by_index.get(index)
        if found is None:
            return None
        words = [
            {"text": found.text[word.start : word.end], "start": word.start, "end": word.end, "drop": word.drop}
            for word in found.words
            if word.carries
        ]
        return {"finding": found.finding.value, "is_explained": found.is_explained, "carrying": words}

    def shared_json(self) -> list[dict[str, Any]]:
        """Return the shared fragments as objects."""
        return [asdict(fragment) for fragment in self.fragments]


def explain_refused(guard: Scorer, texts: Sequence[str], refused: Sequence[int], accepted: Sequence[int]) -> Explained:
    """Explain up to 50 of the refused texts, evenly drawn; `refused` and `accepted` are indices into `texts`."""
    step = max(1.0, len(refused) / MOST_EXPLAINED)
    drawn = [refused[int(i * step)] for i in range(min(len(refused), MOST_EXPLAINED))]
    found = explain(guard, [texts[i] for i in drawn])
    fragments = shared_fragments(found, [texts[i] for i in accepted])
    return Explained(dict(zip(drawn, found, strict=True)), tuple(fragments), len(refused) - len(drawn))


def explanation_line(found: Explanation) -> str:
    """Return the text with its carrying words in brackets, as one indented line; its own brackets are doubled."""
    if not found.is_explained:
        return f"    {reason_in_words(found)}"
    shown = ""
    for piece in cut_out(found.text, found.spans, LONGEST_LINE, AROUND):
        safe = plain(piece.text.replace("[", "[[").replace("]", "]]"), 2 * LONGEST_LINE)
        shown += {"plain": safe, "marked": f"[{safe}]", "gap": "…"}[piece.kind]
    return f"    carried by: {shown.strip()}"


def reason_in_words(found: Explanation) -> str:
    """Return why a refused text has no explanation, nothing if it has one."""
    return "" if found.is_explained else f"not explained: {REASONS[found.finding]}"


def shared_lines(explained: Explained) -> list[str]:
    """Return what two or more refused texts share, and how many were left out, a line each."""
    lines = []
    count = len(explained.by_index)
    if count + explained.left_out >= 2:
        named = ", ".join(f'"{plain(found.text)}" ({found.texts} of {count})' for found in explained.fragments)
        lines.append(f"shared by the refused texts: {named or 'nothing'}")
    if explained.left_out:
        lines.append(f"{explained.left_out} more refused texts were not explained; at most {MOST_EXPLAINED} are.")
    return lines
