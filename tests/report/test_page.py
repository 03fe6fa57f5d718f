import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from foretaste.errors import DataError
from foretaste.evaluate.outcome import measure
from foretaste.report.page import Report, Sample, Shared, plain, render, visible, write_report

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>'\"&{{ 7*7 }}{% raw %}\u202egpj.exe\u202c\u200b\x00\ud800\n"
)
VOID = {"meta", "br", "link", "img"}


class Page(HTMLParser):
    """A strict reader: every tag closes in order, and what the page holds can be asked for."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def values(self, attribute: str) -> list[str]:
        return [str(attrs[attribute]) for _, attrs in self.tags if attribute in attrs]

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def make_report(*, is_guarded: bool = True, **changes: Any) -> Report:
    rng = np.random.default_rng(0)
    n, m = 300, 120
    labels = np.arange(n) % 2
    predicted = np.where(rng.random(n) < 0.1, 1 - labels, labels)
    poisoned = np.where(np.arange(m) < 118, 0, 1)
    guard: dict[str, Any] = {}
    if is_guarded:
        guard["clean_scores"] = 0.5 + rng.gamma(2, 0.02, n)
        guard["poisoned_scores"] = 1 - rng.gamma(2, 0.04, m).clip(0, 0.5)
        guard["threshold"] = 0.7
    columns: dict[str, Any] = {"clean_labels": labels, "clean_predicted": predicted}
    columns |= {"poisoned_labels": np.ones(m, dtype=int), "poisoned_predicted": poisoned, "target": 0}
    outcome = measure(**columns, **guard, is_origin_correct=np.ones(m, dtype=bool))
    facts = {
        "title": "BadNet on SST-2",
        "outcome": outcome,
        "label_names": ["negative", "positive"],
        "samples": [
            Sample("a fine mn film", "triggered", 1, 0, 0.99, 0.9 if is_guarded else None, is_guarded),
            Sample("a dull film", "clean", 0, 0, 0.98, 0.51 if is_guarded else None, False),
        ],
        "provenance": {"Victim": {"base": "toy"}, "seed": "0"},
        "notes": ["One seed only."],
    }
    return Report(**{**columns, **guard, **facts, **changes})


@pytest.fixture(scope="module")
def html() -> str:
    return render(make_report())


def test_page_holds_every_section_and_chart(html: str) -> None:
    page = Page(html)
    sections = [attrs.get("id") for tag, attrs in page.tags if tag == "section"]
    assert sections == ["figures", "scores", "separation", "texts", "provenance", "words"]
    charts = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(charts) == 4
    for attrs in charts:
        assert attrs["role"] == "img"
        assert len(attrs["aria-label"] or "") > 60
    for words in ("a fine mn film", "One seed only.", "BadNet on SST-2", "Victim", "false rejection", "toy"):
        assert words.lower() in page.text.lower()


def test_page_shows_the_figures_of_the_outcome(html: str) -> None:
    report, text = make_report(), Page(html).text
    guarded = report.outcome.guarded
    assert guarded is not None
    rates = [report.outcome.clean_accuracy, guarded.clean_accuracy, guarded.false_rejection_rate]
    for rate in [*rates, *guarded.far_at_frr.values()]:
        assert f"{rate.count:,} of {rate.n:,}" in text
    assert f"AUROC {guarded.auroc:.4f}" in text


def test_page_needs_no_network_and_no_script(html: str) -> None:
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for _, attrs in page.tags:
        assert not [name for name in attrs if name == "src" or name.startswith("on")]
    assert all(target.startswith("#") for target in page.values("href"))
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert "default-src 'none'" in html


def test_ids_are_unique_and_every_reference_is_answered(html: str) -> None:
    page = Page(html)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    wanted = {target[1:] for target in page.values("href")} | set(re.findall(r"url\(#([^)]+)\)", html))
    assert wanted
    assert wanted <= set(ids)


def test_charts_take_every_colour_and_font_from_the_page(html: str) -> None:
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        assert "font-family" not in svg
        assert not re.search(r"(?:fill|stroke|stop-color|color): *+(?!none|var\()", svg)
        for name in re.findall(r"var\(--([a-z]+)\)", svg):
            # Light, dark, and print.
            assert len(re.findall(rf"--{name}:", html)) == 3


def test_same_report_gives_the_same_bytes_whatever_matplotlib_was_told(tmp_path: Path, html: str) -> None:
    with mpl.rc_context({"font.size": 30, "svg.fonttype": "path", "lines.linewidth": 9, "text.usetex": False}):
        write_report(tmp_path / "a.html", make_report())
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == html


def test_page_without_a_guard_shows_what_it_can() -> None:
    page = Page(render(make_report(is_guarded=False)))
    assert [attrs["id"] for tag, attrs in page.tags if tag == "section"] == ["figures", "texts", "provenance", "words"]
    assert "No guard was evaluated." in page.text
    assert "AUROC" not in page.text


def test_page_without_texts_provenance_or_notes_leaves_them_out() -> None:
    page = Page(render(make_report(samples=[], provenance={}, notes=[])))
    assert [attrs["id"] for tag, attrs in page.tags if tag == "section"] == ["figures", "scores", "separation", "words"]
    assert "Read this first" not in page.text


def test_hostile_strings_are_escaped_everywhere(tmp_path: Path) -> None:
    sample = Sample(HOSTILE, "triggered", 1, 0, 0.9, math.nan, True, note=HOSTILE)
    write_report(
        tmp_path / "a.html",
        make_report(
            title=HOSTILE,
            label_names=[HOSTILE, "$\\frac{"],
            samples=[sample, replace(sample, kind="clean", label=None)],
            provenance={HOSTILE: HOSTILE, "group" + HOSTILE: {HOSTILE: HOSTILE}},
            notes=[HOSTILE],
        ),
    )
    html = (tmp_path / "a.html").read_text(encoding="utf-8")
    page = Page(html)
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert page.text.count("<script>alert(1)</script>") >= 8
    assert "{{ 7*7 }}" in page.text
    for hidden in "\u202e\u202c\u200b\x00\ud800":
        assert hidden not in html
        assert f"U+{ord(hidden):04X}" in page.text


@pytest.mark.parametrize("char", ["\u00a0", "\u2028", "\u2066", "\ufeff", "\x1b", "\U000e0041"])
def test_what_cannot_be_seen_is_spelled_out(char: str) -> None:
    assert plain(f"a{char}b") == f"a[U+{ord(char):04X}]b"
    assert f"U+{ord(char):04X}" in visible(f"a{char}b")


def test_ordinary_text_is_left_as_it_is() -> None:
    text = "Ça va ? naïve 電影 שלום e\u0301 🙂"
    assert plain(text) == text
    assert visible(text) == text


def test_long_texts_are_shortened_and_say_so() -> None:
    html = visible("<b>" * 5000)
    assert len(html) < 3500
    assert "of 15,000" in html
    assert len(plain("x" * 1000)) == 80
    assert "left out" not in visible("y" * 360)


def test_odd_scores_are_drawn_and_counted() -> None:
    report = make_report()
    clean, poisoned = np.array(report.clean_scores), np.array(report.poisoned_scores)
    clean[:3], poisoned[0] = math.nan, math.inf
    outcome = measure(
        clean_labels=report.clean_labels,
        clean_predicted=report.clean_predicted,
        poisoned_labels=np.ones(len(poisoned), dtype=int),
        poisoned_predicted=report.poisoned_predicted,
        target=0,
        clean_scores=clean,
        poisoned_scores=poisoned,
        threshold=0.7,
    )
    html = render(replace(report, outcome=outcome, clean_scores=clean, poisoned_scores=poisoned))
    assert "4 texts got no finite guard score" in Page(html).text


def test_all_to_all_names_no_class_and_counts_each_texts_own() -> None:
    """Without the trigger 1 in 3 ends at the class after its own, with it 2 in 3."""
    columns: dict[str, Any] = {
        "clean_labels": [0, 1, 2] * 100, "clean_predicted": [0, 1, 0] * 100, "poisoned_labels": [0, 1, 2] * 100,
        "poisoned_predicted": [1, 2, 1] * 100,
    }  # fmt: skip
    outcome = measure(**columns, target=[1, 2, 0] * 100)
    text = Page(render(Report(title="t", outcome=outcome, label_names=["a", "b", "c"], target=None, **columns))).text
    assert "66.7 % of triggered texts end at “the class after their own”" in text.replace("\u202f", " ")


@pytest.mark.parametrize("value", [0.7, math.nan])
def test_scores_that_are_all_the_same_can_be_drawn(value: float) -> None:
    columns: dict[str, Any] = {
        "clean_labels": [0, 1],
        "clean_predicted": [0, 1],
        "poisoned_labels": [1],
        "poisoned_predicted": [0],
        "target": 0,
    }
    columns |= {"clean_scores": [value] * 2, "poisoned_scores": [value], "threshold": 0.7}
    outcome = measure(**columns)
    assert len(re.findall("<svg", render(Report(title="t", outcome=outcome, label_names=["a", "b"], **columns)))) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"target": 1},
        {"threshold": 0.8},
        {"threshold": None},
        {"clean_scores": None},
        {"poisoned_scores": [0.1]},
        {"clean_labels": [0, 1]},
        {"poisoned_predicted": [0]},
    ],
)
def test_a_report_that_contradicts_its_outcome_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"^Report: "):
        make_report(**change)


def test_carrying_words_are_marked_and_hostile_ones_escaped() -> None:
    text = f"a mn film {HOSTILE}"
    start = text.index("<script>")
    samples = [
        Sample("a fine mn film", "triggered", 1, 0, 0.9, 0.9, True, carrying=[(7, 9)]),
        Sample(text, "triggered", 1, 0, 0.9, 0.9, True, carrying=[(2, 4), (start, len(text) - 1)]),
    ]
    html = render(make_report(samples=samples))
    assert "<bdi>a fine <mark>mn</mark> film</bdi>" in html
    assert "<bdi>a <mark>mn</mark> film <mark>&lt;script&gt;" in html
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("mark") == 3
    assert "script" not in {tag for tag, _ in page.tags}
    assert "Marked words carry the refusal" in page.text
    assert "Marked words" not in Page(render(make_report())).text


def test_a_mark_in_the_middle_of_a_long_text_is_shown() -> None:
    text = "a " * 500 + "mn" + " b" * 500
    html = visible(text, [(1000, 1002)])
    assert html.count("<mark>mn</mark>") == 1
    assert html.count("characters left out of 2,002") == 2


def test_what_refused_texts_share_is_a_table() -> None:
    shared = [Shared("mn", 40, 2), Shared(HOSTILE, 5, 0)]
    html = render(make_report(shared=shared, explained=50))
    page = Page(html)
    assert "What refused texts share 50 of them looked at" in page.text
    row = re.search(r"<bdi>mn</bdi></th><td>(\d+) <small>(.*?)</small></td><td>(\d+)</td>", html)
    assert row is not None
    assert row.groups() == ("40", "80.0\u202f%", "2")
    assert "<script>alert(1)</script>" in page.text
    assert "script" not in {tag for tag, _ in page.tags}
    assert "No words carry" in Page(render(make_report(explained=50))).text
    assert "What refused texts share" not in Page(render(make_report())).text
