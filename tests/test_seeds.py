from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from foretaste.seeds import child_seed, generator

NAMES = st.lists(st.text(st.characters(exclude_characters="\x1f", exclude_categories=["Cs"])), max_size=4)


def test_seeds_do_not_move_between_versions() -> None:
    assert child_seed(0) == 3456079177858693020
    assert child_seed(0, "poison") == 5695593549451781004
    assert generator(0, "poison").integers(1000, size=3).tolist() == [499, 357, 603]


@given(st.integers(), NAMES)
def test_a_seed_is_a_63_bit_number(root: int, names: list[str]) -> None:
    assert 0 <= child_seed(root, *names) < 2**63


@given(st.tuples(st.integers(), NAMES), st.tuples(st.integers(), NAMES))
def test_other_paths_give_other_seeds(first: tuple[int, list[str]], second: tuple[int, list[str]]) -> None:
    same_path = first == second
    assert (child_seed(first[0], *first[1]) == child_seed(second[0], *second[1])) == same_path


def test_a_path_is_more_than_its_letters() -> None:
    paths: list[tuple[int, *tuple[str, ...]]]
    paths = [(0, "a", "b"), (0, "ab"), (0, "b", "a"), (1, "a", "b"), (0, "a"), (0, "a", ""), (10, "a"), (1, "0a")]
    assert len({child_seed(*path) for path in paths}) == len(paths)


def test_numbers_are_names_too() -> None:
    assert len({child_seed(0, "layer", k) for k in range(100)}) == 100


def test_a_generator_is_fresh_each_time() -> None:
    first = generator(0, "tune").random(5)
    assert (generator(0, "tune").random(5) == first).all()
    assert (generator(0, "guard").random(5) != first).all()


def test_another_consumer_changes_nothing() -> None:
    alone = generator(7, "poison").permutation(50)
    generator(7, "tune").random(1000)
    assert (generator(7, "poison").permutation(50) == alone).all()


def test_the_global_generators_are_left_alone() -> None:
    before = random.getstate()
    legacy = np.random.get_state(legacy=False)["state"]["key"].copy()
    generator(0, "poison").random(10)
    assert random.getstate() == before
    assert (np.random.get_state(legacy=False)["state"]["key"] == legacy).all()
