"""Rewritten test texts that lie beside the named sets: what the PSIM authors' own tools made of theirs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, Never

from foretaste.data.corpus import Corpus
from foretaste.errors import DataError, PlanError
from foretaste.poison.file_trigger import FileTrigger, marks_of
from foretaste.rewrite.rewriter import Rewriting
from foretaste.spec import spec

__all__ = ["StoredRewriting"]

_SETS = ("sst2", "cr", "cola")
_TRIGGER, _TARGET = "word:mn", 0
_MOST_LACKING = 0.05  # of the texts asked for


@spec
class StoredRewriting(Rewriting):
    """`tool` "backtranslated" (English-German-English) or "scpd" (SCPN), of the test texts of SST-2, CR and CoLA.

    They are stored for clean texts and for those with the word mn, put in where the authors put it, not where we do.
    """

    name: ClassVar[str] = "stored"

    tool: Literal["backtranslated", "scpd"]
    root: Path | None = None
    mark: str = ""

    @property
    def key(self) -> str:
        """What it is, wherever the files lie; `at_home` says what is in them."""
        return f"{self.name} {self.tool} {self.mark}".strip()

    def covers(self, data: str, trigger: str | None, target: int | None = _TARGET) -> bool:
        """Say whether test texts of a set are stored, clean (None) or with a trigger that leads to this target."""
        return data in _SETS and trigger in (None, _TRIGGER) and (trigger is None or target == _TARGET)

    def lacking(self) -> str:
        """Say so where nobody told where the named sets lie."""
        return "" if self._home() else "no stored paraphrases: name their directory with --data-root or FORETASTE_DATA"

    def lacking_of(self, data: str, trigger: str | None) -> str:
        """Say so, too, where the file of this set and trigger is not there."""
        path = self._path(data, trigger)
        return self.lacking() or ("" if path.is_file() else f"no file {path}")

    def at_home(self, root: Path | None, data: str) -> StoredRewriting:
        """Return the same for files under `root`, with a digest of those of this set."""
        own = replace(self, root=root or self.root)
        files = [path for trigger in (None, _TRIGGER) if (path := own._path(data, trigger)).is_file()]
        return replace(own, mark=marks_of(files))

    def texts_of(self, clean: Corpus, rows: Sequence[int], texts: Sequence[str], trigger: str | None) -> list[str]:
        """Return what is stored for rows of a test split, and the text as it is where nothing is.

        A stored text may well be the clean one: there the tool took the trigger out.

        Raises:
            DataError: nothing is stored for this set and trigger, or for too many of the rows; a file that cannot be
                read.
        """
        data = clean.name.split("/")[0]
        if clean.name != f"{data}/test" or not self.covers(data, trigger):
            raise DataError(f"No {self.tool} texts of {clean.name} with {trigger or 'no trigger'} are stored.")
        found = FileTrigger(path=self._path(data, trigger), mark=self.mark).texts_for(clean, is_equal_kept=True)
        lacking = sum(row not in found for row in rows)
        if lacking > _MOST_LACKING * len(rows):
            raise DataError(
                f"{self._path(data, trigger).name} lacks {lacking} of the {len(rows)} texts of {clean.name}."
            )
        return [found.get(row, text) for row, text in zip(rows, texts, strict=True)]

    def fit(self, corpus: Corpus, validation: Corpus, *, seed: int = 0) -> Never:
        """Refuse: finished texts cannot rewrite others.

        Raises:
            PlanError: always.
        """
        raise PlanError("Stored paraphrases cannot rewrite other texts; take back_translation, scpd or onion here.")

    def _home(self) -> Path | None:
        home = self.root or os.environ.get("FORETASTE_DATA")
        return Path(home) if home else None

    def _path(self, data: str, trigger: str | None) -> Path:
        home = self._home() or Path()
        return home / data / "variants" / f"{'badnet_' if trigger else ''}{self.tool}_test.parquet"
