"""The options of `foretaste guard` on top of a recipe."""

from __future__ import annotations

from foretaste.guard.psim import PSIM_STRATEGIES, Psim
from foretaste.guard.recipes import psim_plan
from foretaste.victim.strategy import Lora, PromptTuning, PTuningV1


def test_nothing_given_is_the_recipe() -> None:
    assert psim_plan("default", None, {}, {}) == Psim()
    assert psim_plan("paper", None, {}, {}) == Psim.paper()


def test_the_recipes_own_strategy_keeps_its_other_fields() -> None:
    for name in (None, "prompt_tuning"):
        fewer = psim_plan("default", name, {"virtual_tokens": "4"}, {}).strategy
        assert fewer == PromptTuning(learning_rate=1e-2, start="vocabulary", virtual_tokens=4)
    assert psim_plan("paper", None, {"virtual_tokens": "3"}, {}).strategy == PTuningV1(virtual_tokens=3)


def test_another_strategy_starts_where_the_recipe_knows_it_to_work() -> None:
    for name, own in PSIM_STRATEGIES.items():
        assert psim_plan("default", name, {}, {}).strategy == own
    assert psim_plan("default", "lora", {"rank": "4"}, {}).strategy == Lora(layers="feed_forward", rank=4)
    assert psim_plan("paper", "lora", {}, {}).strategy == Lora()


def test_a_promise_takes_the_place_of_the_papers_fixed_bar() -> None:
    assert psim_plan("paper", None, {}, {"frr": 0.02}).threshold is None
