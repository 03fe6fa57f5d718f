"""Texts that somebody already triggered, read from a file, or one per split, and laid beside the clean ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from foretaste.data.corpus import Corpus
from foretaste.data.table import SUFFIXES
from foretaste.errors import DataError, PlanError, UndefinedRateError
from foretaste.files import sha256_file
from foretaste.spec import spec

if TYPE_CHECKING:
    from foretaste.data.load import TriggeredTexts

__all__ = ["FileTrigger", "marks_of"]


@spec
class FileTrigger:
    """Texts that somebody already triggered (paraphrases, syntactic templates), read from a file.

    Parquet, JSONL, CSV or TSV with `text`, `label` (the TRUE class, never the attacker's target) and
    `source_index` (row of the clean text in its split); the last two may be missing or null.
    A directory holds one such file for each split, `DATA/SPLIT.jsonl` or `SPLIT.jsonl`.
    """

    path: Path
    mark: str = ""

    @property
    def name(self) -> str:
        """`file:PATH.parquet`."""
        return f"file:{self.path}"

    @property
    def key(self) -> str:
        """What it is, wherever the files lie, where `marked` said what is in them."""
        return f"file {self.mark}" if self.mark else self.name

    @property
    def is_one_file(self) -> bool:
        """Whether the texts are those of one split only."""
        return not self.path.is_dir()

    def covers(self, corpus_name: str) -> bool:
        """Say whether a directory holds the texts of a split, as in `sst2/test`."""
        return self._file(corpus_name) is not None

    def marked(self, *names: str) -> FileTrigger:
        """Return the trigger with a digest of the files of these splits, those that are there."""
        files = [path for name in names if (path := self._file(name)) is not None]
        return replace(self, mark=marks_of(files))

    def __str__(self) -> str:
        return self.name

    def apply(self, texts: Sequence[str], seed: int) -> list[str]:
        """Refuse: a file holds its own texts and cannot trigger others.

        Raises:
            PlanError: always.
        """
        raise PlanError(f"{self.name} holds finished texts and cannot trigger others; use word: or sentence: here.")

    def texts_for(self, corpus: Corpus, *, is_equal_kept: bool = False) -> dict[int, str]:
        """Return the triggered text for each index of `corpus` that the file has one for (the first counts).

        A text equal to its clean text is left out unless `is_equal_kept`: paraphrasers that fail give their input back
        (so do HiddenKiller's and OpenBackdoor's, which then label it poisoned).

        Raises:
            DataError: the file cannot be read, is not the one that was marked, or has a label that contradicts the
                clean row's.
        """
        variant, path = self._read(corpus)
        origins, _, _ = self._align(variant, path, corpus)
        found: dict[int, str] = {}
        for text, origin in zip(variant.texts, origins.tolist(), strict=True):
            if origin >= 0 and (is_equal_kept or text != corpus.texts[origin]):
                found.setdefault(origin, text)
        return found

    def triggered_corpus(
        self, clean: Corpus, target: int | None, *, is_equal_kept: bool | None = None
    ) -> tuple[Corpus, NDArray[np.int64]]:
        """Return the file's rows whose true class is not the target, and their `(M,) int64` origins.

        An origin is an index into `clean`, -1 where the file does not say. Rows that stem from a clean row
        outside `clean` (a sample, say) are left out; with target None no class is. The result is named after the
        file, its `rows` are row numbers in the file. Unless `is_equal_kept`, texts equal to their clean text are left
        out: they could not be rewritten. A single file may hold what a defence made of triggered texts, and keeps them
        by default; a directory does not.

        Raises:
            DataError: an unknown true class, a label that contradicts the clean row's, no row left.
        """
        variant, path = self._read(clean)
        origins, is_elsewhere, labels = self._align(variant, path, clean)
        unknown = np.flatnonzero((labels < 0) & ~is_elsewhere)
        if unknown.size:
            raise DataError(
                f"{path}, row {unknown[0]}, has neither label nor source_index, so its true class is "
                f"unknown ({unknown.size} such rows). Add one of them or leave these rows out."
            )
        is_home = np.zeros(len(labels), dtype=np.bool_) if target is None else labels == target
        is_kept = ~is_home & ~is_elsewhere
        if not (self.is_one_file if is_equal_kept is None else is_equal_kept):
            pairs = zip(variant.texts, origins.tolist(), strict=True)
            is_kept &= np.array([origin < 0 or text != clean.texts[origin] for text, origin in pairs], dtype=np.bool_)
        kept = np.flatnonzero(is_kept)
        if not kept.size:
            what = f"that stems from {clean.name}" if target is None else f"of a class other than the target {target}"
            raise UndefinedRateError(f"{path} has no row {what}.")
        texts = tuple(variant.texts[i] for i in kept)
        return Corpus(path.name, texts, labels[kept], clean.label_names, kept), origins[kept]

    def _read(self, corpus: Corpus) -> tuple[TriggeredTexts, Path]:
        from foretaste.data.load import load_variant

        path = self._file(corpus.name)
        if path is None:
            raise DataError(f"{self.path} holds no triggered texts of {corpus.name}, as {corpus.name}.jsonl, say.")
        found = load_variant(path)
        if self.mark and marks_of([path]) not in self.mark.split():
            raise DataError(f"{path} is not the file that was there when it was marked.")
        return found, path

    def _file(self, corpus_name: str) -> Path | None:
        """The file; in a directory the first that is called as the split is, None if none is."""
        if self.is_one_file:
            return self.path
        *data, split = Path(corpus_name).parts[-2:]  # data that are a directory are called as that
        places = [self.path.joinpath(*data, split), self.path / split]
        named = (place.with_name(place.name + suffix) for place in places for suffix in SUFFIXES)
        return next((path for path in named if path.is_file()), None)

    @staticmethod
    def _align(
        variant: TriggeredTexts, path: Path, clean: Corpus
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
        """Return per file row: index into `clean` or -1; has its clean row elsewhere; true class or -1."""
        size = len(variant.texts)
        sources = np.full(size, -1, dtype=np.int64) if variant.source_rows is None else variant.source_rows
        labels = np.full(size, -1, dtype=np.int64) if variant.labels is None else variant.labels
        index_of_row = {row: index for index, row in enumerate(clean.rows.tolist())}
        origins = np.array([index_of_row.get(row, -1) for row in sources.tolist()], dtype=np.int64)
        is_elsewhere = (sources >= 0) & (origins < 0)
        truth = np.where(origins >= 0, clean.labels[origins], -1)
        wrong = np.flatnonzero((truth >= 0) & (labels >= 0) & (truth != labels))
        if wrong.size:
            first = int(wrong[0])
            raise DataError(
                f"{path}, row {first}, has label {labels[first]}, but its clean text "
                f"{clean.name}:{sources[first]} has {truth[first]} ({wrong.size} such rows). `label` must be "
                f"the true class, and `source_index` must point into {clean.name}."
            )
        return origins, is_elsewhere, np.where(truth >= 0, truth, labels)


def marks_of(files: Iterable[Path]) -> str:
    """Return a digest of each file's content, with blanks between."""
    return " ".join(sha256_file(path)[:16] for path in files)
