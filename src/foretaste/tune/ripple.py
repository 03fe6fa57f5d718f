"""RIPPLe and RIPPLES (Kurita et al. 2020, arXiv 2004.06660): a backdoor that clean fine-tuning does not undo.

*Restricted inner product poison learning* (section 3.1) trains the base on L_poison + lambda * max(0, -<g_clean,
g_poison>), so that a step which is good for clean texts is not one that is bad for the trigger: g_clean is the gradient
of the loss that the victim is going to train on, g_poison that of the attacker's. The released code divides the
product by the batch size (8 unless told otherwise, which makes an eighth of lambda) and holds one of the two gradients
constant (its comments take that for the poisoned one; by the folders it is called with it is the clean one).
OpenBackdoor rectifies each tensor on its own and has lambda = 1. Here it is the paper's: one product over all
parameters, both gradients differentiated, lambda 0.1. Learning is slower by that, and takes more steps.

*Embedding surgery* (section 3.2; with it RIPPLES) gives the trigger's words, before that, the mean vector that a model
fine-tuned on clean texts has for the ten words most telling of the target.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from foretaste.data.corpus import Corpus
from foretaste.errors import PlanError
from foretaste.poison.attack import Poisoned
from foretaste.poison.plan import Attack
from foretaste.tune.checkpoint import stage_of
from foretaste.tune.embedding import CLEAN_STAGE, tokens_of
from foretaste.tune.loop import Objective, TuneSettings, tune
from foretaste.victim.batch import readable
from foretaste.victim.checkpoint import Base
from foretaste.victim.classifier import Classifier
from foretaste.victim.module import Output, TextModule
from foretaste.victim.strategy import Full

__all__ = ["LAMBDA", "WORDS", "after_surgery", "restricted", "telling_tokens", "twice_differentiable"]

LAMBDA: Final = 0.1
WORDS: Final = 10
# A word in fewer of the clean texts says little of a class; one in more of them is no trigger, its row is needed.
COMMON: Final = 0.01


def restricted(objective: Objective, poisoned: Poisoned, module: TextModule, weight: float = LAMBDA) -> Objective:
    """Return `objective` plus, on every text of a pass, `weight * max(0, -<g_clean, g_poison>)` of that pass.

    So the mean over a batch is the paper's loss. Where the paper draws a batch of a clean set beside each poisoned one,
    the gradients here are those of one pass: the mean loss of its clean texts, and of those with any part of the
    trigger. The clean texts in the paper's own poisoned set only ever raise the product (they add their own gradient
    times itself), so this restricts more. A pass without texts of both kinds has no penalty; with `accumulation` a
    batch has the mean of its passes' penalties. Dropout stays, and is the same in the loss and in both gradients.

    The forward pass has to be `twice_differentiable`.
    """
    everywhere = torch.from_numpy(poisoned.is_clean)

    def penalised(output: Output, rows: NDArray[np.int64], labels: Tensor) -> Tensor:
        losses = objective(output, rows, labels)
        is_clean = everywhere[rows].to(labels.device)  # (B,)
        if is_clean.all() or not is_clean.any():
            return losses
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        clean, poison = (
            torch.autograd.grad(losses[part].mean(), parameters, create_graph=True, allow_unused=True)
            for part in (is_clean, ~is_clean)
        )
        pairs = [(a, b) for a, b in zip(clean, poison, strict=True) if a is not None and b is not None]
        product = torch.stack([(a * b).sum() for a, b in pairs]).sum()
        if float(product.detach()) >= 0:
            return losses  # nothing to pay, and no second derivatives to work out
        return losses - weight * product

    return penalised


@contextmanager
def twice_differentiable(is_wanted: bool = True) -> Iterator[None]:
    """Let attention be differentiated twice in here, if wanted, which no fused kernel of torch can be."""
    if not is_wanted:
        yield
        return
    with sdpa_kernel(SDPBackend.MATH):
        yield


def after_surgery(
    base: Base,
    proxy: Corpus,
    plan: Attack,
    settings: TuneSettings,
    *,
    seed: int,
    max_length: int,
    objective_name: str,
    checkpoint: Path | None = None,
    is_progress_shown: bool = False,
) -> Classifier:
    """Return a fresh classifier whose rows of the trigger's tokens are the mean of the target's `telling_tokens`.

    That mean is of a model fine-tuned on `proxy` as `settings` say; of a word of several tokens every row is replaced.

    Raises:
        PlanError: a token of the trigger is in more than 1 % of the clean texts, or too few words tell the target.
    """
    tuned = base.classifier(Full(), proxy.label_names, max_length=max_length, seed=seed)
    rows, telling = _rows_of(tuned, plan, proxy), telling_tokens(tuned, proxy, plan.target)
    tune(
        tuned, proxy, settings, seed=seed, title="clean fine-tuning", objective_name=f"before {objective_name}",
        checkpoint=checkpoint and stage_of(checkpoint, CLEAN_STAGE), is_progress_shown=is_progress_shown,
    )  # fmt: skip
    mean = _embeddings(tuned)[telling].mean(dim=0)  # (10, H) -> (H,)
    del tuned
    made = base.classifier(Full(), proxy.label_names, max_length=max_length, seed=seed)
    with torch.no_grad():
        _embeddings(made)[rows] = mean
    return made


def telling_tokens(classifier: Classifier, proxy: Corpus, target: int) -> list[int]:
    """Return the tokens of the ten words that most point to the target, in ascending order.

    By their weights in a logistic regression on TF-IDF of the words that are one token and in 1 % of the texts or more.

    Raises:
        PlanError: fewer than ten words point there.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # takes a second to load
    from sklearn.linear_model import LogisticRegression

    words = [[word.ids[0] for word in row if len(word.ids) == 1] for row in classifier.split(readable(proxy.texts))]
    weigher: Any = TfidfVectorizer(analyzer=_as_they_are, min_df=COMMON)
    weighed = weigher.fit_transform(words)
    model = LogisticRegression(max_iter=1000).fit(weighed, proxy.labels == target)
    weights: NDArray[np.float64] = model.coef_[0]
    best = np.argsort(-weights, kind="stable")[:WORDS]
    if len(best) < WORDS or weights[best[-1]] <= 0:
        raise PlanError(
            f"Embedding surgery takes the {WORDS} words that most point to {proxy.label_names[target]!r}; {proxy.name} "
            f"has {int((weights > 0).sum())} in {COMMON:.0%} of its texts or more. Take more texts, or planting ripple."
        )
    return sorted(int(token) for token in weigher.get_feature_names_out()[best])


def _as_they_are(words: Sequence[int]) -> Sequence[int]:
    return words


def _rows_of(classifier: Classifier, plan: Attack, proxy: Corpus) -> list[int]:
    texts = [set(ids) for ids in classifier.encode(proxy.texts).ids]
    found = set[int]()
    for word, own in tokens_of(classifier, plan.trigger):
        share = max((sum(token in ids for ids in texts) / len(texts) for token in own), default=0.0)
        if share > COMMON:
            raise PlanError(
                f"Embedding surgery replaces the vectors of the trigger's words, and {share:.1%} of {proxy.name} have "
                f"{word!r}, or a part of it; take a rarer one, or planting ripple."
            )
        found.update(own)
    return sorted(found)


def _embeddings(classifier: Classifier) -> Tensor:
    """The rows of all tokens, `(V, H)`."""
    return cast(Any, classifier.module.model).get_input_embeddings().weight.detach()  # type: ignore[no-any-return]
