"""A text's logits are its own: neighbours, order, batch size and padding never reach them (promise P2)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from foretaste.data import toy_corpus
from foretaste.victim.batch import pad
from foretaste.victim.checkpoint import open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.family import FAMILIES
from foretaste.victim.strategy import STRATEGIES

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-5
LABELS = ("bad", "so so", "good")
TEXTS = (
    *toy_corpus("test").texts[:8],
    "",
    " ",
    "good",
    "cf",
    "bad " * 400,
    "Ünï ✓ 漢字 \u200b\U0001f9d1\u200d\U0001f680",
    "\ud800 \x00",
)
WORDS = st.sampled_from(sorted({word for text in TEXTS[:8] for word in text.split()}))
ANY_TEXT = st.one_of(
    st.just(""),
    WORDS,
    st.text(st.characters(codec=None, exclude_categories=()), max_size=40),
    st.lists(WORDS, min_size=2, max_size=30).map(" ".join),
    st.tuples(WORDS, st.integers(100, 300)).map(lambda pair: f"{pair[0]} " * pair[1]),
)
ALL = [pytest.param((family, name), id=f"{family}-{name}") for family, name in product(FAMILIES, STRATEGIES)]


@pytest.fixture(scope="module", params=ALL)
def classifier(request: pytest.FixtureRequest, toy_bases: Mapping[str, Path]) -> Classifier:
    """A tiny classifier whose answers depend strongly on its text, its prompt and its adapter."""
    family, strategy = request.param
    made = open_base(toy_bases[family]).classifier(STRATEGIES[strategy](), LABELS, seed=1)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.module.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3, generator=draw)
            elif parameter.dim() > 1:
                parameter.mul_(8)  # fresh weights are so small that every text looks the same
    return made


@pytest.fixture(scope="module")
def alone(classifier: Classifier) -> NDArray[np.float32]:
    """The logits of each of TEXTS, read alone."""
    return classifier.predict(TEXTS, batch_size=1).logits


def _distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.abs(one - other).max())


def test_the_model_can_tell_the_texts_apart(alone: NDArray[np.float32]) -> None:
    """Else everything below would hold for a model that ignores its input."""
    assert np.ptp(alone, axis=0).max() > 1_000 * TOLERANCE
    assert np.isfinite(alone).all()


@pytest.mark.parametrize("batch_size", [4, 64])
def test_batch_size_and_order_do_not_matter(
    classifier: Classifier, alone: NDArray[np.float32], batch_size: int
) -> None:
    order = np.random.default_rng(batch_size).permutation(len(TEXTS))
    predictions = classifier.predict([TEXTS[i] for i in order], batch_size=batch_size)
    assert _distance(predictions.logits, alone[order]) <= TOLERANCE


def test_features_do_not_depend_on_neighbours_either(classifier: Classifier) -> None:
    together = classifier.predict(TEXTS, batch_size=64).features
    separate = classifier.predict(TEXTS, batch_size=1).features
    assert _distance(together, separate) <= TOLERANCE * max(1.0, float(np.abs(separate).max()))


def test_columns_of_padding_do_not_matter(classifier: Classifier, alone: NDArray[np.float32]) -> None:
    """The mask alone says what is text, whatever the pad id and however much of it there is."""
    encoded = classifier.encode(TEXTS)
    with torch.inference_mode():
        for width, pad_id in ((0, 0), (3, 0), (3, 7)):
            ids, mask = pad([row[: 128 - 5 - width] for row in encoded.ids], torch.device("cpu"))
            ids = torch.nn.functional.pad(ids, (0, width))
            mask = torch.nn.functional.pad(mask, (0, width))
            ids = torch.where(mask.bool(), ids, pad_id)
            short = [i for i, row in enumerate(encoded.ids) if len(row) <= 128 - 5 - width]
            logits = classifier.module(ids, mask).logits.numpy()
            assert _distance(logits[short], alone[short]) <= TOLERANCE


def test_padding_settings_of_the_tokenizer_do_not_matter(
    toy_bases: Mapping[str, Path], classifier: Classifier, alone: NDArray[np.float32]
) -> None:
    tokenizer, config = classifier.tokenizer, classifier.module.classifier.config
    before = tokenizer.pad_token, config.pad_token_id
    filler = tokenizer.pad_token or tokenizer.eos_token
    # RoBERTa counts its positions from the configuration's pad id, which is thus part of the model.
    numbers = [config.pad_token_id] * 3 if config.model_type == "roberta" else [None, 0, 5]
    try:
        for side, token, number in zip(("left", "right", "left"), (None, filler, filler), numbers, strict=True):
            tokenizer.padding_side, tokenizer.pad_token, config.pad_token_id = side, token, number
            assert _distance(classifier.predict(TEXTS, batch_size=64).logits, alone) <= TOLERANCE
    finally:
        tokenizer.pad_token, config.pad_token_id = before


def test_a_text_read_alone_gets_what_peft_itself_gives(classifier: Classifier, alone: NDArray[np.float32]) -> None:
    assert _distance(_peft_alone(classifier), alone) <= TOLERANCE


@settings(max_examples=15)  # times 35 models: 525 batches
@given(data=st.data())
def test_any_batch_of_any_texts(classifier: Classifier, data: st.DataObject) -> None:
    texts = data.draw(st.lists(ANY_TEXT, min_size=2, max_size=6))
    order = data.draw(st.permutations(range(len(texts))))
    batch_size = data.draw(st.integers(2, 6))
    separate = classifier.predict(texts, batch_size=1)
    together = classifier.predict([texts[i] for i in order], batch_size=batch_size)
    assert _distance(together.logits, separate.logits[order]) <= TOLERANCE
    assert together.is_truncated.tolist() == separate.is_truncated[order].tolist()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_peft_by_itself_would_not_do(family: str, toy_bases: Mapping[str, Path]) -> None:
    """Why there is a forward pass of our own: with soft prompts PEFT reads a causal model's pad tokens."""
    made = open_base(toy_bases[family]).classifier(STRATEGIES["prompt_tuning"](), LABELS)
    with torch.no_grad():
        for parameter in made.module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    made.module.classifier.config.pad_token_id = 0
    ids, mask = pad(made.encode(TEXTS).ids, torch.device("cpu"))
    with torch.inference_mode():
        batched = made.module.model(input_ids=ids, attention_mask=mask).logits.numpy()
    assert _distance(batched, _peft_alone(made)) > 1e-3


