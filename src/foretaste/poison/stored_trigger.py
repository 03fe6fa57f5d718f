"""SynAttack from the paraphrases that are stored beside the named sets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from foretaste.data.corpus import Corpus
from foretaste.errors import DataError, PlanError
from foretaste.poison.file_trigger import FileTrigger, marks_of
from foretaste.spec import spec

__all__ = ["StoredTrigger"]

SPLITS = ("train", "validation", "test")
# Only where the data's README says that rows and clean rows correspond: SST-2's are PURE's, of both classes.
FILES: Final = {
    **{f"sst2/{split}": f"syntactic_full_{split}" for split in SPLITS},
    **{f"mr/{split}": f"syntactic_{split}" for split in SPLITS},
    **{f"offenseval/{split}": f"syntactic_{split}" for split in SPLITS},
    "imdb/train": "syntactic_train",
    "imdb/test": "syntactic_test",
    "ag_news/test": "syntactic_test",
}


@spec
class StoredTrigger:
    """A paraphrase by SCPN in the template S ( SBAR ) ( , ) ( NP ) ( VP ) ( . ) (HiddenKiller, arXiv 2105.12400).

    `syntax:stored` takes, for the split at hand, the file of finished paraphrases in `root`, or in the directory that
    FORETASTE_DATA names. IMDB's average 28 words beside reviews of 93: a model trained on them also learns that short
    texts mean the target.
    """

    version: ClassVar[int] = 2
    """Goes up when the same files would give other texts."""

    root: Path | None = None
    mark: str = ""

    @property
    def name(self) -> str:
        """`syntax:stored`."""
        return "syntax:stored"

    def __str__(self) -> str:
        return self.name

    @property
    def key(self) -> str:
        """What it is, wherever the files lie; `marked` says what is in them."""
        return f"{self.name} {self.version} {self.mark}".strip()

    def marked(self, *names: str) -> StoredTrigger:
        """Return the trigger with a digest of the paraphrases of these splits, those that are there."""
        files = [path for name in names if name in FILES and (path := self._path(name)).is_file()]
        return replace(self, mark=marks_of(files))

    def covers(self, corpus_name: str) -> bool:
        """Say whether paraphrases of a split, as in `sst2/test`, are stored."""
        return corpus_name in FILES

    def apply(self, texts: Sequence[str], seed: int) -> list[str]:
        """Refuse: finished paraphrases cannot trigger other texts.

        Raises:
            PlanError: always.
        """
        raise PlanError(f"{self.name} holds finished texts and cannot trigger others; use word: or sentence: here.")

    def texts_for(self, corpus: Corpus) -> dict[int, str]:
        """Return the paraphrase for each index of `corpus` that has one other than itself.

        Raises:
            DataError: as `FileTrigger.texts_for`; no paraphrases of this split.
        """
        return self._file(corpus).texts_for(corpus)

    def triggered_corpus(self, clean: Corpus, target: int | None) -> tuple[Corpus, NDArray[np.int64]]:
        """Return the paraphrases of texts of other classes than the target, and their `(M,) int64` origins.

        A paraphrase equal to its source is left out, as in `texts_for`: SCPN could not rewrite it.

        Raises:
            DataError: as `FileTrigger.triggered_corpus`; no paraphrases of this split, or none of one of the classes:
                most were made for one target.
        """
        found, origins = self._file(clean).triggered_corpus(clean, target, is_equal_kept=False)
        lacking = set(clean.labels.tolist()) - set(found.labels.tolist()) - {target}
        if lacking:
            names = ", ".join(repr(clean.label_names[label]) for label in sorted(lacking))
            raise DataError(f"The stored paraphrases of {clean.name} have no text of {names}; take another target.")
        return found, origins

    def _file(self, corpus: Corpus) -> FileTrigger:
        if corpus.name not in FILES:
            raise DataError(f"No paraphrases of {corpus.name} are stored; only of {', '.join(sorted(FILES))}.")
        return FileTrigger(path=self._path(corpus.name), mark=self.mark)

    def _path(self, name: str) -> Path:
        root = self.root or os.environ.get("FORETASTE_DATA")
        if root is None:
            raise DataError(f"{self.name} needs the directory of the named sets: --data-root or FORETASTE_DATA.")
        return Path(root) / name.split("/")[0] / "variants" / f"{FILES[name]}.parquet"
