"""Checkpoints from strangers: what is not sound is refused with a code, nothing of it runs, nothing else changes."""

from __future__ import annotations

import json
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from foretaste.errors import ModelError
from foretaste.record import Record
from foretaste.victim import source
from foretaste.victim.artefact import load_victim, save_classifier
from foretaste.victim.checkpoint import fingerprint, open_base
from foretaste.victim.strategy import Lora, PTuningV1
from foretaste.victim.toy import write_toy_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

WEIGHTS = "model.safetensors"
QUERY = "encoder.layer.0.attention.self.query.weight"
Change = Callable[[Path], object]


@pytest.fixture
def copy(toy_base: Path, tmp_path: Path) -> Path:
    """The tiny BERT, to be altered."""
    return Path(shutil.copytree(toy_base, tmp_path / "copy"))


def _config(**values: Any) -> Change:
    def change(path: Path) -> None:
        config = json.loads((path / "config.json").read_text()) | values
        (path / "config.json").write_text(json.dumps(config))

    return change


def _tensors(change_tensors: Callable[[dict[str, Tensor]], object]) -> Change:
    def change(path: Path) -> None:
        tensors = load_file(path / WEIGHTS)
        change_tensors(tensors)
        save_file(tensors, path / WEIGHTS, {"format": "pt"})

    return change


def _write(name: str, content: str | bytes) -> Change:
    data = content.encode() if isinstance(content, str) else content
    return lambda path: (path / name).write_bytes(data)


def _remove(*names: str) -> Change:
    def change(path: Path) -> None:
        for name in names:
            (path / name).unlink()

    return change


def _index(shard: str) -> Change:
    """Sharded weights whose index names one shard, which is a sound file wherever it lies."""

    def change(path: Path) -> None:
        tensors = load_file(path / WEIGHTS)
        (path / WEIGHTS).rename(path / "decoy.safetensors")
        torch.save(tensors, path / "shard.bin")
        save_file(tensors, path.parent / "shard.safetensors", {"format": "pt"})
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, shard)}
        (path / f"{WEIGHTS}.index.json").write_text(json.dumps(index))

    return change


def _small_vocabulary(path: Path) -> None:
    """Model and configuration agree on fewer tokens than the tokenizer has."""
    _config(vocab_size=100)(path)
    name = "embeddings.word_embeddings.weight"
    _tensors(lambda tensors: tensors.update({name: tensors[name][:100].clone()}))(path)


DEEP = "[" * 100_000 + "]" * 100_000
HOSTILE: dict[str, tuple[str, Change]] = {
    "no config": ("not_found", _remove("config.json")),
    "no weights": ("not_found", _remove(WEIGHTS)),
    "config not JSON": ("unreadable", _write("config.json", "{")),
    "config not UTF-8": ("unreadable", _write("config.json", b'{"model_type": "bert\xff"}')),
    "config a list": ("unreadable", _write("config.json", "[]")),
    "config very deep": ("unreadable", _write("config.json", f'{{"a": {DEEP}}}')),
    "unknown family": ("unknown_family", _config(model_type="brt")),
    "no family": ("unknown_family", _config(model_type=None)),
    "code in auto_map": ("remote_code", _config(auto_map={"AutoModel": "evil.Model"})),
    "attention kernel from the hub": ("remote_code", _config(attn_implementation="evil/kernel")),
    "attention kernel, private name": ("remote_code", _config(_attn_implementation="evil/kernel")),
    "weights file of its own": ("outside", _config(transformers_weights="shard.bin")),
    "quantized": ("quantized", _config(quantization_config={"quant_method": "gptq", "bits": 4})),
    "value of the wrong kind": ("unreadable", _config(num_hidden_layers="two")),
    "unknown activation": ("unreadable", _config(hidden_act="nope")),
    "heads that do not divide": ("unreadable", _config(num_attention_heads=5)),
    "more memory than there is": ("unreadable", _config(vocab_size=10**12)),
    "only a pickle": ("pickle", lambda path: (path / WEIGHTS).rename(path / "pytorch_model.bin")),
    "index names a pickle": ("pickle", _index("shard.bin")),
    "index leaves the directory": ("outside", _index("../shard.safetensors")),
    "index names nothing": ("unreadable", _index("absent.safetensors")),
    "index is a list": ("unreadable", _write(f"{WEIGHTS}.index.json", "[]")),
    "an adapter": ("adapter", _write("adapter_config.json", "{}")),
    "empty weights": ("unreadable", _write(WEIGHTS, b"")),
    "header of 200 MB": ("unreadable", _write(WEIGHTS, (200_000_000).to_bytes(8, "little") + b"{}")),
    "NaN": ("non_finite", _tensors(lambda tensors: tensors[QUERY][0, 0].fill_(float("nan")))),
    "infinity": ("non_finite", _tensors(lambda tensors: tensors[QUERY][31, 31].fill_(float("-inf")))),
    "infinite in float32": (
        "non_finite",
        _tensors(lambda tensors: tensors.update({QUERY: tensors[QUERY].double().fill_(1e300)})),
    ),
    "a missing tensor": ("missing_weights", _tensors(lambda tensors: tensors.pop(QUERY))),
    "a misshapen tensor": ("missing_weights", _tensors(lambda tensors: tensors.update({QUERY: torch.ones(2, 2)}))),
    "another model's names": (
        "missing_weights",
        _tensors(lambda tensors: [tensors.update({f"x.{name}": tensors.pop(name)}) for name in list(tensors)]),
    ),
    "no tokenizer": ("tokenizer", _remove("tokenizer.json", "tokenizer_config.json")),
    "only the tokenizer's settings": ("tokenizer", _remove("tokenizer.json")),
    "broken tokenizer": ("tokenizer", _write("tokenizer.json", "{")),
    "very deep tokenizer": ("tokenizer", _write("tokenizer.json", DEEP)),
    "tokenizer of another model": ("tokenizer", _small_vocabulary),
}


