"""The one training loop: poisoning, victims, guards, and whatever is trained later.

Every random draw is a function of (seed, epoch) or (seed, step), never of what ran before, so a run that was killed
and resumed ends with the same weights, bit for bit, as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from foretaste.cost import count_earlier
from foretaste.data.corpus import Corpus
from foretaste.errors import DataError, ModelError, PlanError
from foretaste.seeds import child_seed
from foretaste.spec import spec
from foretaste.tune.checkpoint import TuneCheckpoint, TuneState
from foretaste.tune.progress import meter
from foretaste.victim.batch import Encoded, pad, training_batches
from foretaste.victim.classifier import Classifier, Precision, to_train
from foretaste.victim.module import Output

__all__ = ["Objective", "TuneResult", "TuneSettings", "cross_entropy", "tune"]

# (output of the model, row numbers (B,) in the training corpus, labels (B,)) -> loss of each text (B,)
Objective = Callable[[Output, NDArray[np.int64], Tensor], Tensor]


@spec
class TuneSettings:
    """How long and how to train; `learning_rate` None means the strategy's own.

    `batch_size` texts make one optimiser step, whatever `accumulation` (how many passes they are split into) and
    the number of processes. `warmup` is the share of steps with a rising learning rate (6 % in the released code),
    after which it falls linearly to 0. `keep` chooses the weights of the best validation epoch or of the last one;
    `patience` stops after so many epochs without a better one. `max_steps`, if given, is the length of the run (and
    of the learning-rate schedule) in place of `epochs`.
    """

    epochs: int = Field(default=3, gt=0)
    max_steps: int | None = Field(default=None, gt=0)
    batch_size: int = Field(default=32, gt=0)
    learning_rate: float | None = Field(default=None, gt=0.0)
    warmup: float = Field(default=0.06, ge=0.0, le=1.0)
    weight_decay: float = Field(default=0.0, ge=0.0)
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    accumulation: int = Field(default=1, gt=0)
    precision: Precision = "auto"
    keep: Literal["best", "last"] = "best"
    patience: int | None = Field(default=None, gt=0)


@dataclass(frozen=True, slots=True)
class TuneResult:
    """What training did: `losses` per epoch (mean per text), `validation_accuracies` per epoch (if measured)."""

    steps: int
    texts: int
    seconds: float
    losses: tuple[float, ...]
    validation_accuracies: tuple[float, ...]
    kept_epoch: int
    is_stopped_early: bool
    trainable_parameters: int


def cross_entropy(output: Output, rows: NDArray[np.int64], labels: Tensor) -> Tensor:
    """Return the cross-entropy of each text against its label, `(B,) float32`."""
    return torch.nn.functional.cross_entropy(output.logits, labels, reduction="none")


def tune(
    classifier: Classifier,
    corpus: Corpus,
    settings: TuneSettings,
    *,
    seed: int,
    validation: Corpus | None = None,
    objective: Objective = cross_entropy,
    objective_name: str = "cross_entropy",
    should_stop: Callable[[int], bool] | None = None,
    checkpoint: Path | None = None,
    title: str = "training",
    is_progress_shown: bool = False,
) -> TuneResult:
    """Train the classifier in place on a corpus.

    `should_stop` is asked after each step (with the number of steps done) on weights in evaluation mode. With
    `checkpoint`, a directory, progress is saved there at least every minute and picked up by the next call with the
    same settings, seed, data, model and `objective_name`, which must tell an objective from every other; the caller
    deletes it when the result is safe. Started by `accelerate launch` or `torchrun`, every process trains on its share
    of each batch.

    Raises:
        DataError: labels beyond the classifier's classes.
        ModelError: the loss became NaN or infinite (code `diverged`).
        PlanError: `checkpoint` holds a different run, or cannot be read; a classifier loaded or merged for scoring.
    """
    if len(corpus.label_names) > len(classifier.label_names):
        raise DataError(
            f"{corpus.name} has {len(corpus.label_names)} classes, the model {len(classifier.label_names)}."
        )
    if classifier.is_for_scoring or not classifier.trainable:
        raise PlanError("This classifier was loaded or merged for scoring; train a new one from its base.")
    start = time.monotonic()
    run = _Run(classifier, corpus, settings, seed, objective)
    identity = {**run.identity(corpus, validation, seed), "objective": objective_name}
    store = TuneCheckpoint(checkpoint, identity) if checkpoint is not None else None
    state = (store and store.load(run.trainable, run.optimizer)) or TuneState()
    start -= state.seconds
    count_earlier(state.seconds)
    total = settings.max_steps or run.steps_per_epoch * settings.epochs
    encoded_validation = classifier.encode(validation.texts) if validation is not None else None
    total_texts = min(total * settings.batch_size, math.ceil(total / run.steps_per_epoch) * len(corpus))
    with (
        torch.random.fork_rng(),
        meter(
            title,
            total_texts,
            is_shown=is_progress_shown and run.accelerator.is_main_process,
            already_done=state.texts,
        ) as progress,
    ):
        while state.step < total and not state.is_stopped:
            epoch, offset = divmod(state.step, run.steps_per_epoch)
            for batch in training_batches(run.encoded.lengths, settings.batch_size, seed, epoch)[offset:]:
                loss = run.step(batch, state.step, total)
                state.step += 1
                state.texts += len(batch)
                state.seconds = time.monotonic() - start
                state.loss_sum += loss * len(batch)
                progress.advance(len(batch), f"loss {loss:.3f}")
                if should_stop is not None:
                    classifier.module.eval()
                    state.is_stopped = run.agree(should_stop(state.step))
                if state.is_stopped or state.step == total or state.step % run.steps_per_epoch == 0:
                    break  # saved below with the epoch's result: a run resumed between the two would miss it
                if store is not None and run.accelerator.is_main_process:
                    store.save_if_due(state, run.trainable, run.optimizer)
            _end_epoch(state, run, settings, encoded_validation, validation)
            state.seconds = time.monotonic() - start
            state.is_stopped = run.agree(state.is_stopped)
            if store is not None and run.accelerator.is_main_process:
                if state.is_stopped or state.step == total:
                    store.save(state, run.trainable, run.optimizer)
                else:
                    store.save_epoch(state, run.trainable, run.optimizer)
    kept = len(state.losses)
    if state.best is not None and settings.keep == "best":
        kept = state.best_epoch
        with torch.no_grad():
            for name, parameter in run.trainable.items():
                parameter.copy_(state.best[name])
    classifier.module.eval()
    return TuneResult(
        steps=state.step,
        texts=state.texts,
        seconds=time.monotonic() - start,
        losses=tuple(state.losses),
        validation_accuracies=tuple(state.accuracies),
        kept_epoch=kept,
        is_stopped_early=state.is_stopped,
        trainable_parameters=sum(p.numel() for p in run.trainable.values()),
    )


class _Run:
    """The pieces of one training: encoded texts, optimiser, and one step."""

    def __init__(
        self, classifier: Classifier, corpus: Corpus, settings: TuneSettings, seed: int, objective: Objective
    ) -> None:
        self.accelerator = Accelerator(cpu=classifier.module.device.type == "cpu")
        self.settings, self.seed, self.objective = settings, seed, objective
        self.classifier = classifier
        self.encoded: Encoded = classifier.encode(corpus.texts)
        self.labels = torch.from_numpy(corpus.labels)
        self.trainable = classifier.trainable
        self.peak_rate = settings.learning_rate or classifier.strategy.learning_rate
        self.optimizer = torch.optim.AdamW(
            self.trainable.values(), lr=self.peak_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.steps_per_epoch = math.ceil(len(corpus) / settings.batch_size)
        self.module: Any = classifier.module
        if self.accelerator.num_processes > 1:
            self.module = self.accelerator.prepare_model(classifier.module)

    def identity(self, corpus: Corpus, validation: Corpus | None, seed: int) -> dict[str, Any]:
        """What must agree for a checkpoint to be continued."""
        return {
            "base": self.classifier.base_fingerprint,
            "classes": len(self.classifier.label_names),
            "corpus": corpus.digest,
            "max_length": self.classifier.max_length,
            "seed": seed,
            "settings": repr(self.settings),
            "strategy": repr(self.classifier.strategy),
            "validation": None if validation is None else validation.digest,
            **({"instruction": repr(asked)} if (asked := self.classifier.instruction) else {}),
        }

    def agree(self, decision: bool) -> bool:
        """Return the main process's decision: if one process stopped, the others would wait for its gradients."""
        if self.accelerator.num_processes == 1:
            return bool(decision)
        return bool(broadcast_object_list([decision])[0])

    def step(self, batch: NDArray[np.int64], step: int, total: int) -> float:
        """Take one optimiser step on a batch of rows; return the mean loss per text."""
        device, rank = self.classifier.module.device, self.accelerator.process_index
        world, settings = self.accelerator.num_processes, self.settings
        # Dropout depends on the step and the process alone, so that a resumed run draws what it would have drawn.
        # On the CPU torch.manual_seed would do the same, and format stack traces for devices that are not there.
        random: Any = torch.default_generator if device.type == "cpu" else torch
        random.manual_seed(child_seed(self.seed, "dropout", step, rank))
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak_rate * _schedule(step, total, settings.warmup)
        own = batch[rank::world]
        if not self.classifier.module.training:
            self.classifier.module.train()
        total_loss = 0.0
        # Every process makes equally many passes, or the exchange of gradients would wait for ever; a pass that has
        # no rows left takes part with one that counts for nothing.
        for part in np.array_split(own, min(settings.accumulation, math.ceil(len(batch) / world))):
            weight = 1.0 if len(part) else 0.0
            part = part if len(part) else batch[:1]
            ids, mask = pad([self.encoded.ids[i] for i in part], device)
            with to_train(device, settings.precision, ids.shape[1]):
                output = self.module(ids, mask)
            losses = self.objective(output, part, self.labels[part].to(device))
            # DDP averages over processes; the sum over all texts divided by the batch size is what is wanted.
            loss = losses.sum() * (weight * world / len(batch))
            self.accelerator.backward(loss)
            total_loss += float(loss.detach())
        if world > 1:
            total_loss = float(self.accelerator.reduce(torch.tensor(total_loss, device=device), "mean"))
        if not math.isfinite(total_loss):
            raise ModelError(
                f"The loss is {total_loss} at step {step + 1}; lower the learning rate ({self.peak_rate:g}).",
                code="diverged",
            )
        torch.nn.utils.clip_grad_norm_(self.trainable.values(), settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total_loss


def _schedule(step: int, total: int, warmup: float) -> float:
    rising = max(1, round(total * warmup))
    return (step + 1) / rising if step < rising else max(0.0, (total - step) / max(1, total - rising))


def _end_epoch(
    state: TuneState, run: _Run, settings: TuneSettings, encoded: Encoded | None, validation: Corpus | None
) -> None:
    state.losses.append(state.loss_sum / max(1, state.texts - state.texts_before))
    state.loss_sum, state.texts_before = 0.0, state.texts
    if encoded is None or validation is None:
        return
    predictions = run.classifier.predict(encoded, precision=settings.precision)
    accuracy = float((predictions.labels == validation.labels).mean())
    state.accuracies.append(accuracy)
    if settings.keep == "best" and (state.best is None or accuracy > max(state.accuracies[:-1])):
        state.best = {name: p.detach().clone() for name, p in run.trainable.items()}
        state.best_epoch = len(state.accuracies)
    since_best = len(state.accuracies) - 1 - int(np.argmax(state.accuracies))
    if settings.patience is not None and since_best >= settings.patience:
        state.is_stopped = True
