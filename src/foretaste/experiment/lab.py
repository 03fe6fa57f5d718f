"""Where steps are made: what they have in common, the data and the weights from elsewhere, what was opened already."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from foretaste.cost import Cost
from foretaste.data.corpus import Corpus
from foretaste.data.hub import NAMED_SETS
from foretaste.data.load import load_corpus
from foretaste.errors import DataError, ModelError
from foretaste.experiment.store import Store, digest_of
from foretaste.files import sha256_file
from foretaste.poison.attack import Triggered, refuse_too_few
from foretaste.poison.plan import Attack
from foretaste.poison.trigger import FileTrigger, StoredTrigger
from foretaste.record import Record
from foretaste.rewrite.rewriter import Rewriter, Rewriting
from foretaste.rewrite.stored import StoredRewriting
from foretaste.victim.checkpoint import Base, open_base
from foretaste.victim.instruction import Instruction
from foretaste.victim.manifest import MANIFEST

__all__ = ["Checkpoint", "Lab", "Step", "Texts"]

# Which kind of record a training leaves, by where it lies in the store.
RECORDS: dict[str, Any] = {
    "bases": "poison", "washed": "unlearn", "victims": "tune", "guards": "guard", "trusted": "tune",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Texts:
    """A split of a data set, or so many texts of it; `digest` is that of their content."""

    data: str
    split: str
    limit: int | None = None
    seed: int = 0
    digest: str = ""

    @property
    def key(self) -> str:
        """What stands for them: the content, and what their directory is called, by which parts of them are drawn."""
        return self.digest if self.data in ("toy", *NAMED_SETS) else f"{self.digest} {Path(self.data).resolve().name}"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights from elsewhere; `mark` is the digest of what lies there, empty where they are not at hand.

    With an `instruction` they are used as a language model that is asked, without as weights for a classifier.
    """

    location: str
    mark: str = ""
    instruction: Instruction | None = None

    @property
    def key(self) -> str:
        """What stands for them: what they are, not where; the place where they are not at hand."""
        own = self.mark or f"at {self.location}"
        return own if self.instruction is None else f"{own} asked {digest_of(self.instruction)}"


