"""The named sets: what their classes are called and where the public copies lie on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from foretaste.data.corpus import Corpus
from foretaste.errors import DataError
from foretaste.spec import Registry

__all__ = ["NAMED_SETS", "HubReader", "NamedSet", "load_from_hub"]

_REACH_TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class NamedSet:
    """A public set on the hub; `validation=None` means that `held_out` texts of train serve as validation."""

    hub_id: str
    label_names: tuple[str, ...]
    subset: str | None = None
    text_column: str = "text"
    label_column: str = "label"
    validation: str | None = None
    test: str = "test"
    held_out: int = 0


_SENTIMENT = ("negative", "positive")

NAMED_SETS: Registry[NamedSet] = Registry(
    "data set",
    {
        # The hub's test labels are all -1 (GLUE hides them), so its validation split serves as test. Its train
        # split holds phrases, not only sentences: held-out phrases may be parts of training sentences.
        "sst2": NamedSet(
            hub_id="stanfordnlp/sst2",
            label_names=_SENTIMENT,
            text_column="sentence",
            test="validation",
            held_out=872,
        ),
        "cr": NamedSet(hub_id="SetFit/CR", label_names=_SENTIMENT, held_out=340),
        "cola": NamedSet(  # hidden test labels, as in sst2
            hub_id="nyu-mll/glue",
            subset="cola",
            label_names=("unacceptable", "acceptable"),
            text_column="sentence",
            test="validation",
            held_out=1_000,
        ),
        "imdb": NamedSet(hub_id="stanfordnlp/imdb", label_names=_SENTIMENT, held_out=1_000),
        "mr": NamedSet(
            hub_id="cornell-movie-review-data/rotten_tomatoes",
            label_names=_SENTIMENT,
            validation="validation",
        ),
        "ag_news": NamedSet(
            hub_id="fancyzhx/ag_news",
            label_names=("World", "Sports", "Business", "Sci/Tech"),
            held_out=5_000,
        ),
        "offenseval": NamedSet(
            hub_id="cardiffnlp/tweet_eval",
            subset="offensive",
            label_names=("not offensive", "offensive"),
            validation="validation",
        ),
    },
)

HubReader = Callable[[str, str | None, str, Sequence[str]], list[list[object]]]
"""(hub id, subset, split, columns) -> those columns; the seam that tests use in place of the network."""


def load_from_hub(
    name: str,
    split: str,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    read: HubReader | None = None,
) -> Corpus:
    """Load a split of a named set from the hub (or its cache), stripped, without blank texts.

    Where the hub has no labelled split for validation, the same `held_out` texts of train are always drawn
    for it, and train goes without them.

    Raises:
        DataError: the hub cannot be reached and its cache lacks the set, or a column is not there.
    """
    known = NAMED_SETS[name]
    hub_split = {"train": "train", "validation": known.validation or "train", "test": known.test}[split]
    columns = (text_column or known.text_column, label_column or known.label_column)
    texts, labels = (read or read_hub)(known.hub_id, known.subset, hub_split, columns)
    stripped = [str(text).strip() for text in texts]
    kept = [i for i, text in enumerate(stripped) if text]
    corpus = Corpus.of(
        f"{name}/{hub_split}",
        [stripped[i] for i in kept],
        np.asarray([labels[i] for i in kept], dtype=np.int64),
        known.label_names,
    )
    if hub_split == "train" and known.validation is None:
        held_out, rest = corpus.partition([known.held_out, len(corpus) - known.held_out], seed=0)
        corpus = held_out if split == "validation" else rest
    return Corpus.of(f"{name}/{split}", corpus.texts, corpus.labels, corpus.label_names)


def read_hub(hub_id: str, subset: str | None, split: str, columns: Sequence[str]) -> list[list[object]]:
    """Read columns of a hub set with `datasets`; without a network only its cache is asked, at once.

    Raises:
        DataError: neither the hub nor its cache has it; the message gives the reason in one line.
    """
    import datasets  # loaded here: nothing else needs it, and it takes half a second
    import huggingface_hub

    # `load_dataset` retries an unreachable hub for 24 s, so one short request comes first; if it fails,
    # `datasets` works offline for this call and finds the set if it was downloaded before.
    was_offline = datasets.config.HF_HUB_OFFLINE
    reason = ""
    try:
        huggingface_hub.HfApi().dataset_info(hub_id, timeout=_REACH_TIMEOUT_S)
    except Exception as error:  # the HTTP library and its exceptions change between releases
        reason = _first_line(error)
        datasets.config.HF_HUB_OFFLINE = True
    try:
        table = datasets.load_dataset(hub_id, subset, split=split)
    except Exception as error:  # as above, and those of its readers; chained, never dropped
        raise DataError(reason or _first_line(error)) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise DataError(f"no column {missing[0]!r}, only {', '.join(table.column_names)}")
    return [list(table[column]) for column in columns]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
