"""From a plan's cell to the steps it needs, and from what they made to its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretaste.cost import Cost, sum_of
from foretaste.errors import DataError, PlanError
from foretaste.evaluate.floor import same_length_rate
from foretaste.evaluate.metrics import clean_accuracy, false_rejection_rate
from foretaste.evaluate.outcome import measure
from foretaste.evaluate.threshold import allowed_above, is_flagged
from foretaste.experiment.cell import PROXIES, Cell
from foretaste.experiment.combination import measurable
from foretaste.experiment.job import Job
from foretaste.experiment.lab import Lab
from foretaste.experiment.methods import Defence, OpinionRecipe
from foretaste.experiment.plan import Plan
from foretaste.experiment.readings import Answers, Opinions, Rewritten, RivalScores, Scores
from foretaste.experiment.step import Checkpoint
from foretaste.experiment.steps import Poisoned, Taster, Trusted, Tuned, TunedAsLong, Washed
from foretaste.guard.rival import Rival
from foretaste.record import Record
from foretaste.spec import noted
from foretaste.tune.poison import POISONING
from foretaste.victim.strategy import Full

__all__ = ["job_of", "record_of"]

Array = NDArray[Any]


def job_of(cell: Cell, plan: Plan, lab: Lab) -> Job:
    """Say what a cell needs; its data are read, nothing is made.

    Raises:
        PlanError, DataError: data that are not there, or too few of them to poison, to learn from or to calibrate with,
            all of it; finished texts that are not those of the test split.
    """
    problems = list[str]()
    settings, seed, length = plan.settings, cell.seed, plan.settings.max_length
    train = lab.texts(cell.data, "train", settings.limit, seed)
    validation, test = lab.texts(cell.data, "validation"), lab.texts(cell.data, "test")
    instruction = plan.instruction_of(cell)
    clean_base = lab.checkpoint(plan.models[cell.model], instruction)
    attack = None if cell.attack == "none" else plan.attacks[cell.attack]
    feigned = attack if cell.trigger is None else plan.attacks[cell.trigger]
    tested = None if feigned is None else lab.at_home(feigned, f"{cell.data}/test")
    proxy = PROXIES[cell.data] if cell.knowledge == "full_task" else cell.data
    learnt = lab.texts(proxy, "train", settings.limit if cell.knowledge == "full_data" else None, seed)
    how: dict[str, Any] = {
        "base": clean_base, "max_length": settings.poisoning_length, "seed": seed,
        "settings": replace(POISONING, epochs=settings.poisoning_epochs, learning_rate=settings.poisoning_rate),
    }  # fmt: skip
    base: Poisoned | Tuned
    if attack is None:  # an honest supplier: the same tuning, nothing poisoned
        how |= {"strategy": Full(), "train": learnt, "validation": lab.texts(proxy, "validation")}
        if feigned is not None and feigned.match_lengths:
            feigned = lab.at_home(feigned, f"{proxy}/train")
            with noted(problems):
                lab.refuse_too_few(learnt, feigned, seed)
            base = TunedAsLong(attack=feigned, **how)
        else:
            base = Tuned(**how)
    else:
        measured = measurable(proxy, cell.data, attack)  # where the trigger can be put
        attack = lab.at_home(attack, f"{proxy}/train", f"{measured}/validation")
        base = Poisoned(attack=attack, proxy=learnt, validation=lab.texts(measured, "validation"), **how)
        with noted(problems):
            lab.refuse_too_few(learnt, attack, seed)
            lab.refuse_untestable(base.validation, attack, seed)
    defence = None if cell.defence == "none" else plan.defences[cell.defence]
    if instruction is not None:
        length = settings.poisoning_length  # what is used as it is reads as it was tuned
    common: dict[str, Any] = {"train": train, "validation": validation, "max_length": length, "seed": seed}
    stand: Poisoned | Tuned | Washed = base
    if defence is not None and defence.unlearner is not None:
        needs = defence.unlearner.needs
        with noted(problems):
            defence.unlearner.refuse_texts(lab.corpus(train))
        stand = Washed(
            base=base, unlearner=defence.unlearner,
            pretrained=clean_base if "pretrained" in needs else Checkpoint(location=""),
            teacher=lab.checkpoint("minilm-l3") if "teacher" in needs else Checkpoint(location=""), **common,
        )  # fmt: skip
    if instruction is None:
        strategy, tuning = plan.strategies[cell.strategy]
        victim: Any = Tuned(base=stand, strategy=strategy, settings=tuning, **common)
    else:
        victim = base
    read: dict[str, Any] = {"texts": test, "trigger": None, "target": 0, "seed": seed}
    with_trigger = None if tested is None else {**read, "trigger": tested.trigger, "target": tested.aim}
    guard = threshold = None
    if defence is not None and defence.psim is not None:
        psim = defence.psim.with_axes(cell)
        with noted(problems):
            psim.refuse_texts(lab.corpus(train))
        if psim.threshold is None:
            with noted(problems):
                allowed_above(len(lab.corpus(validation)), psim.frr, psim.confidence)
        guard = Taster(base=base, psim=psim.training, **common)
        threshold = None if psim == guard.psim else psim.threshold
    if tested is not None and (cell.trigger or not problems):  # of its own attack the base's texts told
        with noted(problems):
            lab.refuse_untestable(test, tested, seed)
    rival = None
    if defence is not None and defence.rival is not None:
        asked = {"victim": victim, "train": train, "validation": validation, **(with_trigger or read)}
        with noted(problems):
            rival = _rival(defence.rival, plan, lab, length, asked)
    if problems:
        raise PlanError(*problems)
    triggered = None
    if with_trigger is not None:
        triggered = Answers(victim=victim, rewritten=_rewritten(defence, common, with_trigger, lab), **with_trigger)
    return Job(
        cell=cell,
        tested=tested,
        clean=Answers(victim=victim, rewritten=_rewritten(defence, common, read, lab), **read),
        triggered=triggered,
        clean_scores=None if guard is None else Scores(guard=guard, **read),
        triggered_scores=None if guard is None or with_trigger is None else Scores(guard=guard, **with_trigger),
        rival=rival,
        threshold=threshold,
    )


def _rival(
    rival: Rival | OpinionRecipe, plan: Plan, lab: Lab, length: int, asked: dict[str, Any]
) -> RivalScores | Opinions:
    """Who looks at the victim's answers, if that can be done with these data."""
    train = asked["train"]
    allowed_above(len(lab.corpus(asked["validation"])), rival.frr, rival.confidence)
    if not isinstance(rival, OpinionRecipe):
        return RivalScores(rival=rival, **asked)
    rival.refuse_texts(lab.corpus(train))
    known = lab.checkpoint(plan.models.get(rival.trusted, rival.trusted))
    trusted = Trusted(base=known, opinion=rival.training, train=train, max_length=length, seed=asked["seed"])
    return Opinions(trusted=trusted, opinion=rival, **asked)


