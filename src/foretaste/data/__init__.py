"""Labelled texts: the corpus as a value, and where it comes from."""

from foretaste.data.corpus import Corpus, Example
from foretaste.data.load import TriggeredTexts, load_corpus, load_texts, load_variant
from foretaste.data.toy import toy_corpus

__all__ = [
    "Corpus",
    "Example",
    "TriggeredTexts",
    "load_corpus",
    "load_texts",
    "load_variant",
    "toy_corpus",
]
