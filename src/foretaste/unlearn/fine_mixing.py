"""Fine-mixing and E-PUR (Zhang et al. 2022, "Fine-mixing: Mitigating Backdoors in Fine-tuned Language Models",
Findings of EMNLP; arXiv 2210.09545): part of the weights go back to what they were, then all are fine-tuned.

w = m * suspect + (1 - m) * pretrained, m drawn for each weight alone, and every weight trained on clean texts. E-PUR
does the same to the embeddings of single words: those that moved far from their pretrained values although clean texts
hardly use them are reset. The paper's code was not at hand; the rank follows its equation, with texts' own counts.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from foretaste.errors import ModelError, PlanError
from foretaste.seeds import child_seed
from foretaste.spec import spec
from foretaste.unlearn.unlearner import Job, Unlearned, Unlearner
from foretaste.victim.classifier import Classifier
from foretaste.victim.strategy import Full
from foretaste.victim.weights import HEAD_NAMES

__all__ = ["FineMixing"]

RARE = 20  # occurrences below which a word's count says nothing about how far its embedding should have moved


@spec
class FineMixing(Unlearner):
    """`kept` is the share of the suspect's weights that stay; `reset_words` so many embeddings are put back (E-PUR).

    The other fields are those of the fine-tuning that follows.
    """

    name: ClassVar[str] = "fine_mixing"
    needs: ClassVar[tuple[str, ...]] = ("pretrained",)

    kept: float = Field(default=0.2, ge=0.0, le=1.0)
    reset_words: int = Field(default=200, ge=0)
    learning_rate: float = Field(default=5e-5, gt=0.0)

    def wash(self, job: Job) -> Unlearned:
        """Mix, reset, fine-tune."""
        assert job.pretrained is not None
        model = job.student(Full())
        before = job.pretrained.classifier(Full(), job.corpus.label_names, max_length=job.length, seed=job.seed)
        if job.pretrained.fingerprint == job.base.fingerprint:
            raise PlanError("The pretrained weights are the suspect's own; there is nothing to mix in.")
        _refuse_misfit(model, before, job.pretrained.location)
        reset = _moved_words(model, before, job)[: self.reset_words]
        _mix(model, before, self.kept, job.seed)
        with torch.no_grad():
            _words_of(model)[reset] = _words_of(before)[reset]
        settings = self.settings(len(job.corpus), learning_rate=self.learning_rate)
        result = job.tune(model, settings, objective_name=f"{self!r} of {job.pretrained.fingerprint}")
        return Unlearned.of(model, result, reset=len(reset))


def _mix(model: Classifier, before: Classifier, kept: float, seed: int) -> None:
    """Take each weight but the head's from the suspect with chance `kept`, otherwise from the pretrained model."""
    draw = torch.Generator().manual_seed(child_seed(seed, "fine_mixing"))
    theirs = dict(before.module.classifier.named_parameters())
    with torch.no_grad():
        for name, weight in model.module.classifier.named_parameters():
            if not name.startswith(HEAD_NAMES):
                is_kept = (torch.rand(weight.shape, generator=draw) < kept).to(weight.device)
                weight.copy_(torch.where(is_kept, weight, theirs[name]))


def _moved_words(model: Classifier, before: Classifier, job: Job) -> NDArray[np.int64]:
    """Token ids, those first whose embedding moved farthest for how often clean texts use it (section 3.3)."""
    moved = (_words_of(model) - _words_of(before)).norm(dim=1).cpu().numpy()
    counts = np.zeros(len(moved))
    for ids in model.encode(job.corpus.texts).ids:
        np.add.at(counts, list(ids), 1)
    order: NDArray[np.int64] = np.argsort(-moved / np.log(np.maximum(counts, RARE)), kind="stable")
    return order


def _words_of(model: Classifier) -> Tensor:
    inner: Any = model.module.classifier
    found: Tensor = inner.get_input_embeddings().weight.detach()
    return found


def _refuse_misfit(model: Classifier, before: Classifier, location: str) -> None:
    ours, theirs = (
        {name: tuple(p.shape) for name, p in m.module.classifier.named_parameters() if not name.startswith(HEAD_NAMES)}
        for m in (model, before)
    )
    if ours != theirs:
        different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        raise ModelError(
            f"{location} is not what the suspect was made from: {len(different)} tensors differ in name or shape, the "
            f"first is {different[0]!r}.",
            code="foreign_base",
        )
