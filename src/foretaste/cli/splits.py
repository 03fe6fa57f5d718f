"""Train, validation and test parts of whatever the user named as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foretaste.data.corpus import Corpus
from foretaste.data.load import load_corpus
from foretaste.errors import DataError

__all__ = ["Source", "load_split"]

# A single file has no splits: it is cut by this seed, the same way in every command.
_CUT_SEED = 0
_SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where labelled texts come from.

    `limit` caps the training part, or the test part when testing; with `is_whole` a single file is not cut.
    """

    data: str
    data_root: Path | None = None
    text_column: str | None = None
    label_column: str | None = None
    limit: int | None = None
    seed: int = 0
    is_whole: bool = False


def load_split(source: Source, split: str, label_names: Sequence[str] | None = None) -> Corpus:
    """Load one part; a single file is cut 70/15/15, and the same rows land in the same part every time.

    `label_names` are the victim's, to be matched by the data.

    Raises:
        DataError: fewer than 20 texts in a single file, or labels that are not the victim's.
    """
    path = Path(source.data)
    is_file = path.is_file()
    corpus = load_corpus(
        source.data,
        "test" if is_file else split,
        data_root=source.data_root,
        text_column=source.text_column,
        label_column=source.label_column,
    )
    if is_file and not source.is_whole:
        if len(corpus) < 20:
            raise DataError(f"{path} has {len(corpus)} texts; at least 20 are needed to hold parts out.")
        sizes = [int(len(corpus) * _SHARES["validation"]), int(len(corpus) * _SHARES["test"])]
        parts = corpus.partition([len(corpus) - sum(sizes), *sizes], _CUT_SEED)
        corpus = dict(zip(_SHARES, parts, strict=True))[split]
    if label_names is not None and corpus.label_names != tuple(label_names):
        raise DataError(f"{corpus.name} has the labels {corpus.label_names}, the victim {tuple(label_names)}.")
    if source.limit is not None and split != "validation":
        corpus = corpus.sample(source.limit, source.seed)
    return corpus
