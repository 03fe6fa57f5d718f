"""A text cut into what is marked, what is not, and what is too much to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Piece", "cut_out"]

Kind = Literal["plain", "marked", "gap"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a text: shown plain, shown marked, or (a gap) left out."""

    text: str
    kind: Kind


def cut_out(text: str, spans: Sequence[tuple[int, int]], longest: int, around: int) -> list[Piece]:
    """Return the pieces of a text, which joined are the text; `spans` `(start, end)` are marked, in order, apart.

    Of a text longer than `longest` characters, stretches that are not marked keep `around` characters beside each mark
    (without any mark: all but the middle), and marked ones so many at either end.

    >>> [(piece.text, piece.kind) for piece in cut_out("a mn film", [(2, 4)], longest=80, around=20)]
    [('a ', 'plain'), ('mn', 'marked'), (' film', 'plain')]
    >>> [piece.kind for piece in cut_out("a mn film" + " on" * 99, [(2, 4)], longest=80, around=20)]
    ['plain', 'marked', 'plain', 'gap']
    """
    stretches: list[tuple[str, Kind, int, int]] = []  # text, kind, how much to keep of its head and of its tail
    end = 0
    for start, stop in spans:
        stretches += [(text[end:start], "plain", around if end else 0, around)]
        stretches += [(text[start:stop], "marked", around, around)]
        end = stop
    stretches += [(text[end:], "plain", around if end else longest - around, 0 if end else around)]
    is_short = len(text) <= longest
    pieces = [
        piece
        for stretch, kind, head, tail in stretches
        for piece in ([Piece(stretch, kind)] if is_short else _shortened(stretch, kind, head, tail))
    ]
    return [piece for piece in pieces if piece.text]


def _shortened(text: str, kind: Kind, head: int, tail: int) -> list[Piece]:
    if len(text) <= head + tail:
        return [Piece(text, kind)]
    stop = len(text) - tail
    return [Piece(text[:head], kind), Piece(text[head:stop], "gap"), Piece(text[stop:], kind)]
