"""What every test may rely on: no network, tiny models written once, property tests that repeat exactly."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: a download fails at once
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # tests start processes; the tokenizers warn if they had threads

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