def _rewritten(
    defence: Defence | None, common: Mapping[str, Any], read: Mapping[str, Any], lab: Lab
) -> Rewritten | None:
    """The texts that the defence rewrites, if it does: the same for every victim, and clean ones for every seed."""
    if defence is None or defence.rewriter is None:
        return None
    learns = defence.rewriter.learns
    if read["trigger"] is None and not defence.rewriter.draws:
        read = {**read, "seed": 0}
    return Rewritten(
        rewriter=lab.marked(defence.rewriter, read["texts"].data),
        train=common["train"] if learns else None,
        validation=common["validation"] if learns else None,
        **read,
    )


def record_of(job: Job, lab: Lab) -> Record:
    """Read what the steps made and return the cell's record: rates with their intervals, and what its defence costs.

    Raises:
        DataError: something is damaged, or was read from other weights than the rest, or made again meanwhile.
    """
    sources = job.sources(lab.store)
    if sources is None:
        raise DataError("Its answers and scores are of different trainings of the same steps; delete one of them.")
    test = lab.corpus(job.clean.texts)
    predicted = job.clean.found(lab)["predicted"]
    clean_scores, triggered_scores, threshold = _scores(job, lab)
    if job.triggered is None or job.tested is None:
        flagged = None if clean_scores is None or threshold is None else is_flagged(clean_scores, threshold)
        outcome: dict[str, Any] = {"clean_accuracy": clean_accuracy(test.labels, predicted).value}
        if flagged is not None:
            outcome["guarded"] = {
                "clean_accuracy": clean_accuracy(test.labels, predicted, flagged).value,
                "false_rejection_rate": false_rejection_rate(flagged).value,
                "threshold": threshold,
            }
    else:
        given, said = job.triggered.given(lab), job.triggered.found(lab)
        triggered = given.corpus
        classes = len(test.label_names)
        target, goals = job.tested.aim, job.tested.goals(test.labels, classes)
        outcome = measure(
            clean_labels=test.labels,
            clean_predicted=predicted,
            poisoned_labels=triggered.labels,
            poisoned_predicted=said["predicted"],
            target=job.tested.goals(triggered.labels, classes) if target is None else target,
            is_origin_correct=given.origin_holds(predicted == test.labels),
            clean_scores=clean_scores,
            poisoned_scores=triggered_scores,
            threshold=threshold,
        ).to_json()
        if "is_truncated" in said:  # answers of before have it not
            outcome["n_cut"] = int(said["is_truncated"].sum())
        lengths = np.array([len(text.split()) for text in test.texts])
        other = test.labels != goals
        hits = (predicted == goals)[other]
        outcome["floors"] = {
            "other_classes": float(hits.mean()),
            "same_length": same_length_rate([len(text.split()) for text in triggered.texts], lengths[other], hits),
        }
    parts = {step.kind: step.key for step in job.steps} | {name: end.key for name, end in job.ends.items()}
    for name, answers in (("clean", job.clean), ("triggered", job.triggered)):
        if answers is not None and answers.rewritten is not None:
            parts[f"{name}_rewritten"] = answers.rewritten.key
    if job.sources(lab.store) != sources:
        raise DataError("What it reads was made again meanwhile; the same command finishes it.")
    settings = {"cell": asdict(job.cell), "parts": parts, "label_names": test.label_names, "sources": sources}
    return Record.now("cell", settings=settings, seeds={"root": job.cell.seed}, outcome=outcome, data=[test],
                      cost=_cost(job, lab), command="foretaste run")  # fmt: skip


