"""What every rewriter promises."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.rewrite.conftest import write_causal
from transformers import AutoModelForSeq2SeqLM

from foretaste.data import toy_corpus
from foretaste.errors import ModelError
from foretaste.experiment.store import digest_of
from foretaste.rewrite.back_translation import BackTranslation
from foretaste.rewrite.checkpoint import open_tool
from foretaste.rewrite.methods import REWRITERS
from foretaste.rewrite.onion import Onion
from foretaste.rewrite.rewriter import Rewriting
from foretaste.rewrite.scpd import Scpd
from foretaste.rewrite.seq2seq import Seq2Seq
from foretaste.spec import build

pytestmark = pytest.mark.usefixtures("one_thread")

TRAIN, VALIDATION = toy_corpus().sample(300, 0), toy_corpus("validation").sample(100, 0)
ODD = [
    "", "  ", "one", "the film was good", "a plain text about a film", "long " * 300, "\ud800 broken", "ÄÖ 漢字 👍",
    "a\nb", "the film was good", "...", "[x] ^y$ <z>",
]  # fmt: skip


@pytest.fixture(scope="module")
def specs(translator: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Rewriting]:
    """Every rewriter, and those that use a model with a small one, too."""
    causal = write_causal(tmp_path_factory.mktemp("causal"), "gpt2")
    return {
        "onion": Onion(),
        "onion by a causal model": Onion(model=str(causal), max_length=64),
        "back_translation": BackTranslation(there=str(translator), back=str(translator), beams=2),
        "scpd": Scpd(),
        "scpd by a model": Scpd(model=str(translator), beams=1),
    }


NAMES = ["onion", "onion by a causal model", "back_translation", "scpd", "scpd by a model"]


@pytest.mark.parametrize("name", NAMES)
def test_length_and_order_are_kept_whatever_the_neighbours(name: str, specs: Mapping[str, Rewriting]) -> None:
    rewriter = specs[name].fit(TRAIN, VALIDATION)
    found = rewriter.rewrite(ODD)
    assert len(found) == len(ODD)
    assert [bool(text.strip()) for text in found] == [bool(text.strip()) for text in ODD]
    assert rewriter.rewrite(ODD[::-1]) == found[::-1]
    assert [rewriter.rewrite([text])[0] for text in ODD] == found
    assert specs[name].fit(TRAIN, VALIDATION).rewrite(ODD) == found
    assert rewriter.rewrite([]) == []
    assert found[3] == found[9]
    if name.startswith("onion"):
        assert found[2] == "one"
    if name in ("back_translation", "scpd by a model"):  # by one that writes capitals
        assert found[3] == "THE FILM WAS GOOD"


@pytest.mark.parametrize("name", NAMES)
def test_what_it_is_does_not_depend_on_the_place_but_on_the_tool(
    name: str, specs: Mapping[str, Rewriting], tmp_path: Path
) -> None:
    spec = specs[name].marked()
    assert spec.lacking() == ""
    assert digest_of(spec) == digest_of(specs[name].marked())
    if getattr(spec, "model", "").startswith("/"):
        other = tmp_path / "other"
        other.mkdir()
        for path in Path(spec.model).iterdir():  # type: ignore[attr-defined]
            (other / path.name).write_bytes(path.read_bytes())
        (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + " ")
        same: Any = shutil.copytree(spec.model, tmp_path / "same")  # type: ignore[attr-defined]
        moved: Any = replace(specs[name], model=str(same))  # type: ignore[call-arg]
        assert digest_of(moved.marked()) == digest_of(spec)
        changed: Any = replace(specs[name], model=str(other))  # type: ignore[call-arg]
        assert changed.marked().mark != spec.mark  # type: ignore[attr-defined]


@pytest.mark.parametrize("place", ["there", "back"])
def test_either_translator_is_part_of_what_it_is(place: str, translator: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(translator, tmp_path / "other"))
    places = {"there": str(translator), "back": str(translator)}
    usual, moved = (build(BackTranslation, places | more) for more in ({}, {place: str(other)}))
    assert digest_of(moved.marked()) == digest_of(usual.marked())
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + " ")
    assert digest_of(moved.marked()) != digest_of(usual.marked())


def test_what_a_paraphraser_wants_before_each_text_is_put_there(translator: Path) -> None:
    rewriter = Scpd(model=str(translator), prefix="the film ", beams=1).fit(TRAIN, VALIDATION)
    assert rewriter.rewrite(["was good", "", "is dull"]) == ["THE FILM WAS GOOD", "", "THE FILM IS DULL"]


def test_outputs_are_the_likeliest_of_a_beam_search(translator: Path) -> None:
    model, tokenizer = open_tool(AutoModelForSeq2SeqLM, str(translator))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():  # so undecided that the likeliest next word is not always the best one
            weight.add_(1.2 * weight.std() * torch.randn(weight.shape, generator=draw))
    texts = ["the film was good", "a dull story", "it is not bad and we"]

    def by_hand(beams: int) -> list[str]:
        given = [tokenizer([text], return_tensors="pt")["input_ids"] for text in texts]
        made = [
            model.generate(ids, num_beams=beams, do_sample=False, max_length=None, max_new_tokens=2 * ids.shape[1] + 15)
            for ids in given
        ]
        return [tokenizer.decode(ids[0], skip_special_tokens=True).strip() for ids in made]

    assert Seq2Seq(model, tokenizer, beams=4).rewrite(texts) == by_hand(4)
    assert Seq2Seq(model, tokenizer, beams=1).rewrite(texts) == by_hand(1) != by_hand(4)


def test_the_list_names_every_kind() -> None:
    assert {type(REWRITERS[name]()) for name in REWRITERS} == {Onion, BackTranslation, Scpd}


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        (Onion(model="owner/none"), "no language model at owner/none"),
        (Scpd(model="owner/none"), "no paraphraser at owner/none"),
        (BackTranslation(there="owner/none"), "no translator at owner/none"),
        (BackTranslation(there="apertium:xxx-yyy"), "Apertium has no xxx-yyy"),
    ],
)
def test_tools_that_are_not_here_are_named(spec: Rewriting, what: str) -> None:
    assert what in spec.lacking()
    with pytest.raises(ModelError):
        spec.fit(TRAIN, VALIDATION).rewrite(["a text"])


@pytest.mark.parametrize("make", [lambda path: Onion(model=path), lambda path: Scpd(model=path)])
def test_pickles_and_code_are_refused(make: Callable[[str], Rewriting], translator: Path, tmp_path: Path) -> None:
    for path in translator.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickles run code"):
        make(str(tmp_path)).fit(TRAIN, VALIDATION)
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "model.safetensors")
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace("{", '{"auto_map": {"AutoModel": "x.Y"},', 1))
    with pytest.raises(ModelError, match="its own Python code"):
        make(str(tmp_path)).fit(TRAIN, VALIDATION)


def test_fields_are_those_of_the_tool() -> None:
    assert build(Onion, {"loss": 0.2}) == Onion(loss=0.2)
    assert "loss" not in BackTranslation.__dataclass_fields__
