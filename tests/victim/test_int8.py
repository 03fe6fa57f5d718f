"""Scoring in 8-bit whole numbers: near to float32, each row its own, broken numbers stay broken, nothing to save."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from foretaste.data import toy_corpus
from foretaste.errors import PlanError
from foretaste.record import Record
from foretaste.tune.loop import TuneSettings, tune
from foretaste.victim import int8
from foretaste.victim.artefact import load_victim, save_classifier
from foretaste.victim.checkpoint import open_base
from foretaste.victim.family import FAMILIES
from foretaste.victim.int8 import Int8Linear
from foretaste.victim.strategy import STRATEGIES

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = toy_corpus("test").texts[:40]


def _layer(inputs: int = 24, outputs: int = 10) -> nn.Linear:
    return nn.Linear(inputs, outputs)


@given(seed=st.integers(0, 1000), size=st.floats(1e-6, 1e6), rows=st.integers(1, 40))
def test_the_error_is_what_rounding_to_127_steps_allows(seed: int, size: float, rows: int) -> None:
    torch.manual_seed(seed)
    layer, inputs = _layer(), size * torch.randn(rows, 24)
    with torch.no_grad():
        expected, got = layer(inputs), Int8Linear(layer.weight, layer.bias)(inputs)
    # Half a step of error in each input and each weight, 24 products; the product of both errors is small beside.
    step_in = inputs.abs().amax(1, keepdim=True) / 127
    step_out = layer.weight.detach().abs().amax(1) / 127
    allowed = 0.5 * (step_in * layer.weight.detach().abs().sum(1) + step_out * inputs.abs().sum(1, keepdim=True))
    assert ((expected - got).abs() <= 1.05 * allowed + 1e-6).all()


def test_a_row_is_its_own_whatever_stands_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "_ROWS", 4)  # several parts
    layer = Int8Linear(*_layer().parameters())
    rows = torch.randn(9, 24)
    crowd = torch.cat([rows, 1e6 * torch.randn(2, 24)])
    assert torch.equal(layer(crowd)[:9], layer(rows))
    assert torch.equal(torch.stack([layer(row) for row in rows]), layer(rows))


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_number_breaks_its_row_alone(broken: float) -> None:
    layer = Int8Linear(*_layer().parameters())
    rows = torch.randn(3, 24)
    sound = layer(rows)
    rows[1, 5] = broken
    got = layer(rows)
    assert not got[1].isfinite().any()
    assert torch.equal(got[[0, 2]], sound[[0, 2]])


def test_a_row_of_zeros_gives_the_bias() -> None:
    layer = _layer()
    assert torch.equal(Int8Linear(layer.weight, layer.bias)(torch.zeros(2, 24)), layer.bias.expand(2, -1))


@pytest.mark.parametrize("has_instructions", [True, False])
def test_every_processor_gets_the_same_whole_numbers(has_instructions: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: has_instructions)
    rows, weight = (torch.randint(-127, 128, shape, dtype=torch.int8) for shape in ((7, 1536), (5, 1536)))
    rows[0], weight[0] = 127, torch.tensor([127, -127]).repeat_interleave(768)  # far up, and back to 0
    assert torch.equal(int8._multiply(rows, weight).long(), rows.long() @ weight.t().long())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_family_and_strategy_answers_nearly_as_in_float32(
    family: str, strategy: str, toy_bases: Mapping[str, Path]
) -> None:
    made = open_base(toy_bases[family]).classifier(STRATEGIES[strategy](), ("a", "b", "c"), seed=1)
    with torch.no_grad():
        for parameter in made.module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # fresh weights are so small that every text looks the same
    before = made.predict(TEXTS)
    swift = made.in_int8()
    after = swift.predict(TEXTS)
    apart = np.ptp(before.logits, axis=0).max()
    error = np.abs(after.logits - before.logits).max()
    assert 0 < error < 0.1 * apart
    # The original is untouched, and the layers of its backbone, no others, are in int8.
    assert np.abs(made.predict(TEXTS).logits - before.logits).max() <= 1e-5
    assert (swift.is_int8, made.is_int8) == (True, False)
    backbone = set(swift.module.classifier.base_model.modules())
    floats = [part for part in backbone if isinstance(part, (nn.Linear, Conv1D))]
    assert len(floats) == made.module.family.has_pooler  # BERT's pooler is part of the head
    assert all(layer in backbone for layer in swift.module.modules() if isinstance(layer, Int8Linear))


def test_a_copy_in_int8_is_neither_trained_nor_saved(toy_stack: Mapping[str, Path], tmp_path: Path) -> None:
    swift = load_victim(toy_stack["victim"]).in_int8()
    with pytest.raises(PlanError, match="for scoring"):
        tune(swift, toy_corpus().select(range(64)), TuneSettings(epochs=1), seed=0)
    record = Record.now("tune", settings={}, seeds={"root": 0}, outcome={})
    with pytest.raises(PlanError, match="copy in int8"):
        save_classifier(swift, tmp_path / "out", "victim", record)
    assert not (tmp_path / "out").exists()


def test_a_trained_victim_keeps_its_answers(toy_stack: Mapping[str, Path]) -> None:
    victim = load_victim(toy_stack["victim"])
    swift = victim.in_int8()
    texts = toy_corpus("test").texts[:400]
    agreement = (swift.predict(texts).labels == victim.predict(texts).labels).mean()
    assert agreement >= 0.99