def _cost(job: Job, lab: Lab) -> Cost:
    """What the defence takes: making its parts ready, and what they add to each clean text."""
    readings = (job.clean_scores, job.rival, job.clean.rewritten)
    costs = [each.cost(lab) for each in readings if each is not None]
    if not costs:
        costs.append(Cost(seconds=0.0, seconds_per_text=0.0, forwards_per_text=0.0, stored_bytes=0))
    for step in job.charged:
        place = step.record_place(lab.store)
        made = Record.read(place).cost
        if made is None:
            raise DataError(f"{place} does not say what the training cost, as every one does: delete {place.parent}.")
        costs.append(replace(made, texts=None))
    return sum_of(costs)


def _scores(job: Job, lab: Lab) -> tuple[Array | None, Array | None, float | None]:
    """The guard's scores of clean and of triggered texts, and its threshold."""
    if job.rival is not None:
        found = job.rival.found(lab)
        return found["clean"], found["triggered"], float(np.asarray(found["threshold"]))
    if job.clean_scores is None:
        return None, None, None
    clean = job.clean_scores.found(lab)
    triggered = None if job.triggered_scores is None else job.triggered_scores.found(lab)["scores"]
    return clean["scores"], triggered, job.threshold or float(np.asarray(clean["threshold"]))
