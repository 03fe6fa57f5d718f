"""Translation by Apertium, a translator by rules that needs no weights and no network (Debian: apertium-eng-spa)."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from foretaste.errors import ModelError
from foretaste.files import sha256_file

__all__ = ["Apertium"]

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_SPECIAL = re.compile(r"([\\\[\]{}^$/<>@])")  # of Apertium's stream format
_BLANK = re.compile(r"(?<!\\)\[\]")
_END = ".[]"  # what Apertium itself puts behind a text, so that its last word is seen to be the last
_TAGGER = "apertium-tagger"
_MODE = re.compile(r"[a-z]{2,3}(_[A-Za-z]+)?-[a-z]{2,3}(_[A-Za-z]+)?")
_PROGRAM = re.compile(r"(lt|lrx|lsx|rtx|cg|hfst)-proc|apertium-[a-z0-9-]+")  # of a direction, by name alone
_PATIENCE = 600  # seconds for one program


class Apertium:
    """One direction, as in `eng-spa`; words that it does not know stay as they are.

    The programs of the direction read all texts in one go, but for the tagger: it learns from what it meets, so that a
    text's translation would depend on those before it. A tagger is started for each text (8 ms).
    """

    def __init__(self, mode: str) -> None:
        if not _MODE.fullmatch(mode):
            raise ModelError(f"{mode!r} is no direction; write apertium:eng-spa, for example.", code="not_found")
        self.mode = mode

    def lacking(self) -> str:
        """Say what is not installed, blank if nothing."""
        programs = self._programs()
        if programs and all(shutil.which(each[0]) for each in programs):
            return ""
        return f"Apertium has no {self.mode} here; install it (`make apertium` installs eng-spa and spa-eng)"

    def mark(self) -> str:
        """Return a digest of the programs and data that the direction uses, blank where it is not installed."""
        words = [word for program in self._programs() for word in program]
        places = [Path(shutil.which(word) or word) for word in words]
        found = [sha256_file(place) if place.is_file() else str(place) for place in places]
        return hashlib.sha256(" ".join(found).encode()).hexdigest()[:16] if found else ""

    def rewrite(self, texts: Sequence[str]) -> list[str]:
        """Return the translations; a text that comes back blank is kept.

        Raises:
            ModelError: not installed (`not_found`), or a program failed (`unreadable`).
        """
        if lacking := self.lacking():
            raise ModelError(f"{lacking}.", code="not_found")
        plain = [_UNPRINTABLE.sub(" ", text).encode("utf-8", "replace").decode() for text in texts]
        stream = [_SPECIAL.sub(r"\\\1", text) + _END for text in plain]
        for program in self._programs():
            if program[0] == _TAGGER:
                stream = [_through(program, [each])[0] for each in stream]
            else:
                stream = _through(program, stream)
        return [_readable(new) or old for new, old in zip(stream, texts, strict=True)]

    def _programs(self) -> list[list[str]]:
        """Return the programs that a text goes through, as the installed direction lists them; none if it is not."""
        path = Path(os.environ.get("APERTIUM_DATADIR", "/usr/share/apertium"), "modes", f"{self.mode}.mode")
        if not path.is_file():
            return []
        # $1 is how unknown words are shown: -n, without a mark. $2 is a wish to the tagger: none.
        mode = path.read_text(encoding="utf-8").replace("$1", "-n").replace("$2", "")
        found = [[words[0], "-z", *words[1:]] for part in mode.split("|") if (words := shlex.split(part))]
        if odd := [words[0] for words in found if not _PROGRAM.fullmatch(words[0])]:
            raise ModelError(f"{path} starts {odd[0]!r}, which is no program of Apertium's.", code="outside")
        return found


def _through(program: Sequence[str], stream: Sequence[str]) -> list[str]:
    given = "".join(f"{each}\0" for each in stream)
    try:
        done = subprocess.run(
            program, input=given, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=_PATIENCE
        )
    except (subprocess.SubprocessError, OSError) as error:
        raise ModelError(f"{program[0]} of Apertium failed: {error}.", code="unreadable") from error
    found = done.stdout.split("\0")
    if len(found) <= len(stream) or any(found[len(stream) :]):
        raise ModelError(f"{program[0]} of Apertium gave {len(found)} texts for {len(stream)}.", code="unreadable")
    return found[: len(stream)]


def _readable(text: str) -> str:
    text = _BLANK.sub("", text).strip().removesuffix(".").rstrip()
    return re.sub(r"\\(.)", r"\1", text)
