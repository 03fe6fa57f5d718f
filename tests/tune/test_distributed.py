"""Two processes started together train what one would."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from foretaste.data import toy_corpus
from foretaste.tune.loop import TuneSettings, tune
from foretaste.victim.checkpoint import open_base
from foretaste.victim.strategy import Lora

pytestmark = pytest.mark.usefixtures("one_thread")

# Texts, and settings that leave the processes unequal shares: last batches of three texts (two and one) and of one
# (one and none), and more passes than there are texts.
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "plain": (20, {"batch_size": 10}),
    "uneven": (21, {"batch_size": 6, "accumulation": 2}),
    "one process idle": (13, {"batch_size": 6, "accumulation": 4}),
}

TRAIN = """
    import json, os
    from safetensors.torch import save_file
    import torch

    os.environ |= environment
    from accelerate import PartialState
    from foretaste.data import toy_corpus
    from foretaste.tune.loop import TuneSettings, tune
    from foretaste.victim.checkpoint import open_base
    from foretaste.victim.strategy import Lora

    torch.set_num_threads(1)
    rank = environment["RANK"]
    for name, (texts, settings) in cases.items():
        classifier = open_base(base).classifier(Lora(dropout=0.0), seed=1)
        corpus, validation = toy_corpus().select(range(texts)), toy_corpus("validation").select(range(20))
        result = tune(classifier, corpus, TuneSettings(**settings), seed=4, validation=validation)
        save_file({key: p.detach().contiguous() for key, p in classifier.trainable.items()}, out / f"{name}-{rank}")
        outcome = [PartialState().num_processes, result.steps, result.texts, result.losses]
        (out / f"{name}-{rank}.json").write_text(json.dumps(outcome))
    torch.distributed.destroy_process_group()
    """


@pytest.fixture(scope="module")
def base_without_dropout(toy_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT, whose steps are the same however their texts are shared out."""
    path = tmp_path_factory.mktemp("distributed") / "base"
    path.mkdir()
    for file in toy_base.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    config = json.loads((path / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def launched(
    base_without_dropout: Path, tmp_path_factory: pytest.TempPathFactory, start_process: Callable[..., BaseProcess]
) -> Path:
    """What two processes wrote, started with what `torchrun` tells its processes (and `accelerate launch` through it).

    Told `--cpu --num_processes 2`, `accelerate launch` 1.15 itself starts a single process.
    """
    out = tmp_path_factory.mktemp("launched")
    cases = {name: (texts, _settings(fields)) for name, (texts, fields) in CASES.items()}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    processes = [
        start_process(
            TRAIN,
            base=base_without_dropout,
            out=out,
            cases=cases,
            environment=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]
    deadline = time.monotonic() + 120
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0, 0], "None: the processes wait for each other"
    return out


def _settings(fields: dict[str, Any]) -> dict[str, Any]:
    return {"epochs": 2, "learning_rate": 3e-3, "precision": "float32", **fields}


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_what_one_does(launched: Path, base_without_dropout: Path, name: str) -> None:
    texts, fields = CASES[name]
    classifier = open_base(base_without_dropout).classifier(Lora(dropout=0.0), seed=1)
    before = {key: p.detach().clone() for key, p in classifier.trainable.items()}
    validation = toy_corpus("validation").select(range(20))
    corpus = toy_corpus().select(range(texts))
    result = tune(classifier, corpus, TuneSettings(**_settings(fields)), seed=4, validation=validation)
    for rank in (0, 1):
        processes, steps, read, losses = json.loads((launched / f"{name}-{rank}.json").read_text())
        assert (processes, steps, read) == (2, result.steps, result.texts)
        assert losses == pytest.approx(result.losses, abs=1e-5)
        weights = load_file(launched / f"{name}-{rank}")
        for key, parameter in classifier.trainable.items():
            assert float((weights[key] - parameter.detach()).abs().max()) <= 1e-5
    assert max(float((p.detach() - before[key]).abs().max()) for key, p in classifier.trainable.items()) > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_both_processes_end_with_the_same_weights(launched: Path, name: str) -> None:
    one, other = (load_file(launched / f"{name}-{rank}") for rank in (0, 1))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
