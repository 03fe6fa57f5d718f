"""Every unlearner by name: the one list that the command line, the comparison and the contract tests read."""

from __future__ import annotations

from foretaste.spec import Registry
from foretaste.unlearn.fine_mixing import FineMixing
from foretaste.unlearn.fine_pruning import FinePruning
from foretaste.unlearn.fine_tuning import FineTuning
from foretaste.unlearn.flagged import FlaggedTexts
from foretaste.unlearn.named import NamedTriggers
from foretaste.unlearn.obliviate import Obliviate
from foretaste.unlearn.unlearner import Unlearner
from foretaste.unlearn.w2s import W2SDefense

__all__ = ["UNLEARNERS"]

UNLEARNERS: Registry[type[Unlearner]] = Registry(
    "method",
    {
        kind.name: kind
        for kind in (W2SDefense, FineTuning, FineMixing, FinePruning, Obliviate, FlaggedTexts, NamedTriggers)
    },
)