@dataclass(frozen=True, eq=False)
class Lab:
    """Where steps are made: the store, the data, in how many processes each training, and what was opened already."""

    store: Store
    data_root: Path | None = None
    processes: int = 1
    triggered: dict[str, Triggered] = field(default_factory=dict)
    """Triggered test texts by a digest of what they are: every victim is asked the same."""
    fitted: dict[str, tuple[Rewriter, Cost]] = field(default_factory=dict)
    """The rewriter that was made ready last, by a digest of what it is, and what that took."""
    _corpora: dict[Texts, Corpus] = field(default_factory=dict)
    _checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    _rewriters: dict[Rewriting, Rewriting] = field(default_factory=dict)
    _refused: dict[str, str] = field(default_factory=dict)
    _poisonable: set[str] = field(default_factory=set)

    def __reduce__(self) -> tuple[Any, ...]:
        return Lab, (self.store, self.data_root, self.processes)  # another process opens and compares for itself

    def texts(self, data: str, split: str, limit: int | None = None, seed: int = 0) -> Texts:
        """Describe texts; they are read once.

        Raises:
            PlanError, DataError: no such data set.
        """
        corpus = self._read(data, split, limit, seed)
        return Texts(data=data, split=split, limit=limit, seed=seed, digest=corpus.digest)

    def corpus(self, texts: Texts) -> Corpus:
        """Return the texts described.

        Raises:
            DataError: their content is no longer what it was.
        """
        corpus = self._read(texts.data, texts.split, texts.limit, texts.seed)
        if corpus.digest != texts.digest:
            raise DataError(f"{texts.data}/{texts.split} has changed while the plan ran.")
        return corpus

    def checkpoint(self, location: str, instruction: Instruction | None = None) -> Checkpoint:
        """Describe weights from elsewhere; without a mark if they are not at hand or refused, which `lacking` tells."""
        if location not in self._checkpoints:
            mark = ""
            try:
                mark = _mark_of(open_base(location, may_download=False))
            except ModelError as error:
                if error.code != "not_found":
                    self._refused[location] = str(error)
            self._checkpoints[location] = Checkpoint(location=location, mark=mark)
        return replace(self._checkpoints[location], instruction=instruction)

    def lacking(self, weights: Checkpoint) -> str:
        """Say why weights from elsewhere cannot be used; nothing if they can."""
        return "" if weights.mark else self._refused.get(weights.location, f"no weights at {weights.location}")

    def at_home(self, attack: Attack, *names: str) -> Attack:
        """Return the attack with the finished texts of these splits, stored ones looked for where the data are."""
        trigger = attack.trigger
        if isinstance(trigger, StoredTrigger):
            return replace(attack, trigger=StoredTrigger(root=self.data_root).marked(*names))
        return replace(attack, trigger=trigger.marked(*names)) if isinstance(trigger, FileTrigger) else attack

    def refuse_too_few(self, texts: Texts, attack: Attack, seed: int) -> None:
        """Raise what the attack would raise before it changes a text; each question is looked into once."""
        asked = digest_of([texts, attack, seed])
        if asked not in self._poisonable:
            refuse_too_few(self.corpus(texts), attack, seed)
            self._poisonable.add(asked)

    def marked(self, rewriter: Rewriting, data: str) -> Rewriting:
        """Return a rewriter with a digest of its tools, or of what is stored for a set; they are read once."""
        asked = rewriter.at_home(self.data_root, data) if isinstance(rewriter, StoredRewriting) else rewriter
        if asked not in self._rewriters:
            self._rewriters[asked] = asked.marked()
        return self._rewriters[asked]

    def base(self, origin: Checkpoint | Step) -> Base:
        """Open weights that come from elsewhere or that a step made.

        Raises:
            ModelError, DataError: they cannot be used; those from elsewhere are not the ones that the plan found.
        """
        if isinstance(origin, Step):
            return open_base(origin.place(self.store))
        if self.checkpoint(origin.location, origin.instruction) != origin:
            raise DataError(f"The weights at {origin.location} are not those that the plan was begun with.")
        return open_base(origin.location).asked(origin.instruction)

    def _read(self, data: str, split: str, limit: int | None, seed: int) -> Corpus:
        asked = Texts(data=data, split=split, limit=limit, seed=seed)
        if asked not in self._corpora:
            self._corpora[asked] = load_corpus(data, split, data_root=self.data_root, limit=limit, seed=seed)
        return self._corpora[asked]


