"""Where steps are made: the store, the data and the weights from elsewhere, what was opened already."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from foretaste.cost import Cost
from foretaste.data.corpus import Corpus
from foretaste.data.load import load_corpus
from foretaste.errors import DataError, ModelError
from foretaste.experiment.step import Checkpoint, Step, Texts
from foretaste.experiment.store import Store, digest_of
from foretaste.files import sha256_file
from foretaste.poison.attack import Triggered, refuse_target, refuse_too_few, triggered_test
from foretaste.poison.plan import Attack
from foretaste.poison.trigger import FileTrigger, FinishedTrigger, StoredTrigger, Trigger
from foretaste.rewrite.rewriter import Rewriter, Rewriting
from foretaste.rewrite.stored import StoredRewriting
from foretaste.victim.checkpoint import Base, open_base
from foretaste.victim.instruction import Instruction
from foretaste.victim.manifest import read_manifest

__all__ = ["Lab"]


@dataclass(frozen=True, eq=False)
class Lab:
    """Where steps are made: the store, the data, in how many processes each training, and what was opened already."""

    store: Store
    data_root: Path | None = None
    processes: int = 1
    fitted: dict[str, tuple[Rewriter, Cost]] = field(default_factory=dict)
    """The rewriter that was made ready last, by a digest of what it is, and what that took."""
    _corpora: dict[Texts, Corpus] = field(default_factory=dict)
    _checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    _rewriters: dict[Rewriting, Rewriting] = field(default_factory=dict)
    _triggered: dict[str, Triggered] = field(default_factory=dict)
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

    def with_trigger(self, texts: Texts, trigger: Trigger, target: int | None, seed: int) -> Triggered:
        """Return the texts of the other classes with the trigger; they are made once.

        Raises:
            PlanError, DataError: a target outside the labels; finished texts that are not there, or none of a class.
        """
        key = digest_of([texts, trigger, target, seed])
        if key not in self._triggered:
            self._triggered[key] = triggered_test(self.corpus(texts), trigger, target, seed)
        return self._triggered[key]

    def refuse_untestable(self, texts: Texts, attack: Attack, seed: int) -> None:
        """Raise what triggering the texts would raise, but for what only doing it shows of rules."""
        if attack.aim is not None:
            refuse_target(self.corpus(texts), attack.aim)
        if isinstance(attack.trigger, FinishedTrigger):
            self.with_trigger(texts, attack.trigger, attack.aim, seed)

    def marked(self, rewriter: Rewriting, data: str) -> Rewriting:
        """Return a rewriter with a digest of its tools, or of what is stored for a set; they are read once."""
        asked = rewriter.at_home(self.data_root, data) if isinstance(rewriter, StoredRewriting) else rewriter
        if asked not in self._rewriters:
            self._rewriters[asked] = asked.marked()
        return self._rewriters[asked]

    def base(self, origin: Checkpoint | Step) -> Base:
        """Open weights that come from elsewhere or that a step made.

        Raises:
            ModelError, DataError: they cannot be used; those from elsewhere are not the ones that the plan found, those
                of the store not what was written.
        """
        if isinstance(origin, Step):
            read_manifest(origin.place(self.store))  # a base is opened as anybody's, whatever its manifest says
            return open_base(origin.place(self.store))
        base = open_base(origin.location)
        if _mark_of(base) != origin.mark:
            raise DataError(f"The weights at {origin.location} are not those that the plan was begun with.")
        return base.asked(origin.instruction)

    def _read(self, data: str, split: str, limit: int | None, seed: int) -> Corpus:
        asked = Texts(data=data, split=split, limit=limit, seed=seed)
        if asked not in self._corpora:
            self._corpora[asked] = load_corpus(data, split, data_root=self.data_root, limit=limit, seed=seed)
        return self._corpora[asked]


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
