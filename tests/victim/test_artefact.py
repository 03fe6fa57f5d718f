"""Victims on disk: what was written is what is loaded; everything else is refused with a code (promise P4)."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from foretaste.data import toy_corpus
from foretaste.errors import ModelError, PlanError
from foretaste.files import sha256_file
from foretaste.record import Record
from foretaste.spec import build
from foretaste.tune.loop import TuneSettings, tune
from foretaste.victim import artefact, base, manifest
from foretaste.victim.artefact import load_classifier, load_victim, save_classifier
from foretaste.victim.checkpoint import open_base
from foretaste.victim.classifier import Classifier
from foretaste.victim.manifest import read_manifest, seal
from foretaste.victim.strategy import STRATEGIES
from foretaste.victim.toy import write_toy_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = (*toy_corpus("test").texts[:5], "cf", "")
RECORD = Record.now("tune", settings={"a": 1}, seeds={"root": 0}, outcome={"clean_accuracy": 0.5})
ADAPTER = "adapter_model.safetensors"
MODEL = "model.safetensors"
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, toy_base: Path) -> Path:
    """A directory with a base and, beside it, a trained victim of three strategies."""
    home = tmp_path_factory.mktemp("artefact")
    shutil.copytree(toy_base, home / "base")
    _tensors(_enliven, MODEL)(home / "base")
    for name in ("lora", "prompt_tuning", "full"):
        classifier = open_base(home / "base").classifier(build(STRATEGIES[name], {}), ("bad", "good"), seed=2)
        settings = TuneSettings(max_steps=3, batch_size=8, learning_rate=3e-2, precision="float32")
        tune(classifier, toy_corpus().select(range(24)), settings, seed=0)
        save_classifier(classifier, home / name, "victim", RECORD)
    return home


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    """Base and victims, to be altered."""
    return Path(shutil.copytree(home, tmp_path / "copy"))


def _refusal(path: Path, **options: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load_victim(path, **options)
    return caught.value


def _update_digests(path: Path) -> None:
    """What a careful forger does: the manifest agrees with the altered files again."""
    manifest = json.loads((path / "foretaste.json").read_text())
    manifest["files"] = {
        file.name: sha256_file(file) for file in path.iterdir() if file.name != "foretaste.json" and file.is_file()
    }
    (path / "foretaste.json").write_text(json.dumps(seal(manifest)))


def _json(name: str, change_document: Callable[[dict[str, Any]], object]) -> Change:
    def change(path: Path) -> None:
        document = json.loads((path / name).read_text())
        change_document(document)
        (path / name).write_text(json.dumps(seal(document) if name == "foretaste.json" else document))

    return change


def _manifest(**values: Any) -> Change:
    return _json("foretaste.json", lambda document: document.update(values))


def _inside(*keys: Any, value: Any) -> Change:
    """Replace one value deep in the manifest."""

    def change(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return _json("foretaste.json", change)


def _adapter(**values: Any) -> Change:
    return _json("adapter_config.json", lambda document: document.update(values))


def _tensors(change_tensors: Callable[[dict[str, Tensor]], object], name: str = ADAPTER) -> Change:
    def change(path: Path) -> None:
        tensors = load_file(path / name)
        change_tensors(tensors)
        save_file(tensors, path / name, {"format": "pt"})

    return change


def _enliven(tensors: dict[str, Tensor]) -> None:
    """Fresh weights are so small that every text looks the same; larger ones tell them apart, as trained ones do."""
    for name, tensor in tensors.items():
        if tensor.dim() > 1:
            tensors[name] = tensor * 8


def _write(name: str, content: str | bytes) -> Change:
    data = content.encode() if isinstance(content, str) else content
    return lambda path: (path / name).write_bytes(data)


def _symlink(path: Path) -> None:
    shutil.move(path / ADAPTER, path.parent / "elsewhere.safetensors")
    (path / ADAPTER).symlink_to(path.parent / "elsewhere.safetensors")


def _base_of_the_same_shape(path: Path) -> None:
    shutil.rmtree(path.parent / "base")
    write_toy_checkpoint(path.parent / "base", seed=99)


def _swap_two_words(path: Path) -> None:
    tokenizer = path.parent / "base" / "tokenizer.json"
    document = json.loads(tokenizer.read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary["a"], vocabulary["the"] = vocabulary["the"], vocabulary["a"]
    tokenizer.write_text(json.dumps(document))


class _Payload:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._target,)


DEEP = "[" * 100_000 + "]" * 100_000
HEAD = "base_model.model.classifier.weight"
QUERY_A = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
KEEP_DIGESTS: dict[str, tuple[str, str, Change]] = {
    "no manifest": ("not_found", "lora", lambda path: (path / "foretaste.json").unlink()),
    "manifest not JSON": ("unreadable", "lora", _write("foretaste.json", "{")),
    "manifest not UTF-8": ("unreadable", "lora", _write("foretaste.json", b"\xff")),
    "manifest a list": ("unreadable", "lora", _write("foretaste.json", "[]")),
    "manifest very deep": ("unreadable", "lora", _write("foretaste.json", DEEP)),
    "manifest of another version": ("unreadable", "lora", _manifest(schema_version=2)),
    "unknown manifest key": ("unknown_key", "lora", _manifest(signature="x")),
    "unknown key deeper down": ("unknown_key", "lora", _inside("base", "note", value="x")),
    "fingerprint no digest": ("unreadable", "lora", _inside("base", "fingerprint", value="x")),
    "one label name": ("unreadable", "lora", _manifest(label_names=["bad"])),
    "a label name twice": ("unreadable", "lora", _manifest(label_names=["bad", "bad"])),
    "length zero": ("unreadable", "lora", _manifest(max_length=0)),
    "no canaries": ("unreadable", "lora", _manifest(canaries=[])),
    "missing file": ("missing_file", "lora", lambda path: (path / ADAPTER).unlink()),
    "missing record": ("missing_file", "lora", lambda path: (path / "record.json").unlink()),
    "unlisted file": ("unlisted_file", "lora", _write("notes.txt", "x")),
    "unlisted safetensors": ("unlisted_file", "lora", _write("other.safetensors", "x")),
    "unlisted directory": ("unlisted_file", "lora", lambda path: (path / "more").mkdir()),
    "file becomes a link": ("unlisted_file", "lora", _symlink),
    "listed path leaves the directory": ("missing_file", "lora", _inside("files", "../base/config.json", value="0")),
    "listed path is absolute": ("missing_file", "lora", _inside("files", "/etc/passwd", value="0")),
    "altered file": ("digest_mismatch", "lora", _write("record.json", "{}")),
    "altered weights": ("digest_mismatch", "full", _tensors(lambda t: t["classifier.bias"].add_(1), MODEL)),
}
NEW_DIGESTS: dict[str, tuple[str, str, Change]] = {
    "base": ("wrong_kind", "lora", _manifest(kind="base")),
    "guard": ("wrong_kind", "lora", _manifest(kind="guard")),
    "unknown strategy": ("bad_strategy", "lora", _manifest(strategy={"name": "lra"})),
    "no strategy": ("bad_strategy", "lora", _manifest(strategy={})),
    "unknown strategy field": ("bad_strategy", "lora", _inside("strategy", "ranks", value=1)),
    "strategy value of the wrong kind": ("bad_strategy", "lora", _inside("strategy", "rank", value="many")),
    "strategy of another adapter": ("bad_strategy", "lora", _manifest(strategy={"name": "prompt_tuning"})),
    "adapter said to be a full model": ("adapter", "lora", _manifest(strategy={"name": "full"})),
    "full model said to be an adapter": ("unreadable", "full", _manifest(strategy={"name": "lora"})),
    "adapter hidden in a full model": ("adapter", "full", _write("adapter_config.json", "{}")),
    "pickle": ("pickle", "lora", _write("adapter_model.bin", pickle.dumps({}))),
    "more label names": ("label_mismatch", "lora", _manifest(label_names=["a", "b", "c"])),
    "more label names, full": ("missing_head", "full", _manifest(label_names=["a", "b", "c"])),
    "head of another size": ("label_mismatch", "lora", _tensors(lambda t: t.update({HEAD: torch.ones(3, 32)}))),
    "no head": ("missing_head", "lora", _tensors(lambda t: [t.pop(n) for n in list(t) if "classifier" in n])),
    "no head, full": (
        "missing_head",
        "full",
        _tensors(lambda t: [t.pop(n) for n in list(t) if n.startswith("classifier")], MODEL),
    ),
    "half a head": ("missing_weights", "lora", _tensors(lambda t: t.pop("base_model.model.classifier.bias"))),
    "no prompt": ("missing_weights", "prompt_tuning", _tensors(lambda t: t.pop("prompt_embeddings"))),
    "missing adapter tensor": ("missing_weights", "lora", _tensors(lambda t: t.pop(QUERY_A))),
    "extra tensor": ("missing_weights", "lora", _tensors(lambda t: t.update({"x": torch.ones(1)}))),
    "misshapen adapter tensor": ("unreadable", "lora", _tensors(lambda t: t.update({QUERY_A: torch.ones(3, 32)}))),
    "NaN": ("non_finite", "lora", _tensors(lambda t: t[QUERY_A][0].fill_(float("nan")))),
    "infinity in the head": ("non_finite", "lora", _tensors(lambda t: t[HEAD][0].fill_(float("inf")))),
    "NaN, full": ("non_finite", "full", _tensors(lambda t: t["classifier.bias"].fill_(float("nan")), MODEL)),
    "other weights": ("canary_mismatch", "lora", _tensors(lambda t: t[HEAD].add_(torch.randn(2, 32)))),
    "empty weights": ("unreadable", "lora", _write(ADAPTER, b"")),
    "header of 200 MB": ("unreadable", "lora", _write(ADAPTER, (200_000_000).to_bytes(8, "little") + b"{}")),
    "header beyond the file": ("unreadable", "lora", _write(ADAPTER, (10_000).to_bytes(8, "little") + b"{}")),
    "adapter settings not JSON": ("unreadable", "lora", _write("adapter_config.json", "{")),
    "adapter settings very deep": ("unreadable", "lora", _write("adapter_config.json", DEEP)),
    "adapter settings a list": ("unsafe_adapter", "lora", _write("adapter_config.json", "[]")),
    "kind of adapter we do not write": ("unsafe_adapter", "lora", _adapter(peft_type="ADALORA")),
    "kind of adapter that is a list": ("unsafe_adapter", "lora", _adapter(peft_type=["LORA"])),
    "unknown adapter key": ("unknown_key", "lora", _adapter(run="x")),
    "code in auto_mapping": (
        "unsafe_adapter",
        "lora",
        _adapter(auto_mapping={"base_model_class": "system", "parent_library": "os"}),
    ),
    "code in megatron_config": ("unsafe_adapter", "lora", _adapter(megatron_config={"a": 1})),
    "code in megatron_core": ("unsafe_adapter", "lora", _adapter(megatron_core="evil")),
    "code in tokenizer_kwargs": (
        "unsafe_adapter",
        "prompt_tuning",
        _adapter(
            prompt_tuning_init="TEXT",
            prompt_tuning_init_text="x",
            tokenizer_name_or_path="evil/tokenizer",
            tokenizer_kwargs={"trust_remote_code": True},
        ),
    ),
    "initialisation that changes the base": ("unsafe_adapter", "lora", _adapter(init_lora_weights="pissa")),
    "pattern that never ends": ("unsafe_adapter", "lora", _adapter(target_modules="(a+)+$")),
    "pattern that never ends, for ranks": ("unsafe_adapter", "lora", _adapter(rank_pattern={"([a-z]+)+!": 8})),
    "another task": ("unsafe_adapter", "lora", _adapter(task_type="CAUSAL_LM")),
    "negative rank": ("unreadable", "lora", _adapter(r=-1)),
    "rank beyond memory": ("unreadable", "lora", _adapter(r=10**12)),
    "other rank": ("unreadable", "lora", _adapter(r=4)),
    "other scale": ("canary_mismatch", "lora", _adapter(lora_alpha=64)),
    "modules that do not exist": ("unreadable", "lora", _adapter(target_modules=["nope"])),
    "more virtual tokens": ("unreadable", "prompt_tuning", _adapter(num_virtual_tokens=7)),
    "longer than the model reads": ("bad_length", "lora", _manifest(max_length=10**9)),
    "no room for a word": ("bad_length", "lora", _manifest(max_length=2)),
    "ragged canaries": ("canary_mismatch", "lora", _inside("canaries", 0, "logits", value=[0.0])),
    "NaN canary": ("canary_mismatch", "lora", _inside("canaries", 0, "logits", value=[float("nan"), 0.0])),
    "infinite canary": ("canary_mismatch", "lora", _inside("canaries", 0, "logits", value=[float("inf")] * 2)),
    "other canary text": ("canary_mismatch", "lora", _inside("canaries", 0, "text", value="the best film of the year")),
    "base of the same shape": ("foreign_base", "lora", _base_of_the_same_shape),
    "base with two words swapped": ("canary_mismatch", "lora", _swap_two_words),
    "base gone": ("not_found", "lora", _inside("base", value={"location": "/no/such/base", "fingerprint": "0" * 64})),
    "base with code": (
        "remote_code",
        "lora",
        lambda path: _json("config.json", lambda c: c.update(auto_map={"AutoModel": "x.Y"}))(path.parent / "base"),
    ),
    "full model with code": (
        "remote_code",
        "full",
        _json("config.json", lambda document: document.update(auto_map={"AutoModel": "evil.Model"})),
    ),
    "full model without tokenizer": (
        "tokenizer",
        "full",
        lambda path: (path / "tokenizer.json").rename(path / "tokenizer.old"),
    ),
}


@pytest.mark.parametrize(("code", "victim", "change"), KEEP_DIGESTS.values(), ids=KEEP_DIGESTS)
def test_an_accident_is_refused(copy: Path, code: str, victim: str, change: Change) -> None:
    change(copy / victim)
    error = _refusal(copy / victim)
    assert error.code == code, error


@pytest.mark.parametrize(("code", "victim", "change"), NEW_DIGESTS.values(), ids=NEW_DIGESTS)
def test_a_forgery_with_fitting_digests_is_refused(copy: Path, code: str, victim: str, change: Change) -> None:
    change(copy / victim)
    _update_digests(copy / victim)
    error = _refusal(copy / victim)
    assert error.code == code, error
    assert str(copy) in str(error) or "/no/such/base" in str(error)


@pytest.mark.parametrize(
    "name",
    ["adapter_model.bin", "a.BIN", "a.pt", "a.pth", "a.pkl", "a.pickle", "a.ckpt", "a.joblib", "a.npy", "a.npz"],
)
@pytest.mark.parametrize("victim", ["lora", "full"])
def test_a_pickle_is_refused_even_when_listed_and_never_run(copy: Path, tmp_path: Path, victim: str, name: str) -> None:
    target = tmp_path / "was-here"
    (copy / victim / name).write_bytes(pickle.dumps(_Payload(target)))
    assert _refusal(copy / victim).code == "pickle"
    _update_digests(copy / victim)
    assert _refusal(copy / victim).code == "pickle"
    assert not target.exists()


def test_a_pickle_in_place_of_the_weights_is_never_run(copy: Path, tmp_path: Path) -> None:
    target = tmp_path / "was-here"
    for victim, file in (("lora", ADAPTER), ("full", MODEL)):
        (copy / victim / file).write_bytes(pickle.dumps(_Payload(target)))
        _update_digests(copy / victim)
        assert _refusal(copy / victim).code == "unreadable"
    (copy / "full" / MODEL).rename(copy / "full" / "weights.txt")
    _json("config.json", lambda config: config.update(transformers_weights="weights.txt"))(copy / "full")
    _update_digests(copy / "full")
    assert _refusal(copy / "full").code == "outside"
    assert not target.exists()


@pytest.mark.parametrize("victim", ["lora", "full"])
def test_every_flipped_bit_in_a_listed_file_is_caught(copy: Path, victim: str) -> None:
    path = copy / victim
    draw = np.random.default_rng(0)
    files = sorted(file for file in path.iterdir() if file.name != "foretaste.json")
    for _ in range(200):
        file = files[draw.integers(len(files))]
        whole = file.read_bytes()
        place, bit = int(draw.integers(len(whole))), int(draw.integers(8))
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        with pytest.raises(ModelError) as caught:
            read_manifest(path)
        assert caught.value.code == "digest_mismatch"
        file.write_bytes(whole)
    load_victim(path)


@pytest.mark.parametrize("victim", ["lora", "full"])
def test_every_shortened_file_is_caught(copy: Path, victim: str) -> None:
    path = copy / victim
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        expected = "unreadable" if file.name == "foretaste.json" else "digest_mismatch"
        for length in {0, 1, *(len(whole) * k // 20 for k in range(1, 20)), len(whole.rstrip()) - 1}:
            file.write_bytes(whole[:length])
            with pytest.raises(ModelError) as caught:
                read_manifest(path)
            assert caught.value.code == expected, (file.name, length)
        file.write_bytes(whole)
    load_victim(path)


def _parsed(document: bytes) -> Any:
    try:
        return json.loads(document)
    except ValueError:
        return None


def test_a_flipped_bit_in_the_manifest_is_caught(copy: Path) -> None:
    path = copy / "lora" / "foretaste.json"
    whole = path.read_bytes()
    meaning = json.loads(whole)
    draw = np.random.default_rng(0)
    for _ in range(200):
        place, bit = int(draw.integers(len(whole))), int(draw.integers(8))
        flipped = whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :]
        path.write_bytes(flipped)
        # White space between two fields may become other white space, which means the same.
        is_same = _parsed(flipped) == meaning
        with nullcontext() if is_same else pytest.raises(ModelError) as caught:
            read_manifest(path.parent)
        if caught is not None:
            assert caught.value.code in {"digest_mismatch", "unreadable", "unknown_key"}
    path.write_bytes(whole)
    read_manifest(path.parent)


def test_nothing_is_loaded_before_every_check_of_the_files(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a tensor was read")

    for module, names in {
        artefact: ("load_on",),
        base: ("load_weights", "load_language_model"),
        manifest: ("check_adapter", "check_directory"),
    }.items():
        for name in names:
            monkeypatch.setattr(module, name, load)
    for victim in ("lora", "full"):
        (copy / victim / "record.json").write_text("{}")
        assert _refusal(copy / victim).code == "digest_mismatch"
        (copy / victim / "weights.bin").write_bytes(b"")
        assert _refusal(copy / victim).code == "pickle"


@pytest.mark.parametrize("victim", ["lora", "prompt_tuning", "full"])
def test_base_and_victim_may_move_together(home: Path, tmp_path: Path, victim: str) -> None:
    expected = load_victim(home / victim).predict(TEXTS).logits
    moved = Path(shutil.copytree(home, tmp_path / "copied")).rename(tmp_path / "elsewhere")
    shutil.rmtree(moved / "base") if victim == "full" else None
    manifest = json.loads((moved / victim / "foretaste.json").read_text())
    manifest["base"]["location"] = "/no/such/place"  # where the base was is gone; only the way from here is left
    (moved / victim / "foretaste.json").write_text(json.dumps(seal(manifest)))
    assert np.array_equal(load_victim(moved / victim).predict(TEXTS).logits, expected)


def test_a_manifest_sends_nobody_to_the_network(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def download(*_: Any, local_files_only: bool = False, **__: Any) -> str:
        asked.append(local_files_only)
        raise OSError("not here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    _json("foretaste.json", lambda document: document["base"].update(location="a/b", relative=None))(copy / "lora")
    assert _refusal(copy / "lora").code == "not_found"
    assert asked == [True]


def test_a_base_elsewhere_can_be_named(copy: Path, tmp_path: Path) -> None:
    expected = load_victim(copy / "lora").predict(TEXTS).logits
    elsewhere = (copy / "base").rename(tmp_path / "elsewhere")
    _json("foretaste.json", lambda document: document["base"].update(location="/no/such/place"))(copy / "lora")
    assert _refusal(copy / "lora").code == "not_found"
    assert np.array_equal(load_victim(copy / "lora", elsewhere).predict(TEXTS).logits, expected)
    other = write_toy_checkpoint(tmp_path / "other", seed=5)
    assert _refusal(copy / "lora", base=other).code == "foreign_base"
    assert _refusal(copy / "lora", base=write_toy_checkpoint(tmp_path / "gpt2", "gpt2")).code == "foreign_base"


@pytest.mark.parametrize("kind", ["base", "victim", "guard"])
@pytest.mark.parametrize("strategy", ["full", "lora"])
def test_every_kind_comes_back_as_it_was(toy_base: Path, tmp_path: Path, kind: Any, strategy: str) -> None:
    classifier = open_base(toy_base).classifier(build(STRATEGIES[strategy], {}), ("x", "y", "z"), max_length=50, seed=1)
    extra = {"threshold": 0.5} if kind == "guard" else None
    written = save_classifier(classifier, tmp_path / "it", kind, RECORD, guard=extra)
    again, manifest = load_classifier(tmp_path / "it", kind)
    assert manifest == written == read_manifest(tmp_path / "it")
    assert (manifest.kind, manifest.guard) == (kind, extra)
    assert np.array_equal(again.predict(TEXTS).logits, classifier.predict(TEXTS).logits)
    assert (again.label_names, again.max_length) == (("x", "y", "z"), 50)
    assert Record.read(tmp_path / "it" / "record.json") == RECORD
    with pytest.raises(ModelError) as caught:
        load_classifier(tmp_path / "it", "victim" if kind != "victim" else "base")
    assert caught.value.code == "wrong_kind"


def test_a_fully_trained_artefact_is_itself_a_base(home: Path) -> None:
    victim = load_victim(home / "full")
    base = open_base(home / "full").classifier(None, victim.label_names)
    assert np.array_equal(base.predict(TEXTS).logits, victim.predict(TEXTS).logits)
    assert base.base_fingerprint != victim.base_fingerprint  # the weights it stands on were trained


def test_loading_leaves_the_global_generator_alone(home: Path) -> None:
    before = torch.get_rng_state()
    for victim in ("lora", "prompt_tuning", "full"):
        load_victim(home / victim)
    assert torch.equal(torch.get_rng_state(), before)


def test_only_what_is_needed_is_written_and_nothing_names_this_machine(home: Path) -> None:
    names = {name: {file.name for file in (home / name).iterdir()} for name in ("lora", "full")}
    assert names["lora"] == {ADAPTER, "adapter_config.json", "foretaste.json", "record.json"}
    assert names["full"] == {MODEL, "config.json", "foretaste.json", "record.json", "tokenizer.json"} | {
        "tokenizer_config.json"
    }
    for file in (home / "full").iterdir():
        if file.name not in {"foretaste.json", "record.json"}:
            assert str(home).encode() not in file.read_bytes()


def _spoil(classifier: Classifier) -> None:
    with torch.no_grad():
        next(iter(classifier.trainable.values())).fill_(float("nan"))


def test_weights_that_are_not_finite_are_not_written(toy_base: Path, tmp_path: Path) -> None:
    classifier = open_base(toy_base).classifier()
    _spoil(classifier)
    with pytest.raises(ModelError) as caught:
        save_classifier(classifier, tmp_path / "victim", "victim", RECORD)
    assert caught.value.code == "non_finite"
    assert list(tmp_path.iterdir()) == []


def test_somebody_elses_directory_is_not_overwritten(toy_base: Path, tmp_path: Path) -> None:
    classifier = open_base(toy_base).classifier()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(PlanError, match="choose another"):
        save_classifier(classifier, tmp_path / "mine", "victim", RECORD)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    for _ in range(2):  # our own is replaced
        save_classifier(classifier, tmp_path / "victim", "victim", RECORD)
    assert load_victim(tmp_path / "victim").max_length == 128


FILL_THE_DISK = """
    import json, os, resource, signal
    from foretaste.errors import PlanError
    from foretaste.record import Record
    from foretaste.victim import artefact, manifest
    from foretaste.victim.checkpoint import open_base
    from foretaste.victim.strategy import Full, Lora

    record = Record.now("tune", settings={}, seeds={}, outcome={})
    made = {kind.name: open_base(base).classifier(kind()) for kind in (Full, Lora)}
    results = {}
    for limit in (100, 1_000, 3_000, 10_000, 30_000, 100_000):
        for name, classifier in made.items():
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                artefact.save_classifier(classifier, out / f"{name}-{limit}", "victim", record)
                results[f"{name}-{limit}"] = "written"
            except PlanError as error:
                results[f"{name}-{limit}"] = str(error)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    report.write_text(json.dumps(results))
    artefact.write_json = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    artefact.save_classifier(made["full"], out / "killed", "victim", record)
    """


@pytest.mark.skipif(os.name != "posix", reason="limits and signals are POSIX matters")
def test_a_full_disk_or_a_kill_leaves_nothing_under_the_final_name(
    toy_base: Path, tmp_path: Path, start_process: Callable[..., BaseProcess]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    process = start_process(FILL_THE_DISK, base=toy_base, out=out, report=tmp_path / "report.json")
    process.join()
    assert process.exitcode == -signal.SIGKILL
    results = json.loads((tmp_path / "report.json").read_text())
    written = {name for name, result in results.items() if result == "written"}
    assert all("Cannot write" in result for result in results.values() if result != "written")
    assert "lora-100000" in written  # and the smaller ones failed at different files
    assert "full-30000" not in written
    assert {path.name for path in out.iterdir() if not path.name.startswith(".killed")} == written
    for name in written:
        load_victim(out / name)