@dataclass(frozen=True, kw_only=True)
class Step(ABC):
    """Something that is made once and kept. `version` goes up when the same settings would give something else."""

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    is_training: ClassVar[bool] = True

    @cached_property
    def key(self) -> str:
        """The digest of everything that goes into it."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return digest_of({"kind": self.kind, "version": self.version, **own})

    @property
    def work(self) -> str:
        """What takes about as long: steps of this kind, by methods of these names, on texts of this set."""
        parts = [getattr(self, each.name) for each in fields(self) if each.name != "trigger"]
        named = [getattr(part, "data", getattr(part, "name", None)) for part in parts if not isinstance(part, Step)]
        return "/".join([self.kind, *dict.fromkeys(name for name in named if isinstance(name, str))])

    def direct_needs(self) -> Iterator[Step]:
        """Yield the steps it is made from."""
        yield from (value for each in fields(self) if isinstance(value := getattr(self, each.name), Step))

    def needs(self) -> Iterator[Step]:
        """Yield the steps it is made from and all that those are made from, what is needed first."""
        for step in self.direct_needs():
            yield from step.needs()
            yield step

    def stands_on(self, store: Store) -> Iterator[Step]:
        """Yield the steps whose weights have to be there to open this one, which is made: those under an adapter."""
        base = getattr(self, "base", None)
        if isinstance(base, Step) and (self.place(store) / "adapter_config.json").is_file():
            yield base

    def place(self, store: Store) -> Path:
        """Where it lies or will lie."""
        return store.place(self.kind, self.key)

    def record_place(self, store: Store) -> Path:
        """Where the record of a training lies or will lie."""
        return self.place(store) / "record.json"

    def is_made(self, store: Store) -> bool:
        """True if it is there, whole and of today's weights; a record may have been left of one that was deleted."""
        files = self._files(store)
        is_whole = files is not None and all((self.place(store) / name).is_file() for name in files)
        return is_whole and not self.is_outdated(store)

    def is_outdated(self, store: Store) -> bool:
        """True if weights it was made from were made again since and came out otherwise, as on other hardware."""
        if any(step.is_outdated(store) for step in self.direct_needs()):
            return True
        now = self.sources(store)
        return bool(now) and not now.items() <= self.recorded_sources(store).items()

    def sources(self, store: Store) -> dict[str, str]:
        """Return the digests of the weights that it would be made from, as far as they are known, by step."""
        found: dict[str, str] = {}
        for step in self.direct_needs():
            found |= step.recorded_sources(store)
            if mark := step.mark(store):
                found[step.key] = mark
        return found

    def recorded_sources(self, store: Store) -> dict[str, str]:
        """Return what `sources` were when it was made; those of now if it has no record that says so."""
        try:
            sources: Any = Record.read(self.record_place(store)).settings["sources"]
            return dict(sources)
        except (DataError, LookupError):  # whoever opens an adapter compares what it stands on
            return self.sources(store)

    def mark(self, store: Store) -> str:
        """Return a digest of its weights; nothing where they are not here, or it has none."""
        files = self._files(store)
        if not files:
            return ""
        return digest_of({name: digest for name, digest in files.items() if name.endswith(".safetensors")})

    def _files(self, store: Store) -> Mapping[str, str] | None:
        """The digests of its files; none if the manifest is damaged, which whoever opens it says; None without one."""
        try:
            files = json.loads((self.place(store) / MANIFEST).read_text(encoding="utf-8"))["files"]
            return {str(name): str(digest) for name, digest in files.items()}
        except OSError:
            return None
        except (ValueError, LookupError, TypeError, AttributeError):
            return {}

    def make(self, lab: Lab) -> None:
        """Make it from what it needs, all of which is there, and write it, all or nothing.

        What it says of its sources is what they were before any of them was opened: if one is made again meanwhile,
        this is outdated as soon as it is there.
        """
        self.make_of(self.sources(lab.store), lab)

    @abstractmethod
    def make_of(self, sources: Mapping[str, str], lab: Lab) -> None:
        """Make it, of these `sources`."""

    def partial(self, sources: Mapping[str, str], lab: Lab) -> Path:
        """Where it keeps its progress: none is continued on other weights than it was begun on."""
        return lab.store.partial(f"{self.key}.{digest_of(sources)[:8]}")

    def record(
        self, lab: Lab, sources: Mapping[str, str], outcome: Any, cost: Cost, seed: int, *texts: Texts
    ) -> Record:
        """Return its record."""
        settings = {each.name: getattr(self, each.name) for each in fields(self)}
        settings = {name: value.key if isinstance(value, Step) else value for name, value in settings.items()}
        if lab.processes > 1:
            settings["processes"] = lab.processes
        settings |= {"sources": dict(sources), "work": self.work}
        data = [lab.corpus(each) for each in texts]
        return Record.now(RECORDS[self.kind], settings=settings, seeds={"root": seed}, outcome=outcome, data=data,
                          cost=cost, command="foretaste run")  # fmt: skip


def _mark_of(base: Base) -> str:
    """The digest of all files that make a checkpoint: weights, head, tokenizer, configuration."""
    places, chain = list[Path](), base
    while chain.under is not None:  # an adapter may stand on another one
        places.append(chain.path)
        chain = chain.under
    places.append(chain.path)
    kinds = (".safetensors", ".json", ".txt", ".model")
    found = [path for place in places for path in sorted(place.rglob("*")) if path.suffix in kinds]
    files = [[path.name, sha256_file(path)] for path in found if path.name != "record.json"]  # that has a date
    return digest_of({"files": files, "layers": base.layers})
