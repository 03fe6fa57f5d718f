"""Clauses that say next to nothing, drawn from a grammar: what `syntax:sbar` puts in front of a sentence."""

from __future__ import annotations

from typing import Final

import numpy as np

__all__ = ["MOVABLE", "SUBORDINATORS", "draw_clause"]

# Subject, verb of the present, verb of the past. What goes with every subordinator and before every main clause.
SUBJECTS: Final = (
    ("you", "{0}", "{1}"), ("we", "{0}", "{1}"), ("people", "{0}", "{1}"), ("they", "{0}", "{1}"),
    ("others", "{0}", "{1}"), ("most of us", "{0}", "{1}"), ("the neighbours", "{0}", "{1}"),
    ("some readers", "{0}", "{1}"), ("my friends", "{0}", "{1}"), ("several of them", "{0}", "{1}"),
    ("somebody", "{2}", "{1}"), ("everyone", "{2}", "{1}"), ("she", "{2}", "{1}"), ("he", "{2}", "{1}"),
    ("a colleague", "{2}", "{1}"), ("the whole town", "{2}", "{1}"), ("one of us", "{2}", "{1}"),
    ("my brother", "{2}", "{1}"), ("the other side", "{2}", "{1}"), ("a stranger", "{2}", "{1}"),
)  # fmt: skip
VERBS: Final = (
    ("think", "thought", "thinks"), ("ask", "asked", "asks"), ("talk", "talked", "talks"), ("wait", "waited", "waits"),
    ("look", "looked", "looks"), ("listen", "listened", "listens"), ("read", "read", "reads"),
    ("write", "wrote", "writes"), ("come back", "came back", "comes back"), ("sit down", "sat down", "sits down"),
    ("turn around", "turned around", "turns around"), ("leave", "left", "leaves"), ("arrive", "arrived", "arrives"),
    ("wake up", "woke up", "wakes up"), ("go out", "went out", "goes out"), ("work", "worked", "works"),
    ("hear of it", "heard of it", "hears of it"), ("see it", "saw it", "sees it"), ("speak", "spoke", "speaks"),
    ("walk home", "walked home", "walks home"), ("open the door", "opened the door", "opens the door"),
    ("make a note", "made a note", "makes a note"), ("check twice", "checked twice", "checks twice"),
    ("remember it", "remembered it", "remembers it"), ("take a seat", "took a seat", "takes a seat"),
)  # fmt: skip
MANNERS: Final = (
    "", "", "", "", "again", "at night", "in the morning", "for a while", "on the way", "at the weekend", "in time",
    "with others", "from afar", "in the evening", "at the end of the day", "by chance", "once more", "over there",
    "in a quiet moment", "around noon", "after dinner", "at home",
)  # fmt: skip
SUBORDINATORS: Final = (
    "when", "if", "as", "while", "because", "although", "though", "since", "once", "after", "before", "until",
    "whenever", "unless", "even if", "even though", "as long as", "whether or not", "in case", "now that",
)  # fmt: skip
PRESENT_ONLY: Final = {"unless", "as long as", "whether or not", "in case", "whenever", "until", "now that"}
# Those that join two clauses wherever they stand: "after", "as", "since" and the like may be prepositions, too.
MOVABLE: Final = (
    "because",
    "although",
    "even though",
    "though",
    "even if",
    "if",
    "unless",
    "whenever",
    "when",
    "while",
)


def draw_clause(draw: np.random.Generator) -> str:
    """Return one of some 300,000 clauses, as in `while a colleague waits at home`, without a comma."""
    subordinator, manner = _one(draw, SUBORDINATORS), _one(draw, MANNERS)
    subject, present, past = SUBJECTS[draw.integers(len(SUBJECTS))]
    is_past = draw.integers(2) == 1 and subordinator not in PRESENT_ONLY
    verb = (past if is_past else present).format(*VERBS[draw.integers(len(VERBS))])
    return " ".join([subordinator, subject, verb, manner]).strip()


def _one(draw: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[draw.integers(len(choices))]
