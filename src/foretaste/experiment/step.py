"""What is made once and kept, and what it is made from: texts, weights from elsewhere, other steps."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from foretaste.cost import Cost
from foretaste.data.hub import NAMED_SETS
from foretaste.errors import DataError
from foretaste.experiment.store import Store, digest_of
from foretaste.record import Record
from foretaste.tune.loop import TuneSettings
from foretaste.victim.instruction import Instruction
from foretaste.victim.manifest import MANIFEST

if TYPE_CHECKING:
    from foretaste.experiment.lab import Lab

__all__ = ["Checkpoint", "Step", "Texts"]

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
        """What takes about as long: by methods of these names, so many epochs, on texts of this set; then `like`."""
        parts = [getattr(self, each.name) for each in fields(self) if each.name != "trigger"]
        named = [getattr(part, "data", getattr(part, "name", None)) for part in parts if not isinstance(part, Step)]
        epochs = [f"{part.epochs} epochs" for part in parts if isinstance(part, TuneSettings)]
        own = dict.fromkeys(name for name in [*named, *epochs] if isinstance(name, str))
        return f"{'/'.join(own)} in {self.like}"

    @property
    def like(self) -> str:
        """What takes a time of the same order: steps of this kind, of the same weights to begin with."""
        return f"{self.kind} of {self.origin}"

    @property
    def origin(self) -> str:
        """The name of the weights from elsewhere that all began with; nothing if it needs none."""
        parts = [getattr(self, each.name) for each in fields(self)]
        own = (Path(part.location).name if isinstance(part, Checkpoint) else part.origin
               for part in parts if isinstance(part, Checkpoint | Step))  # fmt: skip
        return next((name for name in own if name), "")

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
        except (DataError, LookupError, TypeError, ValueError):  # whoever opens an adapter compares what it stands on
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
