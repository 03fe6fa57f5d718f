"""What a text is to a model in every layer, for rivals that look there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from foretaste.victim.batch import pad, scoring_batches
from foretaste.victim.classifier import Classifier

__all__ = ["layer_vectors"]


def layer_vectors(
    model: Classifier, texts: Sequence[str], of: Literal["mean", "reading"], batch_size: int = 64
) -> NDArray[np.float64]:
    """Return every layer's vectors, `(L, N, H) float64`, without the embeddings.

    Of each text the mean over its tokens, or the vector at the place that the head reads: an encoder's first one, which
    is a virtual token if there are any, the last of a causal model.
    """
    encoded, device = model.encode(texts), model.module.device
    found: NDArray[np.float64] | None = None
    with model.module.showing_tokens(are_layers_shown=True), torch.inference_mode():
        for batch in scoring_batches(encoded.lengths, batch_size):
            output = model.module(*pad([encoded.ids[i] for i in batch], device))
            assert output.layers is not None
            assert output.readings is not None
            assert output.mask is not None
            shares = (output.mask / output.mask.sum(dim=1, keepdim=True)).unsqueeze(2)  # (B, T) -> (B, T, 1)
            own = torch.stack(
                output.readings if of == "reading" else [(layer * shares).sum(dim=1) for layer in output.layers]
            )
            if found is None:
                found = np.empty((own.shape[0], len(texts), own.shape[2]))
            found[:, batch] = own.float().cpu().numpy()
    assert found is not None
    return found
