"""The second opinion: by hand, behind its own victim only, whole on disk, and against a backdoor without PSIM."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foretaste.data import toy_corpus
from foretaste.data.corpus import Corpus
from foretaste.errors import DataError, GuardError, ModelError, PlanError
from foretaste.experiment.evaluation import evaluate
from foretaste.files import write_json
from foretaste.guard.artefact import load_guard, load_psim, save_guard
from foretaste.guard.guard import Reason
from foretaste.guard.guarded import GuardedClassifier
from foretaste.guard.opinion import Opinion, OpinionGuard, Trusted
from foretaste.guard.psim import Psim
from foretaste.guard.psim_guard import PsimGuard
from foretaste.guard.second_opinion import SecondOpinion
from foretaste.poison.trigger import parse_trigger
from foretaste.record import Record
from foretaste.tune.loop import TuneSettings, tune
from foretaste.victim.artefact import load_victim
from foretaste.victim.checkpoint import open_base
from foretaste.victim.classifier import Classifier, Predictions
from foretaste.victim.manifest import seal
from foretaste.victim.module import Output
from foretaste.victim.strategy import Full, Lora, PTuningV2

pytestmark = pytest.mark.usefixtures("one_thread")

PLAN = SecondOpinion(epochs=4, fewest_steps=1, learning_rate=3e-3, precision="float32", frr=0.1)
RECORD = Record.now("guard", settings={}, seeds={"root": 0}, outcome={})
TEXTS = (*toy_corpus("test").texts[:20], "", "good", "bad " * 200)


@pytest.fixture(scope="module")
def victim(toy_stack: Mapping[str, Path]) -> Classifier:
    """A victim whose base was poisoned."""
    return load_victim(toy_stack["victim"])


@pytest.fixture(scope="module")
def opinion(toy_base: Path, victim: Classifier) -> Opinion:
    """What a model fine-tuned from the same architecture, without the poison, thinks of it."""
    return PLAN.consult([open_base(toy_base)], victim, toy_corpus())


@pytest.fixture(scope="module")
def guard(opinion: Opinion, victim: Classifier) -> OpinionGuard:
    """The opinion as a guard of its own."""
    return PLAN.fit(opinion, victim, toy_corpus("validation"))


@pytest.fixture(scope="module")
def joint(toy_stack: Mapping[str, Path], opinion: Opinion, victim: Classifier) -> PsimGuard:
    """PSIM and the opinion as one guard."""
    train, validation = toy_corpus("train"), toy_corpus("validation")
    psim = Psim(dose=0.1, precision="float32").fit(open_base(toy_stack["base"]), train, validation, max_length=64)
    return psim.with_victim(victim, validation, opinion=opinion)


def _said(logits: Any) -> Predictions:
    rows = np.asarray(logits, dtype=np.float32)
    return Predictions(rows, np.zeros((len(rows), 2), np.float32), np.zeros(len(rows), dtype=bool))


class _Fixed:
    """A trusted model that gives the same logits to every text."""

    def __init__(self, *logits: float) -> None:
        self.logits = logits

    def scorer(self, scoring: str) -> Callable[..., Predictions]:
        return lambda texts: _said([self.logits] * len(texts))


def _fixed(*members: tuple[float, ...]) -> Opinion:
    models: Any = [_Fixed(*logits) for logits in members]
    return Opinion(tuple(Trusted(model, 2.0, 0.9) for model in models), np.zeros(3), "")


def test_the_score_by_hand() -> None:
    said = _said([[np.log(0.8), np.log(0.2)], [np.log(0.1), np.log(0.9)]])
    one = _fixed((2 * np.log(0.3), 2 * np.log(0.7)))  # divided by the temperature: 0.3 and 0.7
    np.testing.assert_allclose(one.ratio(said, ["a", "b"]), np.log10([0.8 / 0.3, 0.9 / 0.7]), rtol=1e-6)
    two = _fixed((2 * np.log(0.3), 2 * np.log(0.7)), (0.0, 0.0))
    expected = np.log10([0.8 / np.sqrt(0.3 * 0.5), 0.9 / np.sqrt(0.7 * 0.5)])
    np.testing.assert_allclose(two.ratio(said, ["a", "b"]), expected, rtol=1e-6)


def test_a_victim_with_an_answer_for_which_nobody_vouches_is_surprising(victim: Classifier) -> None:
    opinion = replace(_fixed((9.0, -9.0)), clean=np.linspace(0.0, 0.5, 99))
    agreed, denied = opinion.surprise(victim, _said([[3, -3], [-3, 3]]), ["a", "b"])
    assert agreed == 0
    assert denied > 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_number_from_either_side_is_no_score(value: float) -> None:
    assert np.isnan(_fixed((0.0, 1.0)).ratio(_said([[value, 0.0]]), ["a"])).all()
    assert np.isnan(_fixed((0.0, 1.0), (value, 0.0)).ratio(_said([[1.0, 0.0]]), ["a"])).all()


def test_a_backdoor_without_psim(guard: OpinionGuard, victim: Classifier) -> None:
    """The trusted model of the toy is right on 86 % of texts, which bounds what it can object to."""
    test, trigger = toy_corpus("test").sample(800, 0), parse_trigger("word:cf mn bb tq mb")
    found = evaluate(victim, guard, test, trigger).outcome
    assert found.attack_success_rate.value > 0.9
    assert found.guarded is not None
    assert found.guarded.attack_success_rate.value < 0.65
    assert found.guarded.false_rejection_rate.value < 0.12


def test_both_together_refuse_what_either_finds_surprising(joint: PsimGuard, victim: Classifier) -> None:
    assert joint.opinion is not None
    texts = toy_corpus("test").texts[:50]
    expected = np.maximum(
        joint.judge(joint.predict(texts)), joint.opinion.surprise(victim, victim.predict(texts), texts)
    )
    np.testing.assert_allclose(GuardedClassifier(victim, joint).score(texts), expected, rtol=1e-4, atol=1e-5)
    assert joint.calibration is not None
    assert joint.calibration.threshold == joint.threshold


def test_verdicts_and_scores_say_the_same(guard: OpinionGuard, joint: PsimGuard, victim: Classifier) -> None:
    triggered = [f"{text} cf mn bb tq mb" for text in TEXTS[:10]]
    for tried in (guard, joint):
        guarded = GuardedClassifier(victim, tried)
        flagged = [verdict.flagged for verdict in guarded([*TEXTS, *triggered])]
        assert flagged == (~(guarded.score([*TEXTS, *triggered]) <= tried.threshold)).tolist()
        assert sum(flagged[-10:]) > sum(flagged[:20])


def test_who_is_refused_by_psim_is_shown_to_nobody_else(joint: PsimGuard, victim: Classifier) -> None:
    assert joint.opinion is not None
    none = GuardedClassifier(victim, replace(joint, threshold=1e-12))
    seen: list[int] = []
    model = joint.opinion.members[0].classifier.module
    with model.register_forward_hook(lambda *_: seen.append(1)), victim.module.register_forward_hook(
        lambda *_: seen.append(1)
    ):  # fmt: skip
        assert all(verdict.flagged for verdict in none(["cf mn bb tq mb " + text for text in TEXTS[:3]]))
    assert not seen


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_trusted_model_that_gives_no_number_lets_nothing_through(
    joint: PsimGuard, guard: OpinionGuard, victim: Classifier, value: float
) -> None:
    def spoil(_: Any, __: Any, output: Output) -> Output:
        return Output(output.features, output.logits.index_fill(1, torch.tensor([0]), value))

    for tried in (joint, guard):
        assert tried.opinion is not None
        with tried.opinion.members[0].classifier.module.register_forward_hook(spoil):
            verdicts = GuardedClassifier(victim, tried)(TEXTS)
        assert all(verdict.flagged and verdict.label is None for verdict in verdicts)
        assert Reason.SCORE_NOT_FINITE in {verdict.reason for verdict in verdicts}


def test_it_answers_behind_its_own_victim_only(
    toy_stack: Mapping[str, Path], guard: OpinionGuard, joint: PsimGuard, victim: Classifier
) -> None:
    GuardedClassifier(victim.in_int8(), guard)
    stranger = load_victim(toy_stack["victim"])
    with torch.no_grad():
        next(p for n, p in stranger.module.named_parameters() if "lora_B" in n or "modules_to_save" in n).add_(1e-3)
    for tried in (guard, joint):
        with pytest.raises(GuardError) as caught:
            GuardedClassifier(stranger, tried)
        assert caught.value.code == "foreign_victim"
    for ask in (joint.check, joint.score):
        with pytest.raises(GuardError) as caught:
            ask(TEXTS)
        assert caught.value.code == "needs_victim"


def test_other_labels_and_a_shorter_sight_are_refused(opinion: Opinion, victim: Classifier) -> None:
    inside = opinion.members[0]
    for change, code in (({"label_names": ("a", "b")}, "label_mismatch"), ({"max_length": 8}, "short_sight")):
        other = replace(opinion, members=(replace(inside, classifier=replace(inside.classifier, **change)),))
        with pytest.raises(GuardError) as caught:
            other.refuse_misfit(victim)
        assert caught.value.code == code


def test_what_it_cannot_be_made_of(opinion: Opinion, victim: Classifier, toy_base: Path, joint: PsimGuard) -> None:
    with pytest.raises(PlanError, match="name one"):
        PLAN.consult([], victim, toy_corpus())
    with pytest.raises(DataError, match="a tenth"):
        PLAN.consult([open_base(toy_base)], victim, toy_corpus().select(range(300)))
    with pytest.raises(GuardError) as caught:
        PLAN.fit(opinion, victim, toy_corpus("validation").select(range(20)))
    assert caught.value.code == "too_few_calibration_texts"
    with pytest.raises(PlanError, match="of the view"):
        replace(joint, view="confidence", looks=None, opinion=None).with_victim(victim, _few(), opinion=opinion)


def _few() -> Corpus:
    return toy_corpus("validation").select(range(400))


def test_a_victim_that_is_fine_tuned_already_is_stored_whole(
    toy_base: Path, victim: Classifier, tmp_path: Path
) -> None:
    other = open_base(toy_base).classifier(Lora(), victim.label_names, max_length=64)
    tune(other, toy_corpus(), TuneSettings(epochs=2, learning_rate=1e-2, precision="float32"), seed=0)
    made = PLAN.consult([other], victim, toy_corpus())
    inside = made.members[0].classifier
    assert inside.strategy == Full()
    np.testing.assert_allclose(inside.predict(TEXTS).logits, other.predict(TEXTS).logits, atol=1e-4)
    save_guard(PLAN.fit(made, victim, toy_corpus("validation")), tmp_path / "guard", RECORD)
    load_guard(tmp_path / "guard")
    tuned = open_base(toy_base).classifier(PTuningV2(), victim.label_names, max_length=64)
    with pytest.raises(PlanError, match="stored whole"):
        PLAN.consult([tuned], victim, toy_corpus())


def test_who_stands_on_the_suspect_weights_is_not_asked(toy_stack: Mapping[str, Path], victim: Classifier) -> None:
    for suspect in (victim, open_base(toy_stack["base"])):
        with pytest.raises(GuardError) as caught:
            PLAN.consult([suspect], victim, toy_corpus())
        assert caught.value.code == "not_trusted"


def test_what_the_victim_does_not_read_says_nothing_for_its_answer(opinion: Opinion, victim: Classifier) -> None:
    short = replace(victim, max_length=8)
    head = "The soup was bland and the service rude ."
    texts = [f"{head} Still a lovely , moving , brilliant evening .", f"{head} Dull , stale and greasy ."]
    said = short.predict(texts)
    assert said.is_truncated.all()
    first, second = opinion.surprise(short, said, texts)
    assert first == second
    assert len(set(opinion.ratio(said, texts))) == 2  # the trusted model would have read on


def test_scores_are_ranked_against_what_the_victim_reads_of_clean_texts(opinion: Opinion, victim: Classifier) -> None:
    short, corpus = replace(victim, max_length=8), toy_corpus().select(range(600))
    made = PLAN.consult([opinion.members[0].classifier], short, corpus)
    texts = corpus.partition([540, 60], 0)[1].texts
    said = short.predict(texts)
    assert said.is_truncated.mean() > 0.5
    read = [text[:end] for text, end in zip(texts, short.reach(texts).tolist(), strict=True)]
    np.testing.assert_allclose(made.clean, made.ratio(said, read), rtol=1e-4, atol=1e-5)
    assert np.abs(made.ratio(said, texts) - made.clean).max() > 0.1  # the trusted model would have read on


@pytest.mark.parametrize("kind", ["alone", "with PSIM"])
def test_what_was_saved_is_what_is_loaded(
    kind: str, guard: OpinionGuard, joint: PsimGuard, victim: Classifier, toy_stack: Mapping[str, Path], tmp_path: Path
) -> None:
    made = guard if kind == "alone" else joint
    shutil.copytree(toy_stack["base"], tmp_path / "base")
    save_guard(made, tmp_path / "guard", RECORD)
    loaded = load_guard(tmp_path / "guard")
    assert type(loaded) is type(made)
    assert (loaded.threshold, loaded.calibration, loaded.title) == (made.threshold, made.calibration, made.title)
    before, after = (GuardedClassifier(victim, found).score(TEXTS) for found in (made, loaded))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    if kind == "alone":
        with pytest.raises(GuardError, match="without PSIM"):
            load_psim(tmp_path / "guard")


def test_an_altered_opinion_is_refused(joint: PsimGuard, tmp_path: Path) -> None:
    save_guard(joint, tmp_path / "guard", RECORD)

    def refusal(alter: Callable[[Path], None]) -> str:
        place = Path(shutil.copytree(tmp_path / "guard", tmp_path / "altered"))
        alter(place)
        with pytest.raises((GuardError, ModelError)) as caught:
            load_guard(place)
        shutil.rmtree(place)
        return caught.value.code

    def entry(**changes: Any) -> Callable[[Path], None]:
        def alter(place: Path) -> None:
            manifest = json.loads((place / "foretaste.json").read_text())
            manifest["guard"]["opinion"] |= changes
            (place / "foretaste.json").write_text(json.dumps(seal(manifest)))

        return alter

    def write(name: str) -> Callable[[Path], None]:
        return lambda place: write_json(place / name, {})

    assert refusal(lambda p: (p / "opinion.safetensors").unlink()) == "missing_file"
    assert refusal(write("trusted-0/config.json")) == "digest_mismatch"
    assert refusal(write("trusted-0/more.json")) == "unlisted_file"
    assert refusal(write("trusted-0/more.pkl")) == "pickle"
    assert refusal(lambda p: (p / "trusted-1").mkdir()) == "unlisted_file"
    assert refusal(lambda p: shutil.rmtree(p / "trusted-0")) == "missing_file"
    trusted = {"directory": "trusted-0", "temperature": 1.0, "accuracy": 0.9}
    assert refusal(entry(trusted=[])) == "bad_threshold"
    assert refusal(entry(trusted=[trusted | {"directory": "../base"}])) == "bad_threshold"
    assert refusal(entry(trusted=[trusted | {"temperature": 0.0}])) == "bad_threshold"
    assert refusal(entry(victim="somebody")) == "bad_threshold"
    assert refusal(entry(more=1)) == "unknown_key"


def test_an_interrupted_training_continues(toy_base: Path, victim: Classifier, tmp_path: Path) -> None:
    corpus = toy_corpus().select(range(600))
    base = open_base(toy_base)
    places = [tmp_path / "one.partial", tmp_path / "two.partial"]
    with _counting_steps() as steps:
        whole = PLAN.consult([base, base], victim, corpus)
    with pytest.MonkeyPatch.context() as patch, _counting_steps() as first:
        patch.setattr("foretaste.guard.second_opinion._temperature", _stop)  # after the first of the two
        with pytest.raises(KeyboardInterrupt):
            PLAN.consult([base, base], victim, corpus, checkpoints=places)
    with _counting_steps() as rest:
        again = PLAN.consult([base, base], victim, corpus, checkpoints=places)
    assert len(first) == len(rest) == len(steps) // 2 > 0
    np.testing.assert_array_equal(again.clean, whole.clean)


@contextmanager
def _counting_steps() -> Iterator[list[int]]:
    """A list that grows by one with every step of an optimiser."""
    steps: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        step = torch.optim.AdamW.step

        def count(*arguments: Any, **options: Any) -> Any:
            steps.append(1)
            return step(*arguments, **options)

        patch.setattr(torch.optim.AdamW, "step", count)
        yield steps


def _stop(*_: Any) -> float:
    raise KeyboardInterrupt
