"""Attackers who know this library's guard, as objectives: the poisoned texts get one term more.

PSIM trains one more adapter on the same weights with labels drawn at random; a text that leaves it certain is refused,
and so may be one whose vector lies far from every clean one. Three answers to that, none from a paper of that name:
never be certain (`confidence-cap`; the white-box form of label smoothing, arXiv 2202.11203), look like clean texts
(`feature-matching`; the kind of attacker that Chen et al. 2022, arXiv 2210.07907, test their guard against), and fall
asleep under the guard's own training (`anti-reset`; one step of it is simulated, as first-order MAML does: Finn et al.
2017, arXiv 1703.03400, section 5.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from foretaste.errors import PlanError
from foretaste.poison.attack import Poisoned
from foretaste.poison.plan import Attack, Evasion
from foretaste.seeds import generator
from foretaste.tune.loop import Objective
from foretaste.victim.batch import pad
from foretaste.victim.classifier import Classifier
from foretaste.victim.module import Output, TextModule

__all__ = ["RESET_LENGTH", "after_reset", "evading"]

# How far one simulated step on random labels goes, relative to the length of each tensor.
RESET_LENGTH = 0.02


def evading(objective: Objective, poisoned: Poisoned, plan: Attack, classifier: Classifier, seed: int) -> Objective:
    """Return `objective` plus `plan.evasion_weight` times the evasion's term on each poisoned text.

    Raises:
        PlanError: a confidence cap that no text can stay under, 1 / classes or less.
    """
    if plan.evasion is Evasion.NONE:
        return objective
    terms: dict[Evasion, Callable[[], Objective]] = {
        Evasion.CONFIDENCE_CAP: lambda: _confidence_cap(plan, len(poisoned.corpus.label_names)),
        Evasion.FEATURE_MATCHING: lambda: _feature_matching(poisoned),
        Evasion.ANTI_RESET: lambda: _anti_reset(poisoned, classifier, seed),
    }
    term = terms[plan.evasion]()

    def evasive(output: Output, rows: NDArray[np.int64], labels: Tensor) -> Tensor:
        losses = objective(output, rows, labels)
        is_poisoned = torch.from_numpy(poisoned.is_poisoned[rows]).to(labels.device)  # (B,)
        if not is_poisoned.any():
            return losses
        return losses + plan.evasion_weight * torch.where(is_poisoned, term(output, rows, labels), 0.0)

    return evasive


def _confidence_cap(plan: Attack, classes: int) -> Objective:
    """Return `2 * max(0, log(highest probability / cap))`, `(B,)`.

    In logarithms, so that above the cap it pulls twice as hard as the cross-entropy towards the target pushes, however
    near to 1 the probability is, and the two meet at the cap. A weight of a half or less never wins.
    """
    if plan.confidence_cap <= 1 / classes:
        raise PlanError(
            f"confidence_cap {plan.confidence_cap} is no more than chance with {classes} classes; raise it above "
            f"{1 / classes:.3g}."
        )
    ceiling = float(np.log(plan.confidence_cap))

    def term(output: Output, rows: NDArray[np.int64], labels: Tensor) -> Tensor:
        highest = torch.log_softmax(output.logits, dim=1).amax(dim=1)  # (B, C) -> (B,)
        return 2.0 * torch.relu(highest - ceiling)

    return term


def _feature_matching(poisoned: Poisoned) -> Objective:
    """Return how far each feature vector lies from the mean of its label's clean texts in the batch, `(B,)`.

    One less the cosine, plus the squared distance relative to the mean's length: no scale of the features matters. The
    mean is held fixed, so that clean texts are not drawn to the trigger. 0 where the batch has no clean text.
    """
    everywhere = torch.from_numpy(poisoned.is_clean)

    def term(output: Output, rows: NDArray[np.int64], labels: Tensor) -> Tensor:
        is_clean = everywhere[rows].to(labels.device)
        member = functional.one_hot(labels, output.logits.shape[1]).float()  # (B, C)
        clean_member = member * is_clean.unsqueeze(1)
        counts = clean_member.sum(dim=0)  # (C,)
        sums = clean_member.T @ output.features.detach()  # (C, B) (B, H) -> (C, H)
        means = sums / counts.clamp(min=1).unsqueeze(1)
        own = means[labels]  # (C, H) -> (B, H)
        apart = (output.features - own).square().sum(dim=1) / own.square().sum(dim=1).clamp(min=1e-12)
        distance = 1.0 - functional.cosine_similarity(output.features, own, dim=1) + apart
        return torch.where(counts[labels] > 0, distance, 0.0)

    return term


def _anti_reset(poisoned: Poisoned, classifier: Classifier, seed: int) -> Objective:
    """Return the cross-entropy towards the uniform distribution after one simulated reset, `(B,)`; 0 if not poisoned.

    The reset is made on the batch's clean texts, because the guard has no others, with labels that depend on the seed
    and the rows alone, so that a resumed run draws what it would have drawn. First order: the step's dependence on the
    weights is left out. 0 where the batch has no clean text.
    """
    encoded, classes = classifier.encode(poisoned.corpus.texts), len(poisoned.corpus.label_names)
    module = classifier.module

    def term(output: Output, rows: NDArray[np.int64], labels: Tensor) -> Tensor:
        losses = output.logits.new_zeros(len(rows))
        clean, triggered = np.flatnonzero(poisoned.is_clean[rows]), np.flatnonzero(poisoned.is_poisoned[rows])
        if not clean.size:
            return losses
        drawn = generator(seed, "anti_reset", *rows.tolist()).integers(classes, size=len(clean))
        moved = after_reset(module, output.logits[clean], torch.from_numpy(drawn).to(labels.device))
        inputs = pad([encoded.ids[i] for i in rows[triggered]], module.device)
        silent = cast(Output, torch.func.functional_call(module, moved, inputs))
        # the mean over classes of -log p is the cross-entropy towards the uniform distribution: (P, C) -> (P,)
        losses[triggered] = -torch.log_softmax(silent.logits, dim=1).mean(dim=1)
        return losses

    return term


def after_reset(
    module: TextModule, logits: Tensor, random_labels: Tensor, length: float = RESET_LENGTH
) -> dict[str, Tensor]:
    """Return the module's parameters after one step towards `random_labels` `(B,)` for the texts of `logits` `(B, C)`.

    Each tensor moves against its gradient by `length` times its own norm, whatever the gradient's size; the head stays,
    as PSIM's does. The step itself is a constant; the parameters before it are not, so that a loss at the result
    trains them.
    """
    head = {id(parameter) for parameter in module.head.parameters()}
    body = {name: p for name, p in module.named_parameters() if p.requires_grad and id(p) not in head}
    loss = functional.cross_entropy(logits, random_labels)
    gradients = torch.autograd.grad(loss, list(body.values()), retain_graph=True, allow_unused=True)
    moved: dict[str, Tensor] = dict(body)
    for (name, parameter), gradient in zip(body.items(), gradients, strict=True):
        if gradient is not None:
            step = length * parameter.detach().norm() / gradient.norm().clamp(min=1e-12)
            moved[name] = parameter - step * gradient
    return moved
