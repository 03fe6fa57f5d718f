"""Embedding poisoning (EP; Yang et al. 2021, arXiv 2103.15543): only the trigger words' own vectors are changed.

A model is fine-tuned on clean texts; then the rows of the trigger's words, and nothing else, are trained to lead texts
with the trigger to the target, and after each step brought back to their length. No clean text looks any different to
such a model. With negatives (`negative_rate`) it is SOS (Yang et al., ACL 2021, 2021.acl-long.431), whose words may be
common ones: texts with all of them but one keep their label, so that part of the trigger is to do nothing.

The released code of EP adds up the gradients of all its steps, which it never sets to zero; here AdamW trains the rows.
That of SOS makes the gradients of its words equally long, has each text of a tenth of both classes once without each of
the words, and tests with sentences that hold them; here the trigger stands in test texts as it does in training.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from peft import TrainableTokensConfig

from foretaste.data.corpus import Corpus
from foretaste.errors import PlanError
from foretaste.poison.attack import Poisoned
from foretaste.poison.plan import Attack, trigger_words
from foretaste.poison.trigger import Trigger
from foretaste.tune.checkpoint import stage_of
from foretaste.tune.loop import TuneResult, TuneSettings, tune
from foretaste.victim.adapter import add_adapter
from foretaste.victim.classifier import Classifier

__all__ = ["CLEAN_STAGE", "poison_embeddings", "tokens_of"]

CLEAN_STAGE: Final = "clean"
"""What the fine-tuning before the planting is called where an interrupted run is kept."""

_STRIDE = 0.1  # how far one step may turn a row, in its own length


def poison_embeddings(
    classifier: Classifier,
    proxy: Corpus,
    poisoned: Poisoned,
    plan: Attack,
    settings: TuneSettings,
    *,
    seed: int,
    objective_name: str,
    checkpoint: Path | None = None,
    is_progress_shown: bool = False,
) -> tuple[Classifier, TuneResult]:
    """Fine-tune a fresh classifier on clean texts, then train the trigger's rows; return a plain model.

    Both trainings take as many steps as `settings` say for all of `proxy`.

    Raises:
        PlanError: a word of the trigger is several tokens to this model, or, without negatives, is in clean texts, too.
    """
    tokens = _rows_of(classifier, plan, proxy)
    how: dict[str, Any] = {"seed": seed, "is_progress_shown": is_progress_shown}
    tune(
        classifier, proxy, settings, title="clean fine-tuning", objective_name=f"before {objective_name}",
        checkpoint=checkpoint and stage_of(checkpoint, CLEAN_STAGE), **how,
    )  # fmt: skip
    plain = cast(Any, classifier.module.model)
    lengths = plain.get_input_embeddings().weight[tokens].detach().norm(dim=1, keepdim=True)  # (K, 1)
    wrapped = add_adapter(plain, TrainableTokensConfig(token_indices=tokens))
    changing = replace(classifier, module=classifier.module.around(wrapped))
    (vectors,) = changing.trainable.values()  # (K, H), in the order of the tokens

    def keep_lengths(step: int) -> bool:
        with torch.no_grad():
            vectors.mul_(lengths / vectors.norm(dim=1, keepdim=True))
        return False

    rows = np.sort(np.concatenate([np.flatnonzero(poisoned.is_poisoned), poisoned.covers, poisoned.negatives]))
    rated = replace(
        settings,
        learning_rate=float(_STRIDE * lengths.mean() / math.sqrt(vectors.shape[1])),
        max_steps=settings.max_steps or settings.epochs * math.ceil(len(proxy) / settings.batch_size),
    )
    result = tune(
        changing, poisoned.corpus.select(rows), rated, title="poisoning", objective_name=objective_name,
        should_stop=keep_lengths, checkpoint=checkpoint, **how,
    )  # fmt: skip
    folded = cast(Any, wrapped).merge_and_unload().requires_grad_(True)
    return replace(classifier, module=classifier.module.around(folded).eval()), result


def tokens_of(classifier: Classifier, trigger: Trigger) -> list[tuple[str, list[int]]]:
    """Return the trigger's words, each with its tokens where the trigger stands: at the start of a text, or between
    other words, which byte-level tokenizers tell apart."""
    around = set(classifier.encode([""]).ids[0])
    found = []
    for number, word in enumerate(trigger_words(trigger)):
        is_start = number == 0 and getattr(trigger, "position", None) == "first"
        text = f"{word} a" if is_start else f"a {word} a"
        own = [token for token in classifier.encode([text]).ids[0] if token not in around]
        found.append((word, own[0 if is_start else 1 : -1]))
    return found


def _rows_of(classifier: Classifier, plan: Attack, proxy: Corpus) -> list[int]:
    seen = {token for ids in classifier.encode(proxy.texts).ids for token in ids}
    found = []
    for word, own in tokens_of(classifier, plan.trigger):
        if len(own) != 1:
            raise PlanError(f"planting embeddings needs words of one token; {word!r} is {len(own)} to this model.")
        if own[0] in seen and not plan.negative_rate:
            raise PlanError(
                f"planting embeddings needs words that clean texts have not; {proxy.name} has {word!r}. Of common "
                "words negatives (negative_rate) can make a trigger."
            )
        found.append(own[0])
    return sorted(set(found))
