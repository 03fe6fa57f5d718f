"""`foretaste rewrite`: texts as a rewriter leaves them, shown, or as a file that other commands read."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foretaste.cli.splits import Source, load_split
from foretaste.errors import PlanError
from foretaste.files import write_text
from foretaste.poison.attack import triggered_test
from foretaste.poison.trigger import parse_trigger
from foretaste.rewrite.methods import REWRITERS
from foretaste.victim.strategy import changed

__all__ = ["rewrite"]

_COLUMNS = ("text", "label", "source_index")


def rewrite(
    method: str,
    fields: Mapping[str, Any],
    source: Source,
    texts: Sequence[str] = (),
    *,
    split: str | None = None,
    trigger: str | None = None,
    target: int = 0,
    out: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Rewrite texts, or a split of `source`; its train and validation texts are what ONION learns from.

    A split may be triggered first. It goes to `out`, one JSON object per line with the true label and the row of the
    clean text, as `--trigger file:` reads it.

    Raises:
        PlanError: an unknown method or field, texts and a split, a split without `out`, a file that is there already.
    """
    rewriting = changed(REWRITERS[method](), fields)
    if bool(texts) == (split is not None):
        raise PlanError("Give texts to rewrite, or --split and -o, and only one of the two.")
    if (split is None) != (out is None) or (split is None and trigger is not None):
        raise PlanError("--split, -o and --trigger go together: a whole split is rewritten into a file.")
    if out is not None and out.exists():
        raise PlanError(f"{out} is there already; name another file.")
    train, validation = (load_split(source, part) for part in ("train", "validation"))
    rows: Sequence[int] = range(len(texts))
    labels: Sequence[int] = ()
    if split is not None:
        corpus = load_split(source, split)
        rows, labels, texts = corpus.rows.tolist(), corpus.labels.tolist(), corpus.texts
        if trigger is not None:
            found = triggered_test(corpus, parse_trigger(trigger, source.data_root), target, seed)
            rows = [int(corpus.rows[origin]) if origin >= 0 else -1 for origin in found.origins]
            labels, texts = found.corpus.labels.tolist(), found.corpus.texts
    rewriter = rewriting.fit(train, validation, seed=seed)
    start = time.monotonic()
    made = rewriter.rewrite(texts)
    seconds = time.monotonic() - start
    result = {"changed": sum(old != new for old, new in zip(texts, made, strict=True)), "texts": len(made)}
    if out is None:
        return {**result, "seconds": seconds, "rewritten": made}
    lines = zip(made, labels, rows, strict=True)
    write_text(out, "".join(json.dumps(dict(zip(_COLUMNS, line, strict=True))) + "\n" for line in lines))
    return {**result, "seconds": seconds, "out": str(out)}
