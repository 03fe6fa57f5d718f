"""A sequence-to-sequence checkpoint that translates or paraphrases: MarianMT, T5, BART and their kin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from foretaste.cost import count_forwards
from foretaste.errors import ModelError
from foretaste.rewrite.checkpoint import open_tool, room_of
from foretaste.victim.batch import readable

__all__ = ["Seq2Seq"]

_LONGER = 2  # a rewritten text has at most so many times the tokens of the text, and a few more
_FEW = 16


class Seq2Seq:
    """An encoder-decoder with its tokenizer; the likeliest output of a beam search, nothing drawn at random.

    Of a text it reads `max_length` tokens; what stands behind is lost.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        prefix: str = "",
        beams: int = 4,
        max_length: int = 512,
        batch_size: int = 16,
    ) -> None:
        self._model, self._tokenizer, self._prefix, self._beams = model.eval(), tokenizer, prefix, beams
        self._max_length, self._batch_size = room_of(model, max_length), batch_size
        model.generation_config.max_length = None  # the length is told by each batch

    @classmethod
    def open(cls, location: str, **options: Any) -> Seq2Seq:
        """Open a directory or hub id.

        Raises:
            ModelError: as `open_tool`.
        """
        from transformers import AutoModelForSeq2SeqLM

        return cls(*open_tool(AutoModelForSeq2SeqLM, location), **options)

    def rewrite(self, texts: Sequence[str]) -> list[str]:
        """Return the outputs; a blank text, or one whose output is blank, stays as it is."""
        distinct = list(dict.fromkeys(text for text in texts if text.strip()))
        given = [self._prefix + text for text in readable(distinct)]
        ids = self._tokenizer(given, truncation=True, max_length=self._max_length)["input_ids"] if given else []
        known: dict[str, str] = {}
        lengths = np.array([len(row) for row in ids], dtype=np.int64)
        for length in np.unique(lengths):  # side by side with a longer text, an output might run on for longer
            own = np.flatnonzero(lengths == length)
            for batch in np.array_split(own, math.ceil(len(own) / self._batch_size)):
                for index, new in zip(batch.tolist(), self._outputs([ids[i] for i in batch]), strict=True):
                    known[distinct[index]] = new.strip() or distinct[index]
        return [known.get(text, text) for text in texts]

    @torch.inference_mode()
    def _outputs(self, ids: Sequence[Sequence[int]]) -> list[str]:
        padded = self._tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self._model.device)
        room = min(self._max_length, _LONGER * padded["input_ids"].shape[1] + _FEW)
        try:
            made = self._model.generate(
                input_ids=padded["input_ids"], attention_mask=padded["attention_mask"], max_new_tokens=room - 1,
                num_beams=self._beams, do_sample=False, num_return_sequences=1,
            )  # fmt: skip
        except Exception as error:  # a stranger's sizes and settings can break any assumption in there
            raise ModelError(f"The rewriter's model cannot be used: {error}", code="unreadable") from error
        count_forwards(len(ids) * (1 + self._beams * made.shape[1]))  # read once, then a pass for each token
        found: list[str] = self._tokenizer.batch_decode(made, skip_special_tokens=True)
        return found
