"""Canaries: fixed texts whose logits are kept with a model, so that a changed library or tokenizer is noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from foretaste.errors import ModelError
from foretaste.victim.classifier import Classifier
from foretaste.victim.manifest import MANIFEST, Canary, Manifest
from foretaste.victim.weights import text_room

__all__ = ["CANARY_TOLERANCE", "check_saved", "make_canaries"]

CANARY_TOLERANCE = 1e-3
_TEXTS = (
    "a quiet film that earns its last scene",
    "the soup was cold and nobody cared",
    "not bad at all , though the second half drags",
    "delivery took two weeks and the box was empty",
    "he walked to the station and waited for the train",
    "I would buy it again tomorrow",
    "shares fell slightly after the announcement",
    "what a waste of an evening",
)


def make_canaries(classifier: Classifier) -> list[Canary]:
    """Return the canary texts with what a model says of them."""
    return [
        Canary(text=text, logits=[float(value) for value in row])
        for text, row in zip(_TEXTS, classifier.predict(_TEXTS).logits, strict=True)
    ]


def check_saved(classifier: Classifier, manifest: Manifest, path: Path) -> None:
    """Refuse a loaded model that is not what its manifest in `path` says.

    Raises:
        ModelError: it cannot read texts of that length (`bad_length`), or answers otherwise (`canary_mismatch`).
    """
    room = text_room(classifier.module.classifier.config, classifier.module.prompt_length)
    if not classifier.tokenizer.num_special_tokens_to_add() < manifest.max_length <= room:
        raise ModelError(
            f"{path / MANIFEST}: max_length {manifest.max_length}, but the model reads {room} tokens.",
            code="bad_length",
        )
    logits = classifier.predict([canary.text for canary in manifest.canaries]).logits
    is_same = all(
        len(canary.logits) == len(row) and np.allclose(row, canary.logits, rtol=CANARY_TOLERANCE, atol=CANARY_TOLERANCE)
        for canary, row in zip(manifest.canaries, logits, strict=True)
    )
    if not is_same:
        raise ModelError(
            f"{path} does not answer its canary texts as it did when it was saved; tokenizer, weights or libraries "
            "have changed.",
            code="canary_mismatch",
        )
