"""A text cut into pieces is the text, and what is marked can be seen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from foretaste.report.excerpt import cut_out

LONGEST, AROUND = 60, 10


@st.composite
def marked_texts(draw: st.DrawFn) -> tuple[str, list[tuple[int, int]]]:
    """A text and spans in it that are not empty, in order and apart."""
    text = draw(st.one_of(st.text(max_size=30), st.text("ab \n\U0001f680", min_size=50, max_size=300)))
    edges = sorted(draw(st.sets(st.integers(0, len(text)), max_size=8)))
    return text, list(zip(edges[::2], edges[1::2], strict=False))


@given(marked_texts())
def test_the_pieces_make_the_text_and_the_marks_stay(case: tuple[str, list[tuple[int, int]]]) -> None:
    text, spans = case
    pieces = cut_out(text, spans, LONGEST, AROUND)
    assert "".join(piece.text for piece in pieces) == text
    assert all(piece.text for piece in pieces)
    inside = {i for start, end in spans for i in range(start, end)}
    position = 0
    for piece in pieces:
        where = set(range(position, position + len(piece.text)))
        position += len(piece.text)
        if piece.kind != "gap":
            assert (where <= inside) if piece.kind == "marked" else not where & inside
    seen = sum(len(piece.text) for piece in pieces if piece.kind != "gap")
    assert seen <= max(LONGEST, 4 * AROUND * max(1, len(spans)))
    if len(text) <= LONGEST:
        assert seen == len(text)


@given(marked_texts())
def test_every_mark_shows_at_both_ends(case: tuple[str, list[tuple[int, int]]]) -> None:
    text, spans = case
    shown, position = set[int](), 0
    for piece in cut_out(text, spans, LONGEST, AROUND):
        if piece.kind == "marked":
            shown |= set(range(position, position + len(piece.text)))
        position += len(piece.text)
    assert {edge for start, end in spans for edge in (start, end - 1)} <= shown


def test_of_a_long_text_without_marks_the_middle_is_left_out() -> None:
    head, gap, tail = cut_out("x" * 100, [], LONGEST, AROUND)
    assert (len(head.text), gap.kind, len(gap.text), len(tail.text)) == (LONGEST - AROUND, "gap", 40, AROUND)


def test_of_a_long_text_the_neighbourhood_of_each_mark_stays() -> None:
    text = "a" * 50 + "MN" + "b" * 50 + "CF" + "c" * 50
    pieces = cut_out(text, [(50, 52), (102, 104)], LONGEST, AROUND)
    said = "|".join("..." if piece.kind == "gap" else piece.text for piece in pieces)
    assert said == f"...|{'a' * 10}|MN|{'b' * 10}|...|{'b' * 10}|CF|{'c' * 10}|..."
