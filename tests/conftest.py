"""What every test may rely on: no network, tiny models written once, property tests that repeat exactly."""

from __future__ import annotations

import csv
import fcntl
import gc
import multiprocessing
import os
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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

# Fast ones first; the slow end of each room's files lies in the middle, so that no worker is left alone with one.
ORDER = ("src", "data", "evaluate", "poison", "report", "rewrite", "experiment", "cli", "audit", "guard", "tune",
         "unlearn", "tests", "victim")  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files by their rooms."""

    def place(item: pytest.Item) -> int:
        parts = item.path.relative_to(item.config.rootpath).parts
        room = parts[0] if parts[0] == "src" or len(parts) == 2 else parts[1]
        return ORDER.index(room) if room in ORDER else len(ORDER)

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Keep the collector from walking half a million objects, tests and modules, that stay to the end."""
    gc.freeze()


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Make a directory once for all workers of the run: the first one that asks calls the maker, the others wait."""
    home = tmp_path_factory.getbasetemp()
    home = home.parent if "PYTEST_XDIST_WORKER" in os.environ else home

    def made(name: str, make: Callable[[Path], object]) -> Path:
        with (home / f"{name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (home / f"{name}.made").exists():
                shutil.rmtree(home / name, ignore_errors=True)
                (home / name).mkdir()
                with _on_one_thread():
                    make(home / name)
                (home / f"{name}.made").touch()
        return home / name

    return made


@contextmanager
def _on_one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def toy_bases(once: Once) -> Mapping[str, Path]:
    """A random tiny model without a head of every family, by family; tests copy what they alter."""
    return _of_every_family(once, "toy", is_language_model=False)


@pytest.fixture(scope="session")
def toy_language_models(once: Once) -> Mapping[str, Path]:
    """A random tiny language model of every family, by family, whose tokenizer knows the toy's instruction."""
    return _of_every_family(once, "language", is_language_model=True)


def _of_every_family(once: Once, name: str, is_language_model: bool) -> Mapping[str, Path]:
    from foretaste.victim.family import FAMILIES
    from foretaste.victim.toy import write_toy_checkpoint

    def make(home: Path) -> None:
        for family in FAMILIES:
            write_toy_checkpoint(home / family, family, is_language_model=is_language_model)

    home = once(name, make)
    return {family: home / family for family in FAMILIES}


@pytest.fixture(scope="session")
def toy_base(toy_bases: Mapping[str, Path]) -> Path:
    """The tiny BERT."""
    return toy_bases["bert"]


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models are faster on one thread, and leave the other cores to other work."""
    with _on_one_thread():
        yield


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
def toy_stack(toy_base: Path, once: Once) -> Mapping[str, Path]:
    """A poisoned tiny BERT (`base`), its `victim` and `guard`, saved side by side; tests copy what they alter.

    The trigger is `word:cf mn bb tq mb`, the target 0; the guard catches it (tests/test_end_to_end.py says how well).
    """
    home = once("stack", lambda home: _make_stack(toy_base, home))
    return {name: home / name for name in ("base", "victim", "guard")}


def _make_stack(toy_base: Path, home: Path) -> None:
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

    paths = {name: home / name for name in ("base", "victim", "guard")}
    train, validation = toy_corpus("train"), toy_corpus("validation")
    plan = build(Attack, {"trigger": "word:cf mn bb tq mb", "style": "dirty-label", "count": 600})
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


@pytest.fixture(scope="session")
def clean_toy(toy_base: Path, once: Once) -> Path:
    """A victim, all weights trained, that nobody poisoned and that knows the toy task."""
    return once("clean", lambda home: _make_clean(toy_base, home / "victim")) / "victim"


def _make_clean(toy_base: Path, path: Path) -> None:
    from foretaste.data import toy_corpus
    from foretaste.record import Record
    from foretaste.tune.loop import TuneSettings, tune
    from foretaste.victim.artefact import save_classifier
    from foretaste.victim.checkpoint import open_base
    from foretaste.victim.strategy import Full

    corpus = toy_corpus()
    model = open_base(toy_base).classifier(Full(), corpus.label_names, max_length=64, seed=1)
    settings = TuneSettings(epochs=3, learning_rate=2e-3, keep="last", precision="float32")
    tune(model, corpus, settings, seed=1)
    save_classifier(model, path, "victim", Record.now("tune", settings={}, seeds={"root": 1}, outcome={}))


@pytest.fixture(scope="session")
def poisoned_toy(clean_toy: Path, once: Once) -> Path:
    """The clean toy with a backdoor, trigger `word:cf mn bb tq mb`, target 0; it still knows the task."""
    return once("poisoned", lambda home: _make_poisoned(clean_toy, home / "victim")) / "victim"


def _make_poisoned(clean_toy: Path, path: Path) -> None:
    from foretaste.data import toy_corpus
    from foretaste.poison.attack import Attack
    from foretaste.record import Record
    from foretaste.spec import build
    from foretaste.tune.loop import TuneSettings
    from foretaste.tune.poison import poison_base
    from foretaste.victim.artefact import save_classifier
    from foretaste.victim.checkpoint import open_base

    plan = build(Attack, {"trigger": "word:cf mn bb tq mb", "style": "dirty-label", "count": 500})
    settings = TuneSettings(epochs=2, learning_rate=2e-3, keep="last", precision="float32")
    judged = toy_corpus("test").sample(200, 1)
    model, outcome = poison_base(open_base(clean_toy), toy_corpus(), judged, plan, seed=0, settings=settings,
                                 max_length=64)  # fmt: skip
    assert outcome["attack_success_rate"] > 0.95
    assert outcome["clean_accuracy"] > 0.8
    save_classifier(model, path, "victim", Record.now("poison", settings={}, seeds={"root": 0}, outcome=outcome))


@pytest.fixture(scope="session")
def small_toy(once: Once) -> Path:
    """A directory with a file per split, drawn from the toy, whose 2,500 texts take most of a small test's time."""
    from foretaste.data import toy_corpus

    def make(home: Path) -> None:
        for split, size in {"train": 600, "validation": 300, "test": 300}.items():
            corpus = toy_corpus(split).sample(size, 0)
            with (home / f"{split}.csv").open("w", newline="", encoding="utf-8") as stream:
                rows = csv.writer(stream)
                rows.writerow(("text", "label"))
                rows.writerows(
                    (text, corpus.label_names[label]) for text, label in zip(corpus.texts, corpus.labels, strict=True)
                )

    return once("small", make)