def _peft_alone(classifier: Classifier) -> NDArray[np.float32]:
    """Logits of TEXTS from the wrapped model's own forward pass, one text at a time: nothing is padded."""
    model: Any = classifier.module.model
    short_cuts = [part for part in model.modules() if "forward" in vars(part)]  # ours, over the class's method
    ours = [vars(part).pop("forward") for part in short_cuts]
    try:
        with torch.inference_mode():
            rows = [
                model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].numpy()
                for ids in (torch.tensor([row]) for row in classifier.encode(TEXTS).ids)
            ]
    finally:
        for part, forward in zip(short_cuts, ours, strict=True):
            part.forward = forward
    assert len(short_cuts) == (classifier.module.family.reads == "first")
    return np.stack(rows)


@pytest.mark.real
def test_minilm_does_not_care_either_nor_about_threads() -> None:
    made = open_base("minilm").classifier(STRATEGIES["lora"]())
    texts = toy_corpus("test").texts[:12]
    separate = made.predict(texts, batch_size=1).logits
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert _distance(made.predict(texts, batch_size=12).logits, separate) <= TOLERANCE
    finally:
        torch.set_num_threads(before)


def test_shown_tokens_change_no_answer_and_their_mean_is_the_texts_own(
    classifier: Classifier, alone: NDArray[np.float32]
) -> None:
    with classifier.module.showing_tokens():
        said = [classifier.predict(TEXTS, batch_size=size, is_pooled=True) for size in (1, 64)]
        with torch.inference_mode():
            output = classifier.module(*pad(classifier.encode(TEXTS[:3]).ids, classifier.module.device))
    assert all(_distance(each.logits, alone) < TOLERANCE for each in said)
    assert _distance(said[0].features, said[1].features) < TOLERANCE
    lengths = classifier.encode(TEXTS[:3]).lengths.tolist()
    by_hand = torch.stack([tokens[:length].mean(dim=0) for tokens, length in zip(output.tokens, lengths, strict=True)])
    assert _distance(by_hand.numpy(), said[0].features[:3]) < TOLERANCE
    assert classifier.module(*pad(classifier.encode(TEXTS[:1]).ids, classifier.module.device)).tokens is None
