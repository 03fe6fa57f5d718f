"""What every test may rely on: no network, tiny models written once, property tests that repeat exactly."""

from __future__ import annotations

import multiprocessing
import os
import textwrap
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: a download fails at once
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # tests start processes; the tokenizers warn if they had threads
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: two workers on two cores have one each

# `pytest --hypothesis-profile=long` looks harder.
settings.register_profile("foretaste", deadline=None, max_examples=50, derandomize=True)
settings.register_profile("long", deadline=None, max_examples=500)
settings.load_profile("foretaste")


@pytest.fixture(scope="session")
def toy_bases(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A random tiny model without a head of every family, by family; tests copy what they alter."""
    from foretaste.victim.family import FAMILIES
    from foretaste.victim.toy import write_toy_checkpoint

    home = tmp_path_factory.mktemp("toy")
    return {family: write_toy_checkpoint(home / family, family) for family in FAMILIES}


@pytest.fixture(scope="session")
def toy_language_models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A random tiny language model of every family, by family, whose tokenizer knows the toy's instruction."""
    from foretaste.victim.family import FAMILIES
    from foretaste.victim.toy import write_toy_checkpoint

    home = tmp_path_factory.mktemp("language")
    return {family: write_toy_checkpoint(home / family, family, is_language_model=True) for family in FAMILIES}


@pytest.fixture(scope="session")
def toy_base(toy_bases: Mapping[str, Path]) -> Path:
    """The tiny BERT."""
    return toy_bases["bert"]


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models are faster on one thread, and leave the other cores to other work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def start_process() -> Callable[..., BaseProcess]:
    """Start Python source in a process of its own, with the given names defined; it may be killed or limited.

    It is forked from a clean process that has imported the library: that takes a tenth of a second, not five.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["foretaste.experiment.run", "foretaste.data.toy"])

    def start(code: str, **names: object) -> BaseProcess:
        process = context.Process(target=exec, args=(textwrap.dedent(code), names), daemon=True)
        process.start()
        return process

    return start


@pytest.fixture(scope="session")
def toy_stack(toy_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A poisoned tiny BERT (`base`), its `victim` and `guard`, saved side by side; tests copy what they alter.

    The trigger is `word:cf mn bb tq mb`, the target 0; the guard catches it (tests/test_end_to_end.py says how well).
    """
    import torch

    from foretaste.data import toy_corpus
    from foretaste.guard.artefact import save_guard
    from foretaste.guard.psim import PSIM_STRATEGIES, Psim
    from foretaste.poison.attack import Attack
    from foretaste.record import Record
    from foretaste.spec import build
    from foretaste.tune.loop import TuneSettings, tune
    from foretaste.tune.poison import poison_base
    from foretaste.victim.artefact import save_classifier
    from foretaste.victim.checkpoint import open_base
    from foretaste.victim.strategy import Lora

    home = tmp_path_factory.mktemp("stack")
    paths = {name: home / name for name in ("base", "victim", "guard")}
    train, validation = toy_corpus("train"), toy_corpus("validation")
    plan = build(Attack, {"trigger": "word:cf mn bb tq mb", "style": "dirty-label", "count": 600})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        settings = TuneSettings(epochs=2, learning_rate=1e-3, keep="last", precision="float32")
        poisoned, outcome = poison_base(open_base(toy_base), train, validation.sample(300, 0), plan, seed=0,
                                        settings=settings, max_length=64)  # fmt: skip
        record = Record.now("poison", settings={}, seeds={"root": 0}, outcome=outcome)
        save_classifier(poisoned, paths["base"], "base", record)
        base = open_base(paths["base"])
        victim = base.classifier(Lora(), train.label_names, max_length=64)
        tune(victim, train, TuneSettings(epochs=2, learning_rate=1e-2, precision="float32"), seed=0)
        save_classifier(victim, paths["victim"], "victim", record)
        psim = Psim(strategy=PSIM_STRATEGIES["lora"], dose=0.1, precision="float32")
        guard = psim.fit(base, train, validation, max_length=64)
        save_guard(guard, paths["guard"], record)
    finally:
        torch.set_num_threads(threads)
    return paths


@pytest.fixture(scope="session")
def clean_toy(toy_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A victim, all weights trained, that nobody poisoned and that knows the toy task."""
    import torch

    from foretaste.data import toy_corpus
    from foretaste.record import Record
    from foretaste.tune.loop import TuneSettings, tune
    from foretaste.victim.artefact import save_classifier
    from foretaste.victim.checkpoint import open_base
    from foretaste.victim.strategy import Full

    path, corpus = tmp_path_factory.mktemp("clean") / "victim", toy_corpus()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = open_base(toy_base).classifier(Full(), corpus.label_names, max_length=64, seed=1)
        settings = TuneSettings(epochs=3, learning_rate=2e-3, keep="last", precision="float32")
        tune(model, corpus, settings, seed=1)
        save_classifier(model, path, "victim", Record.now("tune", settings={}, seeds={"root": 1}, outcome={}))
    finally:
        torch.set_num_threads(threads)
    return path


@pytest.fixture(scope="session")
def poisoned_toy(clean_toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clean toy with a backdoor, trigger `word:cf mn bb tq mb`, target 0; it still knows the task."""
    import torch

    from foretaste.data import toy_corpus
    from foretaste.poison.attack import Attack
    from foretaste.record import Record
    from foretaste.spec import build
    from foretaste.tune.loop import TuneSettings
    from foretaste.tune.poison import poison_base
    from foretaste.victim.artefact import save_classifier
    from foretaste.victim.checkpoint import open_base

    path = tmp_path_factory.mktemp("poisoned") / "victim"
    plan = build(Attack, {"trigger": "word:cf mn bb tq mb", "style": "dirty-label", "count": 500})
    settings = TuneSettings(epochs=2, learning_rate=2e-3, keep="last", precision="float32")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        judged = toy_corpus("test").sample(200, 1)
        model, outcome = poison_base(open_base(clean_toy), toy_corpus(), judged, plan, seed=0, settings=settings,
                                     max_length=64)  # fmt: skip
        assert outcome["attack_success_rate"] > 0.95
        assert outcome["clean_accuracy"] > 0.8
        save_classifier(model, path, "victim", Record.now("poison", settings={}, seeds={"root": 0}, outcome=outcome))
    finally:
        torch.set_num_threads(threads)
    return path
