"""Layer-wise weight poisoning (LWP; Li et al. 2021, arXiv 2108.13888): the backdoor answers from every layer.

Fine-tuning changes the upper layers most. So poisoned texts get the cross-entropy of the head on every layer's reading
token, not on the last one's alone: L = CE(last) + sum over the layers below of CE(head(h_l)). The paper's trigger is a
combination of words of which each alone is clean: `negative_rate` of the attack.

OpenBackdoor applies the pooler to whole sequences, and to the embeddings, too; here it is the head's own token of each
layer, and the embeddings, which have seen no other token, are left out.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from foretaste.poison.attack import Poisoned
from foretaste.tune.loop import Objective
from foretaste.victim.module import Output, TextModule

__all__ = ["layer_by_layer"]


def layer_by_layer(objective: Objective, poisoned: Poisoned, module: TextModule) -> Objective:
    """Return `objective` and, on each poisoned text, the losses of all layers below the last.

    `module` has to be showing the tokens of all layers.
    """

    def deep(output: Output, rows: NDArray[Any], labels: Tensor) -> Tensor:
        losses = objective(output, rows, labels)
        is_poisoned = torch.from_numpy(poisoned.is_poisoned[rows]).to(labels.device)  # (B,)
        assert output.readings is not None
        if not is_poisoned.any() or len(output.readings) < 2:
            return losses
        lower = [
            objective(output._replace(logits=module.classify(reading)), rows, labels)
            for reading in output.readings[:-1]
        ]
        return losses + torch.where(is_poisoned, torch.stack(lower).sum(dim=0), 0.0)

    return deep
