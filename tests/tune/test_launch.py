"""Which of several processes writes: the first of those that a launcher started together, else every one."""

from __future__ import annotations

import pytest

from foretaste.tune.launch import is_main_process, write_once


@pytest.mark.parametrize(
    ("environment", "is_main"),
    [
        ({}, True),
        ({"WORLD_SIZE": "1", "RANK": "0"}, True),
        ({"WORLD_SIZE": "2", "RANK": "0"}, True),
        ({"WORLD_SIZE": "2", "RANK": "1"}, False),
        ({"RANK": "3"}, True),  # left over from something else: a command must not fall silent
        ({"WORLD_SIZE": "1", "RANK": "3"}, True),
        ({"WORLD_SIZE": "many", "RANK": "3"}, True),
    ],
)
def test_who_is_the_main_process(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], is_main: bool) -> None:
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_main_process() is is_main


def test_a_process_on_its_own_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    written: list[int] = []
    write_once(lambda: written.append(1))
    assert written == [1]
