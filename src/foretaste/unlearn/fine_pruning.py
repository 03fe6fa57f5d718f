"""Fine-pruning (Liu et al. 2018, arXiv 1805.12185): neurons that clean texts leave asleep are cut, the rest fine-tuned.

The neurons are those between the two sides of every feed-forward block, ranked by their mean absolute activation over
the real tokens of clean texts, layer by layer as in the paper's own last layer. With `expose` the ranks come from how
much a neuron sleeps *after* the model was made to forget its task (EBYD, arXiv 2410.19427): what is still awake
then does not serve the task, and is cut first.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from foretaste.spec import spec
from foretaste.tune.expose import Expose, exposing
from foretaste.unlearn.unlearner import Job, Unlearned, Unlearner
from foretaste.victim.batch import pad, scoring_batches
from foretaste.victim.classifier import Classifier, Precision, autocast
from foretaste.victim.strategy import Full

__all__ = ["FinePruning"]


@spec
class FinePruning(Unlearner):
    """`share` of each layer's neurons is cut before the fine-tuning, which may not wake them again."""

    name: ClassVar[str] = "fine_pruning"

    share: float = Field(default=0.5, ge=0.0, lt=1.0)
    expose: Expose | None = None
    expose_steps: int = Field(default=40, gt=0)
    epochs: int = Field(default=2, gt=0)
    learning_rate: float = Field(default=5e-5, gt=0.0)

    @property
    def stages(self) -> tuple[str, ...]:
        """The exposing, if asked for, and the fine-tuning."""
        return ("",) if self.expose is None else ("expose", "")

    def wash(self, job: Job) -> Unlearned:
        """Rank, cut, fine-tune."""
        model = job.student(Full())
        awake = _activity(model, job, self.precision)
        if self.expose is not None:
            exposed = job.student(Full())
            exposed.module.head.requires_grad_(False)
            corpus, objective = exposing(job.corpus, self.expose, job.seed)
            settings = self.settings(len(corpus), max_steps=self.expose_steps, learning_rate=self.learning_rate)
            job.tune(exposed, settings, corpus=corpus, objective=objective, objective_name=self.expose, stage="expose")
            after = _activity(exposed, job, self.precision)
            awake = {name: own / after[name].clamp(min=1e-12) for name, own in awake.items()}
        cut = {name: own.argsort()[: round(self.share * len(own))] for name, own in awake.items()}
        kept = _cut(model, cut)
        settings = self.settings(len(job.corpus), learning_rate=self.learning_rate)
        try:
            result = job.tune(model, settings, objective_name=repr(self))
        finally:
            for handle in kept:
                handle.remove()
        neurons, gone = (sum(map(len, each.values())) for each in (awake, cut))
        return Unlearned.of(model, result, neurons=neurons, cut=gone)


def _narrows(model: Classifier) -> dict[str, Any]:
    """The linear layers that lead back from a feed-forward block's neurons, by name."""
    inner = model.module.classifier
    ending = f".{model.module.family.narrows}"
    return {
        name: part
        for name, part in inner.named_modules()
        if name.endswith(ending) and f".{model.module.family.attention}." not in name
    }


def _activity(model: Classifier, job: Job, precision: Precision) -> dict[str, Tensor]:
    """Mean absolute activation of every neuron over the real tokens of the clean texts, `(neurons,)` per layer."""
    layers = _narrows(model)
    sums = dict.fromkeys(layers, torch.zeros(()))
    mask: list[Tensor] = []
    handles = []

    def note(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            own = inputs[0].float().abs()  # (B, T, neurons)
            sums[name] = sums[name] + (own * mask[0].unsqueeze(2)).sum(dim=(0, 1))

        return hook

    encoded, device = model.encode(job.corpus.texts), model.module.device
    total = 0
    try:
        handles = [layer.register_forward_pre_hook(note(name)) for name, layer in layers.items()]
        with model.module.showing_tokens(), torch.inference_mode(), autocast(device, precision):
            for batch in scoring_batches(encoded.lengths, 64):
                ids, own_mask = pad([encoded.ids[i] for i in batch], device)
                mask[:] = [own_mask]
                model.module(ids, own_mask)
                total += int(own_mask.sum())
    finally:
        for handle in handles:
            handle.remove()
    return {name: (own / total).clone() for name, own in sums.items()}


def _cut(model: Classifier, cut: dict[str, Tensor]) -> list[Any]:
    """Take away what the cut neurons contribute, and the gradients that would give it back; return the hooks."""
    handles = []
    for name, layer in _narrows(model).items():
        # a Linear's weight is (outputs, neurons), that of GPT-2's Conv1D (neurons, outputs)
        keep = torch.ones_like(layer.weight)
        if isinstance(layer, Conv1D):
            keep[cut[name]] = 0.0
        else:
            keep[:, cut[name]] = 0.0
        with torch.no_grad():
            layer.weight.mul_(keep)
        handles.append(layer.weight.register_hook(lambda gradient, keep=keep: gradient * keep))
    return handles
