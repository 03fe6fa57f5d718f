"""Obliviate (Kim et al. 2024, arXiv 2409.14119): adapters that drown the backdoor and do not look at the trigger.

Clean fine-tuning with two terms more: the adapter's tensors are rewarded for being long, so that what it learns from
clean texts outweighs the frozen weights, and the attention that the head's token pays is kept flat, so that no single
token, such as a trigger, gets all of it: CE - amplify * sum ||W|| + flatten * mean ||attention row||.

As printed, the reward has no bound; here a tensor's length counts up to `longest` times its length at the start (of
LoRA's second factor, which starts at zero, of the first's).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from foretaste.errors import PlanError
from foretaste.spec import spec
from foretaste.tune.loop import Objective
from foretaste.unlearn.unlearner import Job, Unlearned, Unlearner
from foretaste.victim.classifier import Classifier
from foretaste.victim.module import Output, TextModule
from foretaste.victim.strategy import Full, Lora, Strategy
from foretaste.victim.weights import HEAD_NAMES

__all__ = ["Obliviate"]


@spec
class Obliviate(Unlearner):
    """Weights of the two terms are those of the published LoRA runs; `strategy` may be any but full."""

    name: ClassVar[str] = "obliviate"

    amplify: float = Field(default=1e-3, ge=0.0)
    flatten: float = Field(default=1e-2, ge=0.0)
    longest: float = Field(default=10.0, ge=1.0)
    strategy: Strategy = Lora(rank=16, alpha=16, dropout=0.01, learning_rate=5e-4)
    epochs: int = Field(default=10, gt=0)
    batch_size: int = Field(default=16, gt=0)

    def __post_init__(self) -> None:
        if self.strategy.name == Full.name:
            raise PlanError("Obliviate makes an adapter louder than what it stands on; full has none.")

    def wash(self, job: Job) -> Unlearned:
        """Train, with attention worked out in the open."""
        model = job.student(self.strategy)
        with _rows_of_attention(model.module) as rows:
            result = job.tune(
                model,
                self.settings(len(job.corpus)),
                objective=_objective(_adapter(model), rows, self.amplify, self.flatten, self.longest),
                objective_name=repr(self),
            )
        return Unlearned.of(model, result)


def _adapter(model: Classifier) -> dict[str, Tensor]:
    heads = tuple(f".{name}" for name in HEAD_NAMES)
    return {name: p for name, p in model.trainable.items() if not any(head in f".{name}" for head in heads)}


def _objective(
    adapter: dict[str, Tensor], rows: list[Tensor], amplify: float, flatten: float, longest: float
) -> Objective:
    starts = {name: float(p.detach().norm()) for name, p in adapter.items()}
    usual = float(np.median([length for length in starts.values() if length > 0]))
    caps = {name: longest * (length or usual) for name, length in starts.items()}

    def objective(output: Output, _: NDArray[np.int64], labels: Tensor) -> Tensor:
        losses = functional.cross_entropy(output.logits, labels, reduction="none")
        long = torch.stack([p.norm().clamp(max=caps[name]) for name, p in adapter.items()]).sum()
        # (layers of (B, heads, T)) -> (B,)
        looks = torch.stack([row.float().norm(dim=-1).mean(dim=1) for row in rows]).mean(dim=0)
        rows.clear()
        return losses - amplify * long + flatten * looks

    return objective


@contextmanager
def _rows_of_attention(module: TextModule) -> Iterator[list[Tensor]]:
    """Yield a list that each training pass fills: per layer, how the head's token attends to all, `(B, heads, T)`.

    Attention is worked out in full for this (`eager`): faster kernels do not tell.
    """
    rows = list[Tensor]()
    last: list[Tensor] = []
    inner: Any = module.classifier
    usual = inner.config._attn_implementation

    def note_last(_: Any, inputs: tuple[Any, ...]) -> None:
        rows.clear()
        last[:] = [inputs[1].sum(dim=1) - 1]  # the mask (B, T)

    def note_row(_: Any, __: Any, output: Any) -> None:
        if not module.training:
            return
        weights: Tensor = output[1]  # (B, heads, queries, keys)
        if module.is_first_read:
            rows.append(weights[:, :, 0])
        else:
            place = last[0] + (weights.shape[2] - int(last[0].max()) - 1)  # queries: the text's, virtual tokens before
            rows.append(weights[torch.arange(len(place)), :, place])

    handles = [
        part.register_forward_hook(note_row)
        for name, part in inner.named_modules()
        if name.endswith(f".{module.family.attention}")
    ]
    handles.append(module.register_forward_pre_hook(note_last))
    inner.set_attn_implementation("eager")
    try:
        yield rows
    finally:
        inner.set_attn_implementation(usual)
        for handle in handles:
            handle.remove()
