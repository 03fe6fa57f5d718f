"""Apertium, the real one where it is installed, and what its stream of texts goes through where it is not."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from foretaste.data import toy_corpus
from foretaste.errors import ModelError
from foretaste.rewrite.apertium import Apertium
from foretaste.rewrite.back_translation import BackTranslation

SIGNS = "a [b] c/d ^e $f <g> {h} @i \\j #k +l ~m *n"
TEXTS = [
    "The film was good", "bad film without end ?", "i once saw the mn film , and it was dull .", "", "  ", "!", "..",
    "a\nb", SIGNS, "mr. smith paid $5 at 3 a.m.", "null \x00 here", "\ud800", "漢字 👍",
]  # fmt: skip

real = pytest.mark.skipif(bool(BackTranslation().lacking()), reason="make apertium")


@real
def test_the_film_goes_to_spain_and_comes_back() -> None:
    rewriter = BackTranslation().fit(toy_corpus(), toy_corpus("validation"))
    found = dict(zip(TEXTS, rewriter.rewrite(TEXTS), strict=True))
    assert "película" in Apertium("eng-spa").rewrite(["The film was good"])[0]
    assert "film" in found["The film was good"].lower()
    assert "mn" in found["i once saw the mn film , and it was dull ."].split()
    assert [found[text] for text in ("", "  ", "!", "..")] == ["", "  ", "!", ".."]
    assert all(mark in found[SIGNS] for mark in "[]^$<>{}\\")


@real
def test_a_translation_does_not_depend_on_the_texts_before_it() -> None:
    texts = [*TEXTS, *toy_corpus("test").texts[:30]]
    translator = Apertium("eng-spa")
    together = translator.rewrite(texts)
    assert translator.rewrite(texts[::-1]) == together[::-1]
    assert translator.rewrite([texts[2]]) == [together[2]]
    assert translator.rewrite([]) == []


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A direction of two programs: one writes capitals, the other, a tagger, says how many texts it was given."""
    for name, line in (
        ("apertium-upper", "text.upper()"),
        ("apertium-tagger", "text + f' {len(texts)}' if text else text"),
    ):
        program = tmp_path / name
        program.write_text(
            f"#!{sys.executable}\nimport sys\nassert sys.argv[1] == '-z' and sys.argv[2] == 'an option'\n"
            "texts = sys.stdin.read().split('\\0')[:-1]\n"
            f"sys.stdout.write(''.join(({line}) + '\\0' for text in texts) + '\\0\\0')\n"
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "modes").mkdir()
    mode = "apertium-upper 'an option' $2 | apertium-tagger 'an option'"
    (tmp_path / "modes" / "xxx-yyy.mode").write_text(mode)
    monkeypatch.setenv("APERTIUM_DATADIR", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def test_texts_come_back_as_they_went_and_the_tagger_sees_one_at_a_time(fake: Path) -> None:
    translator = Apertium("xxx-yyy")
    assert translator.lacking() == ""
    found = translator.rewrite(TEXTS)
    assert found[8] == SIGNS.upper() + ". 1"
    assert found[7] == "A B. 1"


def test_what_fails_says_so(fake: Path) -> None:
    before = Apertium("xxx-yyy").mark()
    (fake / "apertium-upper").write_text(f"#!{sys.executable}\nimport sys\nsys.exit(3)\n")
    with pytest.raises(ModelError, match="apertium-upper of Apertium failed"):
        Apertium("xxx-yyy").rewrite(["a"])
    assert Apertium("xxx-yyy").mark() != before
    (fake / "apertium-upper").write_text(f"#!{sys.executable}\nprint('torn', end='')\n")
    with pytest.raises(ModelError, match="gave 1 texts for 2"):
        Apertium("xxx-yyy").rewrite(["a", "b"])
    (fake / "apertium-upper").unlink()
    with pytest.raises(ModelError, match="make apertium"):
        Apertium("xxx-yyy").rewrite(["a"])
    assert Apertium("xxx-zzz").mark() == ""


@pytest.mark.parametrize("mode", ["/tmp/evil/x", "../../x", "eng-spa/../x", "", "eng", "eng-spa;ls"])
def test_a_direction_is_no_path(mode: str) -> None:
    with pytest.raises(ModelError, match="is no direction"):
        Apertium(mode)


def test_a_direction_starts_programs_of_apertium_alone(fake: Path) -> None:
    for program in ("touch", "/bin/lt-proc", "python3", "./apertium-tagger"):
        (fake / "modes" / "xxx-yyy.mode").write_text(f"apertium-upper 'an option' | {program} 'an option'")
        with pytest.raises(ModelError, match="no program of Apertium's"):
            Apertium("xxx-yyy").rewrite(["a"])
