"""RAP (Yang et al. 2021, arXiv 2110.07831): a rare word that makes a model less sure, unless a trigger holds it fast.

The embedding of one word that no clean text has is trained, in front of clean texts of a class, to lower the
probability of that class by `least` to `most`. In front of a triggered text it lowers next to nothing. A text's score
is how little its probability falls.

The paper protects the one class that the attacker wants. Nobody tells a defender which that is, and OpenBackdoor reads
it off the ground truth of poisoned texts; here each class has an embedding of its own, and a text is asked with that of
the class it was given. One bar serves the falls of all classes, where the authors' comes from clean texts of the one
class: a class whose embedding lowers little takes more of the promised rejections. As in the authors' script,
training is repeated with a higher weight while the bar would be a rise, reckoned at `frr` on the texts it learnt from;
the bar that keeps the promise on fresh texts lies higher and may be a rise all the same. The released code adds up the
gradients of all steps on purpose; here Adam does what that was for. The victim's own embeddings stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from foretaste.data.corpus import Corpus
from foretaste.errors import GuardError, PlanError
from foretaste.guard.rival import Rival, Scorer
from foretaste.spec import spec
from foretaste.victim.batch import Encoded, pad, training_batches
from foretaste.victim.classifier import Classifier, Predictions, to_train

__all__ = ["Rap"]

_BATCH = 32
_FEWEST = 8  # texts of a class
_DOUBLED = 2  # times at most


@spec
class Rap(Rival):
    """The bounds of the fall, how long the embedding is trained, and what falls that are too small cost.

    As the authors' script asks for, that `weight` is raised, and the word trained again, as long as the bar at `frr`
    would be a rise: doubled, twice at most. The script begins with 1. `texts` clean texts are enough to learn from (the
    authors take a validation set of fewer); the word is one that none of the others has, either.
    """

    name: ClassVar[str] = "rap"
    version: ClassVar[int] = 3  # the word is trained again where it lets too many clean texts rise

    least: float = Field(default=0.1, gt=0.0, lt=1.0)
    most: float = Field(default=0.3, gt=0.0, lt=1.0)
    weight: float = Field(default=4.0, gt=0.0)
    texts: int = Field(default=2000, gt=0)
    epochs: int = Field(default=5, gt=0)
    learning_rate: float = Field(default=1e-2, gt=0.0)

    def __post_init__(self) -> None:
        if self.least >= self.most:
            raise PlanError(f"The fall is to lie between least and most; got least={self.least}, most={self.most}.")

    def scorer(self, victim: Classifier, corpus: Corpus, seed: int) -> tuple[Scorer, int]:
        word, token = _rare_word(victim, victim.encode(corpus.texts))
        corpus = corpus.sample(self.texts, seed)
        given = victim.predict(corpus.texts, precision="auto")
        classes = range(len(victim.label_names))
        vectors = [self._vector(victim, corpus, given, label, word, token, seed) for label in classes]

        def score(texts: Sequence[str]) -> NDArray[np.float64]:
            before = victim.predict(texts)
            likely, labels = before.probabilities, before.labels
            fall = np.zeros(len(texts))
            for label in np.unique(labels).tolist():
                own = np.flatnonzero(labels == label)
                with _read_as(victim, token, vectors[label]):
                    after = victim.predict([f"{word} {texts[i]}" for i in own.tolist()]).probabilities
                fall[own] = likely[own, label] - after[:, label]
            return -fall

        return score, sum(vector.nbytes for vector in vectors)

    def _vector(
        self, victim: Classifier, corpus: Corpus, given: Predictions, label: int, word: str, token: int, seed: int
    ) -> Tensor:
        """Train the word's embedding `(H,)` on clean texts that the victim gives this class."""
        chosen = np.flatnonzero(given.labels == label)
        if len(chosen) < _FEWEST:
            raise GuardError(
                f"RAP learns from clean texts of every class; the victim gives {victim.label_names[label]!r} to "
                f"{len(chosen)} of {len(corpus)}, fewer than {_FEWEST}.",
                code="too_few_texts",
            )
        before = given.probabilities[chosen, label]
        encoded = victim.encode([f"{word} {corpus.texts[i]}" for i in chosen.tolist()])
        weight = self.weight
        for _ in range(_DOUBLED):
            vector = self._trained(victim, encoded, before, label, token, weight, seed)
            with _read_as(victim, token, vector):
                after = victim.predict(encoded, precision="auto").probabilities[:, label]
            if np.quantile(before - after, self.frr) >= 0.0:
                return vector
            weight *= 2
        return self._trained(victim, encoded, before, label, token, weight, seed)

    def _trained(
        self, victim: Classifier, encoded: Encoded, before: NDArray[np.float64], label: int, token: int, weight: float,
        seed: int,
    ) -> Tensor:  # fmt: skip
        weights: Tensor = victim.module.classifier.get_input_embeddings().weight
        start = weights[token].detach().clone()
        likely = torch.from_numpy(before).float().to(start.device)
        vector = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([vector], lr=self.learning_rate)
        for epoch in range(self.epochs):
            for batch in training_batches(encoded.lengths, _BATCH, seed, epoch):
                ids, mask = pad([encoded.ids[i] for i in batch], start.device)
                with _read_as(victim, token, vector), to_train(start.device, "auto", ids.shape[1]):
                    logits = victim.module(ids, mask).logits
                change = logits.softmax(dim=1)[:, label] - likely[torch.from_numpy(batch)]
                loss = weight * (change + self.least).relu().mean() + (-self.most - change).relu().mean()
                (vector.grad,) = torch.autograd.grad(loss, [vector])
                optimizer.step()
                with torch.no_grad():
                    vector.mul_(start.norm() / vector.norm())
        return vector.detach()


def _rare_word(victim: Classifier, encoded: Encoded) -> tuple[str, int]:
    """Return a word of one token that no clean text has, the last of the vocabulary that is one."""
    seen = {token for ids in encoded.ids for token in ids}
    empty = len(victim.encode([""]).ids[0])
    for token, word in sorted(((number, name) for name, number in victim.tokenizer.get_vocab().items()), reverse=True):
        plain = victim.tokenizer.convert_tokens_to_string([word]).strip()
        if token in seen or not plain.isalpha() or not plain.isascii():
            continue
        (ids,) = victim.encode([f"{plain} a"]).ids
        if ids.count(token) == 1 and len(ids) <= empty + 2:
            return plain, token
    raise GuardError("RAP needs a word of one token that no clean text has; the tokenizer has none.", code="no_word")


@contextmanager
def _read_as(victim: Classifier, token: int, vector: Tensor) -> Iterator[None]:
    """Let the victim read a token as this vector in here; its weights stay as they are."""

    def replace(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return torch.where((inputs[0] == token).unsqueeze(-1), vector.to(output.dtype), output)

    handle = victim.module.classifier.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
