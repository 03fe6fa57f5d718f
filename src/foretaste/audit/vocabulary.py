"""The words a search tries: every whole word that the checkpoint's own tokenizer knows as one token."""

from __future__ import annotations

from typing import Any

from foretaste.errors import ModelError

__all__ = ["SMALLEST_VOCABULARY", "vocabulary_words"]

SMALLEST_VOCABULARY = 50
# How tokenizers mark the start of a word: byte-level BPE, SentencePiece, WordPiece (whose other pieces carry ##).
_MARKS = ("Ġ", "▁")


def vocabulary_words(tokenizer: Any) -> list[str]:
    """Return the whole words of a vocabulary, sorted: letters, or letters and digits, of two characters or more.

    Raises:
        ModelError: fewer than 50 of them (code `no_words`): a vocabulary of bytes or pieces cannot be searched by word.
    """
    entries = [token for token in tokenizer.get_vocab() if isinstance(token, str)]
    marked = [token for token in entries if token.startswith(_MARKS)]
    found = {token[1:] for token in marked} if len(marked) > len(entries) // 10 else set(entries)
    words = sorted(
        word for word in found - set(tokenizer.all_special_tokens)
        if len(word) > 1 and word.isalnum() and not word.isdigit()
    )  # fmt: skip
    if len(words) < SMALLEST_VOCABULARY:
        raise ModelError(
            f"The tokenizer's vocabulary of {len(entries)} entries holds {len(words)} whole words; a search for "
            f"trigger words needs {SMALLEST_VOCABULARY}.",
            code="no_words",
        )
    return words
