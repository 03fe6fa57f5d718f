"""What models answered, kept on disk, so that a search that was killed asks no question twice."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from foretaste.errors import PlanError
from foretaste.victim.classifier import Classifier

__all__ = ["Memory", "forget", "refuse_foreign_memory"]

Array = NDArray[np.float64]
_NAME = re.compile(r"[.]?[0-9a-f]{40}[.]safetensors.*")
FORM = "2"  # another one whenever the same question would get another answer


class Memory:
    """Answers by question: a file's name is the hash of the model's weights and of all that was asked of it.

    What other weights, other texts or another seed would answer is therefore never taken up. Without a directory
    nothing is kept.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._weights: dict[int, tuple[Classifier, str]] = {}

    def recall(
        self, classifier: Classifier, question: Sequence[str], shape: tuple[int, ...], answer: Callable[[], Array]
    ) -> Array:
        """Return what the model answered before, an array of this shape, or ask it and keep the answer.

        Raises:
            PlanError: a file that cannot be read or written, or holds something else.
        """
        if self.path is None:
            return answer()
        state = hashlib.sha256()
        for part in (FORM, self._digest(classifier), *question):
            encoded = part.encode("utf-8", "surrogatepass")
            state.update(len(encoded).to_bytes(8, "big") + encoded)
        file = self.path / f"{state.hexdigest()[:40]}.safetensors"
        try:
            if file.exists():
                kept: Array = load_file(file)["answer"]
                if kept.shape != shape or kept.dtype != np.float64:
                    raise KeyError(f"an array of shape {shape}, not {kept.shape}")
                return kept
            found = answer()
            self.path.mkdir(parents=True, exist_ok=True)
            handle, beside = tempfile.mkstemp(dir=self.path, prefix=f".{file.name}.")
            os.close(handle)
            save_file({"answer": np.ascontiguousarray(found)}, beside)
            os.replace(beside, file)
        except (OSError, SafetensorError, KeyError) as error:
            raise PlanError(f"Cannot keep or read an answer in {file}: {error}. Delete it, or make room.") from error
        return found

    def _digest(self, classifier: Classifier) -> str:
        # The classifier is held as well: a number that was freed may be given to another one.
        if id(classifier) not in self._weights:
            state = hashlib.sha256(f"{classifier.max_length} {classifier.label_names}".encode())
            state.update(classifier.tokenizer.backend_tokenizer.to_str().encode("utf-8", "surrogatepass"))
            for name, tensor in sorted({**dict(classifier.module.named_parameters()),
                                        **dict(classifier.module.named_buffers())}.items()):  # fmt: skip
                state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            self._weights[id(classifier)] = (classifier, state.hexdigest())
        return self._weights[id(classifier)][1]


def refuse_foreign_memory(path: Path) -> None:
    """Raise PlanError if a directory holds anything but answers: it will be deleted."""
    others = [entry for entry in path.iterdir() if not _NAME.fullmatch(entry.name)] if path.is_dir() else []
    if others or path.is_file():
        raise PlanError(f"{others[0] if others else path} was not written by an audit; choose another directory.")


def forget(path: Path) -> None:
    """Delete the answers kept in a directory, and it."""
    if path.is_dir():
        for entry in path.iterdir():
            if _NAME.fullmatch(entry.name):
                entry.unlink(missing_ok=True)
        with suppress(OSError):  # something else came in meanwhile
            path.rmdir()