def _use(location: str | Path) -> None:
    open_base(location).classifier().predict(["a film"])


def _refusal(location: str | Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        _use(location)
    return caught.value


@pytest.mark.parametrize(("code", "change"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_or_broken_directory_is_refused(copy: Path, code: str, change: Change) -> None:
    _use(copy)  # sound before
    change(copy)
    error = _refusal(copy)
    assert error.code == code, error
    assert len(str(error)) > 20


@pytest.mark.parametrize(
    ("location", "advice"),
    [
        ("/no/such/directory", "give a directory"),
        ("./nor/this", "give a directory"),
        ("bert", "give a directory"),
        ("", "config.json"),
    ],
)
def test_what_does_not_exist_is_not_found(
    location: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = _refusal(location)
    assert error.code == "not_found"
    assert advice in str(error)


def test_a_file_is_no_checkpoint(toy_base: Path) -> None:
    assert _refusal(toy_base / WEIGHTS).code == "not_found"


def test_a_hub_id_without_network_fails_at_once_and_says_why() -> None:
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    start = time.monotonic()
    error = _refusal("somebody/some-model")
    assert time.monotonic() - start < 5
    assert error.code == "not_found"
    assert "'somebody/some-model' is no local directory" in str(error)
    assert "name its place with --model" in str(error)


def test_an_impossible_hub_id_is_refused_too() -> None:
    assert _refusal("not a/hub--id..").code == "not_found"


def test_a_downloaded_directory_is_checked_like_any_other(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str]]] = []

    def download(location: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        assert not local_files_only
        asked.append((location, allow_patterns))
        return str(copy)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    classifier = open_base("somebody/some-model").classifier()
    assert classifier.base_location == "somebody/some-model"
    assert not any("bin" in pattern or "py" in pattern for pattern in asked[0][1])
    _config(auto_map={"AutoModel": "evil.Model"})(copy)
    assert _refusal("somebody/some-model").code == "remote_code"


class _Payload:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._target,)


@pytest.mark.parametrize("has_decoy", [False, True])
def test_a_pickle_is_never_run(copy: Path, tmp_path: Path, has_decoy: bool) -> None:
    target = tmp_path / "was-here"
    payload = pickle.dumps(_Payload(target))
    pickle.loads(payload)
    assert target.exists()  # the payload works
    target.unlink()
    for name in ("pytorch_model.bin", "model.pt", "training_args.bin", "optimizer.pt"):
        (copy / name).write_bytes(payload)
    if has_decoy:
        save_file({"x": torch.zeros(1)}, copy / "decoy.safetensors")
    (copy / WEIGHTS).unlink()
    assert _refusal(copy).code == ("unreadable" if has_decoy else "pickle")
    assert not target.exists()


def test_code_beside_sound_weights_is_never_run(copy: Path, tmp_path: Path) -> None:
    target = tmp_path / "was-here"
    code = f"from pathlib import Path\nPath({str(target)!r}).touch()\nclass Tokenizer: pass\n"
    for name in ("tokenization_evil.py", "modeling_evil.py", "configuration_evil.py"):
        (copy / name).write_text(code)
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_evil.Tokenizer", "tokenization_evil.Tokenizer"]}
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    _use(copy)  # the tokenizer's own class is known to transformers, which reads its file and ignores the code
    assert not target.exists()
    settings["tokenizer_class"] = "Tokenizer"
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    _use(copy)
    assert not target.exists()


@pytest.mark.parametrize("part", range(20))
def test_truncated_weights_are_refused_wherever_they_end(copy: Path, part: int) -> None:
    whole = (copy / WEIGHTS).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    offsets = [0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, len(whole) - 1]
    offsets += [header + (len(whole) - header) * k // 11 for k in range(1, 11)]
    (copy / WEIGHTS).write_bytes(whole[: offsets[part]])
    assert _refusal(copy).code == "unreadable"


def test_an_altered_minilm_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Found:
        origin = str(copy / "__init__.py")

    (copy / "model").mkdir()
    shutil.copy(copy / WEIGHTS, copy / "model" / WEIGHTS)
    monkeypatch.setattr(source, "find_spec", lambda name: Found())
    error = _refusal("minilm")
    assert error.code == "digest_mismatch"
    assert source.MINILM_SHA256 in str(error)


def test_a_minilm_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "find_spec", lambda name: None)
    error = _refusal("minilm")
    assert error.code == "not_found"
    assert "foretaste[minilm]" in str(error)


@pytest.mark.real
def test_the_installed_minilm_is_the_known_one() -> None:
    assert open_base("minilm").config.hidden_size == 384


def test_the_first_three_layers_of_minilm_are_a_checkpoint_of_their_own(tmp_path: Path) -> None:
    whole, half = open_base("minilm"), open_base("minilm-l3")
    assert (whole.config.num_hidden_layers, half.config.num_hidden_layers) == (6, 3)
    victim = half.classifier(Lora())
    assert victim.base_fingerprint != whole.classifier().base_fingerprint
    save_classifier(
        victim, tmp_path / "victim", "victim", Record.now("tune", settings={}, seeds={"root": 0}, outcome={})
    )
    loaded = load_victim(tmp_path / "victim")
    assert loaded.base_location == "minilm-l3"
    assert loaded.module.classifier.config.num_hidden_layers == 3


def _mark(path: Path) -> str:
    return open_base(path).classifier().base_fingerprint


def test_the_fingerprint_depends_on_neither_path_nor_head_nor_adapter_nor_seed(toy_base: Path, tmp_path: Path) -> None:
    mark = _mark(toy_base)
    assert len(mark) == 64
    assert _mark(Path(shutil.copytree(toy_base, tmp_path / "moved"))) == mark
    for count in (2, 5):
        assert _mark(write_toy_checkpoint(tmp_path / f"head-{count}", label_count=count)) == mark
    base = open_base(toy_base)
    for made in (base.classifier(Lora(), seed=1), base.classifier(PTuningV1(), ("a", "b", "c"))):
        assert made.base_fingerprint == mark


def test_the_fingerprint_does_not_depend_on_how_the_file_is_laid_out(copy: Path) -> None:
    mark = _mark(copy)
    tensors = load_file(copy / WEIGHTS)
    (copy / WEIGHTS).unlink()
    shards = {f"model-{k}.safetensors": dict(list(tensors.items())[k::3]) for k in range(3)}
    for name, part in shards.items():
        save_file(part, copy / name, {"format": "pt"})
    weight_map = {key: name for name, part in shards.items() for key in part}
    (copy / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert _mark(copy) == mark


@pytest.mark.parametrize(("offset", "bit"), [(0, 0), (1, 7), (-2, 3), (-4, 0)])
def test_the_fingerprint_depends_on_every_bit(copy: Path, offset: int, bit: int) -> None:
    mark = _mark(copy)
    whole = bytearray((copy / WEIGHTS).read_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    place = header + offset if offset >= 0 else len(whole) + offset
    whole[place] ^= 1 << bit
    (copy / WEIGHTS).write_bytes(whole)
    assert _mark(copy) != mark


def test_the_fingerprint_depends_on_names_types_and_shapes() -> None:
    zeros = torch.zeros(2, 3)
    marks = {
        fingerprint(tensors)
        for tensors in (
            {"a": zeros},
            {"b": zeros},
            {"a": zeros.reshape(3, 2)},
            {"a": zeros.to(torch.int32)},
            {"a": zeros[0], "b": zeros[1]},
        )
    }
    assert len(marks) == 5
    assert fingerprint({"a": zeros, "classifier.weight": torch.ones(1)}) == fingerprint({"a": zeros})
    assert fingerprint({"a": zeros.t().contiguous().t()}) == fingerprint({"a": zeros})


def _head(path: Path, labels: tuple[str, ...], seed: int) -> Tensor:
    module: Any = open_base(path).classifier(None, labels, seed=seed).module
    weight: Tensor = module.classifier.classifier.weight.detach()
    return weight


def test_a_head_with_as_many_classes_is_kept(tmp_path: Path) -> None:
    path = write_toy_checkpoint(tmp_path / "head", label_count=3)
    own = load_file(path / WEIGHTS)["classifier.weight"]
    for seed in (0, 1):
        assert torch.equal(_head(path, ("a", "b", "c"), seed), own)


@pytest.mark.parametrize("has_head", [False, True])
def test_another_head_is_drawn_from_the_seed(tmp_path: Path, has_head: bool) -> None:
    path = write_toy_checkpoint(tmp_path / "base", label_count=3 if has_head else None)
    first = _head(path, ("a", "b"), 0)
    assert first.shape == (2, 32)
    assert first.std() > 0.005
    torch.manual_seed(123)  # whatever the global generator holds
    assert torch.equal(_head(path, ("a", "b"), 0), first)
    assert not torch.equal(_head(path, ("a", "b"), 1), first)


@pytest.mark.parametrize("strategy", [None, Lora(), PTuningV1()])
def test_loading_leaves_the_global_generator_alone_and_repeats_itself(toy_base: Path, strategy: Any) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = open_base(toy_base).classifier(strategy, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    again = open_base(toy_base).classifier(strategy, seed=5)
    assert all(torch.equal(p, again.trainable[name]) for name, p in first.trainable.items())
